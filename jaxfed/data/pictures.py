"""Image sets as people have them, as arrays of one shape.

table = pictures.read("flowers", size=32)  # flowers/train/rose/1.jpg, flowers/test/rose/2.jpg
data = federate(table.source, partition.iid(len(table.source.train["label"]), 10, seed=0))
"""

import hashlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfed import values
from jaxfed.data import cache, cifar, decoding, fields, rows, sources, tables
from jaxfed.data.sources import Examples, Source
from jaxfed.data.tables import USER, Table

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
TESTS = ("test", "val", "valid", "validation")
MNIST = {
    split: (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte")
    for split, stem in (("train", "train"), ("test", "t10k"))
}


def read(
    train: Any,
    test: Any = None,
    *,
    size: int | None = None,
    image: str = "image",
    label: str = "label",
    user: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Table:
    """The images [n, H, W, C] and labels of a folder, a file or an object.

    A folder holds one folder of image files (or .npy arrays) for each class, or such folders under
    `train` and `test`, or MNIST's files (train-images-idx3-ubyte, or .gz), or those of CIFAR-10 or
    CIFAR-100 in their Python or binary version, or train_image.npy, train_label.npy and so on; a
    file is an .npz with arrays of these names, or CIFAR's archive. An object is a
    `datasets.Dataset` or a torch Dataset of dicts with the columns `image` and `label`, or of
    pairs. Images of whole numbers are uint8, grey if all of them are, otherwise RGB; those of
    floats, as of torchvision's ToTensor, stay what they are. A transform that draws at random is
    drawn once. Decoded folders are kept in the user's cache.

    Args:
        train: a path or an object.
        test: likewise; its labels must be among those of the training set.
        size: height and width to which images are resized; by default all must have one size.
        image: the column of images in an object of dicts.
        label: the column of labels there.
        user: the column of users' names there.
        test_fraction: of the rows, if there is no test set.
        seed: decides which rows these are.

    Raises ValueError, with the file or row and the remedy, for what cannot be used.
    """
    values.whole("seed", seed, 0)
    if size is not None:
        values.whole("size", size, 1)
    if not 0 < values.number("test_fraction", test_fraction) < 1:
        raise ValueError(f"test_fraction={test_fraction}; use a number above 0 and below 1")
    parts = _read(train, "the training set", size, (image, label, user))
    if test is not None:
        parts = parts + _read(test, "the test set", size, (image, label, user))
    if len(parts) > 2:
        raise ValueError(f"{train} has a test set of its own; leave test= out")
    classes = tables.sorted_classes(parts[0].name, label, parts[0].labels)
    made = [
        {
            "image": part.image,
            "label": tables.numbered(part.labels, classes, part.at),
            **({} if part.users is None else {USER: np.array(part.users, object)}),
        }
        for part in parts
    ]
    return _divided(made, classes, test_fraction, seed)


class Part(NamedTuple):
    """A training set, a test set, or one that is still to be divided."""

    name: str
    image: np.ndarray  # [n, H, W, C]
    labels: Sequence[str]
    at: Callable[[int], str]  # the place of a row, for a sentence
    users: Sequence[str] | None = None


def _divided(
    made: list[Examples], classes: tuple[str, ...], test_fraction: float, seed: int
) -> Table:
    if len(made) == 1:
        held = tables.held_out(made[0]["label"], made[0].get(USER), test_fraction, seed)
        made = [{name: x[one] for name, x in made[0].items()} for one in (~held, held)]
    users = (made[0].pop(USER), made[1].pop(USER)) if USER in made[0] else None
    shapes = [part["image"].shape[1:] for part in made]
    if shapes[0][:2] != shapes[1][:2]:
        raise ValueError(
            f"training images are {shapes[0]} and test images {shapes[1]}; give size= to resize"
        )
    if shapes[0] != shapes[1]:  # one of them is grey
        made = [{**part, "image": decoding.coloured(part["image"])} for part in made]
    return Table(Source(*made), classes, users)


def _read(
    given: Any, name: str, size: int | None, columns: tuple[str, str, str | None]
) -> list[Part]:
    """The parts of what is given: one, or a training and a test set."""
    if not isinstance(given, str | Path):
        return [_of_object(given, name, size, *columns)]
    path = Path(given).expanduser()
    if (published := cifar.read(path)) is not None:
        source, classes = published
        return _of_arrays(str(path), source, size, classes)
    if path.is_dir():
        return _of_folder(path, size)
    if not path.is_file():
        raise ValueError(f"there is no folder or file {path}; give the path of one")
    if path.suffix != ".npz":
        raise ValueError(
            f"{path} is no .npz file of train_image, train_label, test_image and test_label, and "
            "no archive of CIFAR; give one, or a folder of images"
        )
    return _of_arrays(str(path), sources.npz(path), size)


def _of_arrays(
    name: str, source: Source, size: int | None, classes: Sequence[str] = ()
) -> list[Part]:
    """The two parts of a source, whose labels count through `classes` if there are any."""
    return [
        Part(
            name,
            _alike(part["image"], f"{name}, {split}", size),
            [classes[i] if classes else fields.name(i) for i in part["label"]],
            partial("{}, {} row {}".format, name, split),
        )
        for split, part in zip(Source._fields, source, strict=True)
    ]


def _alike(images: np.ndarray, name: str, size: int | None) -> np.ndarray:
    """Images [n, H, W] or [n, H, W, C], resized if asked for: [n, H, W, C]."""
    at = [f"{name} row {i}" for i in range(len(images) if size is not None else 1)]
    one_by_one = (decoding.array(x, where, size) for x, where in zip(images, at, strict=False))
    if size is not None:
        return decoding.stacked(name, len(images), zip(at, one_by_one, strict=True))
    first = next(one_by_one, None)
    if first is None:
        raise ValueError(f"{name} is empty; give a row for each image")
    x = images.astype(np.float32) if first.dtype.kind == "f" else decoding.as_bytes(images, name)
    return x.reshape(len(x), *first.shape)


# ---------------------------------------------------------------------- folders


def _of_folder(path: Path, size: int | None) -> list[Part]:
    there = {p.name.removesuffix(".gz"): p for p in sorted(path.iterdir())}
    if MNIST["train"][0] in there:
        if missing := sorted({name for pair in MNIST.values() for name in pair} - set(there)):
            raise ValueError(f"{path} has no {missing[0]} (or .gz); it has {sorted(there)}")
        pairs = [[decoding.idx(there[name]) for name in pair] for pair in MNIST.values()]
        return _of_arrays(str(path), _source(pairs), size)
    if "train_image.npy" in there:
        names = [[f"{split}_{name}.npy" for name in ("image", "label")] for split in MNIST]
        pairs = [[decoding.npy(path / name) for name in pair] for pair in names]
        return _of_arrays(str(path), _source(pairs), size)
    if (path / "train").is_dir():
        tests = [path / name for name in TESTS if (path / name).is_dir()]
        return [_of_classes(folder, size) for folder in (path / "train", *tests[:1])]
    return [_of_classes(path, size)]


def _source(pairs: Sequence[Sequence[np.ndarray]]) -> Source:
    return sources.arrays(*(dict(zip(("image", "label"), pair, strict=True)) for pair in pairs))


def _of_classes(folder: Path, size: int | None) -> Part:
    """The images in a folder's folders, each of which is a class."""
    paths = list(_listed(folder))
    encoded = any(path.suffix != ".npy" for path in paths)
    version = decoding.pillow().__version__ if encoded else "none"
    content = itertools.chain(
        [f"size {size}, pillow {version}".encode()],
        (hashlib.blake2b(path.read_bytes()).digest() + path.suffix.encode() for path in paths),
    )

    def decoded() -> Examples:
        return {"image": decoding.stacked(str(folder), len(paths), decoding.decoded(paths, size))}

    image = cache.kept("images", content, decoded)["image"]
    labels = [path.relative_to(folder).parts[0] for path in paths]
    return Part(str(folder), image, labels, lambda i: str(paths[i]))


def _listed(folder: Path) -> Iterator[Path]:
    """The images below a folder's folders, sorted; other files are left out with a warning."""
    classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise ValueError(
            f"{folder} has no folders in it; give one folder of images for each class, such as "
            f"{folder}/cat and {folder}/dog"
        )
    others = 0
    for one in classes:
        files = sorted(p for p in one.rglob("*") if p.is_file() and not p.name.startswith("."))
        images = [p for p in files if p.suffix.lower() in (*SUFFIXES, ".npy")]
        if not images:
            raise ValueError(
                f"{one} has no image in it (known are {', '.join(SUFFIXES)}, .npy); remove it"
            )
        others += len(files) - len(images)
        yield from images
    if others:
        warnings.warn(f"{folder}: {others} files are no images and are left out", stacklevel=2)


# ---------------------------------------------------------------------- objects


def _of_object(
    given: Any, name: str, size: int | None, image: str, label: str, user: str | None
) -> Part:
    table = rows.table(given, name)
    if tuple(table.columns) == ("0", "1"):
        image, label = "0", "1"
    wanted = [image, label] + ([user] if user is not None else [])
    rows.check_columns(table, wanted)
    known: Any = getattr(given, "classes", None)  # the names of torchvision's labels
    labels, users = [], []

    def images() -> Iterator[tuple[str, np.ndarray]]:
        for at, (picture, *named) in table.read(wanted)[0]:
            names = [fields.name(field) for field in named]
            if not all(names):
                empty = wanted[1 + names.index("")]
                raise ValueError(f"{table.at(at)}: {empty!r} is empty; leave such rows out")
            whole = known is not None and names[0].isdecimal() and int(names[0]) < len(known)
            labels.append(str(known[int(names[0])]) if whole else names[0])
            users.extend(names[1:])
            yield table.at(at), decoding.array(picture, table.at(at), size)

    image_array = decoding.stacked(name, len(given), images())
    return Part(name, image_array, labels, table.at, users if user is not None else None)
