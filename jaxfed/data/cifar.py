"""CIFAR-10 and CIFAR-100 in the files in which they are published.

Both their Python version (pickled batches) and their binary version are read, unpacked or as the
archive that was downloaded. Krizhevsky, "Learning multiple layers of features from tiny images",
2009.
"""

import io
import itertools
import pickle
import tarfile
import warnings
import zlib
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxfed.data.sources import Examples, Source

Files: TypeAlias = Mapping[str, Callable[[], bytes]]  # {name: what reads it}

PIXELS = 3 * 32 * 32  # bytes of an image: its red, green and blue plane
COUNTS = {"train": 50_000, "test": 10_000}  # as published


class Layout(NamedTuple):
    """The files of one version of one set."""

    folder: str  # as its archive unpacks
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str  # the file with the names of the classes
    labels: str  # in pickled files, the key of the labels
    key: str  # in pickled files, the key of the names of the classes
    bytes_before: int = 0  # in binary files, the bytes of labels before each image, the last counts

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, *self.test, self.names)

    def is_in(self, files: Container[str]) -> bool:
        """True if two of its files are there: one alone may be anything."""
        return sum(name in files for name in self.files) > 1


BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
LAYOUTS = (
    Layout(
        "cifar-10-batches-py", BATCHES, ("test_batch",), "batches.meta", "labels", "label_names"
    ),
    Layout("cifar-100-python", ("train",), ("test",), "meta", "fine_labels", "fine_label_names"),
    Layout(
        "cifar-10-batches-bin",
        tuple(f"{name}.bin" for name in BATCHES),
        ("test_batch.bin",),
        "batches.meta.txt",
        "",
        "",
        bytes_before=1,
    ),
    Layout(
        "cifar-100-binary",
        ("train.bin",),
        ("test.bin",),
        "fine_label_names.txt",
        "",
        "",
        bytes_before=2,
    ),
)


def read(path: str | Path) -> tuple[Source, tuple[str, ...]] | None:
    """(images uint8 [n, 32, 32, 3] and labels, names of the classes); None if no such set is there.

    The path is the folder that the archive unpacks to, one that has it in it, or the archive.
    CIFAR-100's labels are the fine ones. Fewer images than are published are a warning. Nothing
    that a pickled file names is executed. Raises ValueError for several sets in one folder, and for
    files that are missing or damaged.
    """
    found = _files(Path(path).expanduser())
    if found is None:
        return None
    where, layout, files = found
    if missing := [name for name in layout.files if name not in files]:
        raise ValueError(
            f"{where} has no {', '.join(missing)}; unpack the whole archive of {layout.folder} "
            "there"
        )
    classes = _classes(where, layout, files)
    made = {split: _examples(where, layout, files, split, len(classes)) for split in COUNTS}
    counts = {split: len(part["label"]) for split, part in made.items()}
    if counts != COUNTS:
        warnings.warn(
            f"{where} has {counts['train']:,} training and {counts['test']:,} test images, of the "
            f"{COUNTS['train']:,} and {COUNTS['test']:,} that are published",
            stacklevel=2,
        )
    return Source(**made), classes


# ---------------------------------------------------------------------- where the files are


def _files(path: Path) -> tuple[str, Layout, Files] | None:
    """(where it is, which layout, its files) of the one set at this path; None if there is none."""
    if path.is_file():
        return _of_archive(path) if ".tar" in path.suffixes or path.suffix == ".tgz" else None
    if not path.is_dir():
        return None
    inside = [path, *(path / layout.folder for layout in LAYOUTS)]
    folders = {folder: _of_folder(folder) for folder in inside if folder.is_dir()}
    found = [
        (folder, layout)
        for folder, layout in itertools.product(folders, LAYOUTS)
        if layout.is_in(folders[folder])
    ]
    if len(found) > 1:
        names = " and ".join(layout.folder for _, layout in found)
        raise ValueError(f"{path} holds {len(found)} sets, {names}; give the folder of one")
    return next(((str(folder), layout, folders[folder]) for folder, layout in found), None)


def _of_folder(folder: Path) -> Files:
    return {p.name: p.read_bytes for p in folder.iterdir() if p.is_file()}


def _of_archive(path: Path) -> tuple[str, Layout, Files] | None:
    """Of a .tar.gz, whose files are all read at once, as an archive has them in no useful order."""
    files: dict[str, Callable[[], bytes]] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and (opened := archive.extractfile(member)) is not None:
                    files[Path(member.name).name] = io.BytesIO(opened.read()).getvalue
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); download it again") from None
    return next(((str(path), layout, files) for layout in LAYOUTS if layout.is_in(files)), None)


# ---------------------------------------------------------------------- what is in them


def _classes(where: str, layout: Layout, files: Files) -> tuple[str, ...]:
    """The names of the classes, in the order of their numbers."""
    held = files[layout.names]()
    if layout.bytes_before:
        names: Any = held.decode("utf-8", "replace").split()
    else:
        names = _unpickled(held, f"{where}, {layout.names}").get(layout.key)
    if not isinstance(names, list) or not names:
        raise _damaged(f"{where}, {layout.names}", "it has no list of names")
    return tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names)


def _examples(where: str, layout: Layout, files: Files, split: str, classes: int) -> Examples:
    """{"image": uint8 [n, 32, 32, 3], "label": int32 [n]} of a split's files together."""
    batch = _binary if layout.bytes_before else _pickled
    parts = []
    for name in getattr(layout, split):
        at = f"{where}, {name}"
        planes, labels = batch(files[name](), at, layout)
        if not len(labels) or labels.min() < 0 or labels.max() >= classes:
            wrong = f"labels from {labels.min()} to {labels.max()}" if len(labels) else "no image"
            raise _damaged(at, f"it has {wrong}, and there are {classes} classes")
        parts.append((planes, labels))
    planes, labels = (np.concatenate(each) for each in zip(*parts, strict=True))
    images = planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # [n, 32, 32, 3]
    return {"image": np.ascontiguousarray(images), "label": labels.astype(np.int32)}


def _binary(held: bytes, at: str, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """(planes uint8 [n, 3072], labels [n]) of a file of labels and planes, image by image."""
    each = layout.bytes_before + PIXELS
    if len(held) % each:
        raise _damaged(at, f"its {len(held):,} bytes are no multiple of {each:,}: it is cut off")
    rows = np.frombuffer(held, np.uint8).reshape(-1, each)
    return rows[:, layout.bytes_before :], rows[:, layout.bytes_before - 1]


def _pickled(held: bytes, at: str, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """(planes uint8 [n, 3072], labels [n]) of a pickled dict."""
    found = _unpickled(held, at)
    planes, labels = found.get("data"), found.get(layout.labels)
    if not isinstance(planes, np.ndarray) or planes.dtype != np.uint8 or planes.ndim != 2:
        raise _damaged(at, "it has no array of bytes under 'data'")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise _damaged(at, f"it has no list of whole numbers under {layout.labels!r}")
    if planes.shape != (len(labels), PIXELS):
        raise _damaged(at, f"data are {planes.shape} with {len(labels)} labels")
    return planes, np.array(labels, np.int64)


ADMITTED = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": np.empty(0).__reduce__()[0],  # an empty array, which the pickle then fills
}


class _Plain(pickle.Unpickler):
    """Makes numbers, text, lists, dicts and arrays, and nothing else that a file may ask for."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in ADMITTED:
            return ADMITTED[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of the set")


def _unpickled(held: bytes, at: str) -> dict[str, Any]:
    """The dict that a pickle of Python 2 or 3 holds, with its names as text."""
    try:
        found = _Plain(io.BytesIO(held), encoding="bytes").load()
    except Exception as error:  # damaged bytes raise nearly any
        raise _damaged(at, str(error)) from None
    if not isinstance(found, dict):
        raise _damaged(at, f"it holds a {type(found).__name__}")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in found.items()}


def _damaged(at: str, why: str) -> ValueError:
    return ValueError(f"{at} cannot be read ({why}); download it again")
