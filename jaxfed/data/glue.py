"""GLUE (Wang et al., ICLR 2019): CoLA, SST-2, MNLI, QQP and QNLI as strings and labels.

Both readers return a Source of {"text": str [n], "pair": str [n] where a task has two sentences,
"label": int32 [n]}; `text.tokenise` makes numbers of it. The labels of GLUE's test sets are hidden,
so its development set, of MNLI the matched one, is the test set here, as in most papers.
"""

import gzip
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxfed.data import sources
from jaxfed.data.sources import Examples, Source


class Layout(NamedTuple):
    """How one task is laid out in both kinds of files; labels count through `classes`."""

    folder: str  # of the TSV files
    columns: tuple[str, ...]  # of the TSV files: one sentence or two, then the label
    features: tuple[str, ...]  # of TFDS: one sentence or two
    classes: tuple[str, ...]
    header: tuple[str, ...] = ()  # of a TSV file without one
    dev: str = "dev"  # the original name of the development set
    validation: str = "validation"  # its name in TFDS


BINARY = ("0", "1")
TASKS = {
    "cola": Layout(
        "CoLA",
        ("sentence", "label"),
        ("sentence",),
        BINARY,
        header=("source", "label", "mark", "sentence"),
    ),
    "sst2": Layout("SST-2", ("sentence", "label"), ("sentence",), BINARY),
    "mnli": Layout(
        "MNLI",
        ("sentence1", "sentence2", "gold_label"),
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        dev="dev_matched",
        validation="validation_matched",
    ),
    "qqp": Layout(
        "QQP", ("question1", "question2", "is_duplicate"), ("question1", "question2"), BINARY
    ),
    "qnli": Layout(
        "QNLI",
        ("question", "sentence", "label"),
        ("question", "sentence"),
        ("entailment", "not_entailment"),
    ),
}


def tsv(task: str, folder: str | Path) -> Source:
    """The task from GLUE's own files, FOLDER/CoLA/train.tsv or train.tsv.gz and so on.

    Columns are found by their names, and CoLA's by their place, as its files have no header. Rows
    that lack a column or a label are left out, with a warning that counts them: QQP as published
    has a few. Raises ValueError for a file without the columns or with another label.
    """
    layout = _layout(task)
    place = Path(folder).expanduser() / layout.folder
    train, dev = _find(place, "train"), _find(place, layout.dev, "dev")
    return Source(_read(train, layout), _read(dev, layout))


def tfds(task: str, data_dir: str | Path | None) -> Source:
    """The task from TFDS's glue, read without TensorFlow, in TFDS's order.

    Raises ValueError, with the command that prepares it, if it is not in `data_dir` (None: TFDS's
    own default).
    """
    import tensorflow_datasets.text.glue  # noqa: F401 (only then does TFDS know it by name)

    layout = _layout(task)
    builder = sources.prepared(f"glue/{task}", data_dir)
    return Source(*(_decoded(builder, split, layout) for split in ("train", layout.validation)))


def _layout(task: str) -> Layout:
    if task not in TASKS:
        raise ValueError(f"there is no GLUE task {task!r} here; use one of {', '.join(TASKS)}")
    return TASKS[task]


def _find(folder: Path, *names: str) -> Path:
    """The first of these files that is there, plain or compressed."""
    paths = [folder / f"{name}{end}" for name in names for end in (".tsv", ".tsv.gz")]
    for path in paths:
        if path.is_file():
            return path
    raise ValueError(
        f"there is no {paths[0]} or {paths[-1].name}; give the folder that holds GLUE's files as "
        "FOLDER/CoLA/train.tsv"
    )


def _read(path: Path, layout: Layout) -> Examples:
    lines = _lines(path)
    header: Sequence[str] = layout.header or next(lines, ())
    if missing := set(layout.columns) - set(header):
        raise ValueError(f"{path} has no columns {sorted(missing)}; it has {list(header)}")
    places = [header.index(name) for name in layout.columns]
    rows = [[line[i] for i in places] if len(line) > max(places) else [""] for line in lines]
    whole = [row for row in rows if all(row)]
    if len(whole) < len(rows):
        warnings.warn(
            f"{path}: {len(rows) - len(whole)} of {len(rows)} rows lack a sentence or a label and "
            "are left out",
            stacklevel=4,
        )
    if not whole:
        raise ValueError(f"{path} has no example; give the file as GLUE publishes it")
    *sentences, labels = zip(*whole, strict=True)
    if unknown := set(labels) - set(layout.classes):
        raise ValueError(f"{path} has labels {sorted(unknown)}; they must be {layout.classes}")
    return _examples(sentences, [layout.classes.index(label) for label in labels])


def _lines(path: Path) -> Iterator[Sequence[str]]:
    """The fields of each line; quotes mean nothing in these files."""
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", newline="\n") as file:
        try:
            for line in file:
                yield line.rstrip("\r\n").split("\t")
        except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path} cannot be read ({error}); give it as GLUE publishes it"
            ) from None


def _decoded(builder, split: str, layout: Layout) -> Examples:
    source = builder.as_data_source(split=split)
    found = source.__getitems__(range(len(source)))
    sentences = [[example[name].decode() for example in found] for name in layout.features]
    return _examples(sentences, [example["label"] for example in found])


def _examples(sentences: Sequence[Sequence[str]], labels: Sequence[int]) -> Examples:
    named = zip(("text", "pair"), sentences, strict=False)
    strings = {name: np.array(column, dtype=object) for name, column in named}
    return {**strings, "label": np.array(labels, np.int32)}
