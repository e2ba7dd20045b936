"""Where examples come from: embedded digits, TFDS, a user's file, a user's arrays."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from jaxfed import values

Examples: TypeAlias = dict[str, np.ndarray]


class Source(NamedTuple):
    """Examples to train on and to test on: {"image": uint8 [n, H, W, C], "label": int32 [n]}.

    A user's own arrays may have any keys; what they share is one row an example, [n, ...].
    """

    train: Examples
    test: Examples


def digits(seed: int = 0, test_fraction: float = 0.2) -> Source:
    """scikit-learn's 1797 handwritten digits, 8 x 8 x 1 with values 0..16: no file is read.

    Each label gives the same fraction of its examples to the test set.
    """
    from sklearn import datasets, model_selection

    values.whole("seed", seed, 0)
    if not 0 < values.number("test_fraction", test_fraction) < 1:
        raise ValueError(f"test_fraction={test_fraction}; use a number above 0 and below 1")
    image, label = datasets.load_digits(return_X_y=True)
    train, test = model_selection.train_test_split(
        np.arange(len(label)), test_size=test_fraction, random_state=seed, stratify=label
    )
    grey = image.reshape(-1, 8, 8).astype(np.uint8)
    return Source(_labelled(grey[train], label[train]), _labelled(grey[test], label[test]))


def tfds(name: str, data_dir: str | Path | None) -> Source:
    """The splits "train" and "test" of any TFDS set of images and labels.

    They are read without TensorFlow, in TFDS's order: about 10,000 small images a second, nearly
    twice that with OpenCV installed. `data_dir` is where TFDS keeps its sets; None means TFDS's own
    default. Raises ValueError if the set is not prepared there, has other splits or features, or
    holds images of several shapes.
    """
    builder = prepared(name, data_dir)
    _check_has("features", {"image", "label"}, builder.info.features, name)
    _check_has("splits", {"train", "test"}, builder.info.splits, name)
    return Source(*(_read(builder.as_data_source(split=split)) for split in ("train", "test")))


def prepared(name: str, data_dir: str | Path | None) -> Any:
    """TFDS's builder of a set that lies prepared in `data_dir`, to be read without TensorFlow.

    Raises ValueError, with the command that prepares it, if it does not, or if it lies there in a
    format that only TensorFlow reads, such as TFDS's default.
    """
    import tensorflow_datasets

    data_dir = None if data_dir is None else Path(data_dir).expanduser()
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
    except (tensorflow_datasets.core.DatasetNotFoundError, ValueError):
        raise ValueError(
            f"TFDS knows no {name!r}; see tensorflow.org/datasets/catalog for the names"
        ) from None
    if not builder.is_prepared():
        where = "" if data_dir is None else f" --data_dir={data_dir}"
        raise ValueError(
            f"TFDS has no {name!r} prepared in {builder.data_path}; {_prepare(name, where)}"
        )
    formats = builder.info.available_file_formats()
    if not formats & tensorflow_datasets.core.FileFormat.with_random_access():
        named = " and ".join(sorted(f.value for f in formats))
        raise ValueError(
            f"{builder.data_path} holds {name!r} as {named}, which only TensorFlow reads; "
            + _prepare(name, " --data_dir=ANOTHER_FOLDER")
        )
    return builder


def _prepare(name: str, where: str) -> str:
    return (
        "prepare it once with\n"
        "    pip install array_record importlib_resources pillow tensorflow\n"
        f"    tfds build {name} --file_format=array_record{where}\n"
        "Reading it then needs no TensorFlow."
    )


def npz(path: str | Path) -> Source:
    """The images and labels of a user's .npz file, with arrays under exactly four keys.

    train_image, test_image: uint8 [n, H, W, C], or [n, H, W] for grey;
    train_label, test_label: integers [n].

    np.savez("mine.npz", train_image=..., train_label=..., test_image=..., test_label=...)
    writes one.
    """
    keys = {f"{split}_{name}" for split in ("train", "test") for name in ("image", "label")}
    broken = (
        ValueError,
        EOFError,
        MemoryError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    )
    with open(Path(path).expanduser(), "rb") as opened:
        try:
            file = np.load(opened)
            has = set(getattr(file, "files", ()))
            found = {key: file[key] for key in keys & has}
        except broken as error:
            cause = str(error).partition(". ")[0]
            raise ValueError(
                f"{path} cannot be read ({cause}); write it again with np.savez, from arrays of "
                "numbers"
            ) from None
    _check_has("arrays", keys, has, path)
    train, test = (_labelled(found[f"{s}_image"], found[f"{s}_label"]) for s in ("train", "test"))
    if train["image"].shape[1:] != test["image"].shape[1:]:
        raise ValueError(
            f"{path} has training images {train['image'].shape[1:]} and test images "
            f"{test['image'].shape[1:]}; give both one size and number of channels"
        )
    return arrays(train, test)


def check_images(source: Source, shape: tuple[int, int, int], *, classes: int) -> Source:
    """The source itself; raises ValueError if its images or labels are those of another set.

    `shape` is (H, W, C); the labels of its training set must be 0 to classes - 1, all of them.
    """
    for examples in source:
        if missing := {"image", "label"} - set(examples):
            raise ValueError(f"there is no {sorted(missing)}; there are {sorted(examples)}")
        if examples["image"].shape[1:] != shape:
            raise ValueError(f"images are {examples['image'].shape[1:]}; this needs {shape}")
    labels = np.unique(source.train["label"])
    if labels.tolist() != list(range(classes)):
        raise ValueError(
            f"there are {len(labels)} labels, {labels[0]} to {labels[-1]}; this needs 0 to "
            f"{classes - 1}"
        )
    return source


def check_numbers(source: Source) -> None:
    """Raises ValueError for values that are not finite numbers, with their column and row.

    And if the two sets hold one array as different kinds of numbers, or images in different units.
    """
    for part, examples in zip(source._fields, source, strict=True):
        for name, x in examples.items():
            _check_array(f"{part} {name!r}", np.asarray(x))
    for name, x in source.train.items():
        y = source.test.get(name, x)
        if (x.dtype.kind == "f") != (y.dtype.kind == "f"):
            raise ValueError(
                f"{name!r} is {x.dtype} in the training set and {y.dtype} in the test set; give "
                "both in one type and unit"
            )
        tops = [float(np.max(np.abs(a), initial=0)) for a in (x, y)] if x.ndim > 2 else [0.0]
        if max(tops) > 10 * min(tops) > 0:
            raise ValueError(
                f"{name!r} reaches {tops[0]:g} in the training set and {tops[1]:g} in the test "
                "set; give both in one unit"
            )


def another(name: str, given: Examples, source: Source) -> Examples:
    """A set beside the source's two, as arrays; ValueError or TypeError unless it is like them."""
    try:
        like = arrays(source.train, given)
        check_numbers(like)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}, as a test set: {error}") from None
    if not len(next(iter(like.test.values()))):
        raise ValueError(f"{name} has no row; give some, or leave it out")
    return like.test


def _check_array(where: str, x: np.ndarray) -> None:
    if x.dtype.kind in "OSUMmc":
        raise ValueError(
            f"{where} is {x.dtype}; give numbers, such as np.unique(x, return_inverse=True)[1] of "
            "names, or leave it out"
        )
    if x.dtype.kind in "iu" and x.size:
        kept = np.iinfo(jax.dtypes.canonicalize_dtype(x.dtype))
        if x.max() > kept.max or x.min() < kept.min:
            raise ValueError(
                f"{where} runs from {x.min()} to {x.max()}, and JAX keeps it as {kept.dtype}; "
                "number what it holds from 0"
            )
    if x.dtype.kind in "biu" or np.isfinite(np.sum(x, dtype=np.float64)):
        return
    if len(wrong := np.argwhere(~np.isfinite(x.astype(np.float64)))):
        row, *place = wrong[0].tolist()
        at = f", column {', '.join(map(str, place))}" if place else ""
        raise ValueError(
            f"{where} has {x[tuple(wrong[0])]} in row {row}{at} ({len(wrong):,} such values in "
            "all); leave such rows out or fill them in"
        )


def arrays(train: Mapping[str, Any], test: Mapping[str, Any]) -> Source:
    """A user's own arrays under any keys, the same in both: {key: [n, ...]}, one row an example."""
    for name, part in (("train", train), ("test", test)):
        values.kind(name, part, Mapping, "arrays by name, {'x': [n, ...], 'y': [n, ...]}")
    if set(train) != set(test) or not train:
        raise ValueError(
            f"train has {sorted(train)} and test has {sorted(test)}; give both the same keys"
        )
    named = ("train", train), ("test", test)
    source = Source(
        *({key: values.array(f"{n} {key!r}", x) for key, x in part.items()} for n, part in named)
    )
    for name, part in zip(Source._fields, source, strict=True):
        shapes = {key: x.shape for key, x in part.items()}
        if len({shape[:1] for shape in shapes.values()}) > 1 or () in shapes.values():
            raise ValueError(f"{name} arrays have shapes {shapes}; give each one row an example")
    return source


def _read(source: Any) -> Examples:
    """All examples of a TFDS data source."""
    examples = source.__getitems__(range(len(source)))
    images = [example["image"] for example in examples]
    if len(shapes := {image.shape for image in images}) > 1:
        raise ValueError(
            f"the images have {len(shapes)} shapes, among them {sorted(shapes)[:2]}; "
            "resize them to one shape and give them to sources.arrays"
        )
    return _labelled(np.stack(images), [example["label"] for example in examples])


def _labelled(image: Any, label: Any) -> Examples:
    """{"image": uint8 [n, H, W, C], "label": int32 [n]}; grey images may come as [n, H, W]."""
    image, label = np.asarray(image), np.asarray(label)
    if image.dtype != np.uint8 or image.ndim not in (3, 4):
        raise ValueError(
            f"images are {image.dtype} {image.shape}; give uint8 [n, H, W, C] or [n, H, W], or "
            "use sources.arrays for others"
        )
    if not np.issubdtype(label.dtype, np.integer) or label.ndim != 1:
        raise ValueError(f"labels are {label.dtype} {label.shape}; give integers [n]")
    if label.size and not -(2**31) <= label.min() <= label.max() < 2**31:
        raise ValueError(
            f"labels run from {label.min()} to {label.max()}; number them from 0, "
            "np.unique(labels, return_inverse=True)[1]"
        )
    return {"image": image.reshape(*image.shape[:3], -1), "label": label.astype(np.int32)}


def _check_has(kind: str, wanted: set[str], found: Any, where: object) -> None:
    if missing := wanted - set(found):
        raise ValueError(
            f"{where} has no {kind} {sorted(missing)}; it has {sorted(found)}. "
            "Other layouts can be given to sources.arrays"
        )
