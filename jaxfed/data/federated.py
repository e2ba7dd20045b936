"""A source and a partition made into arrays whose rows are sorted by client."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxfed.data.sources import Examples, Source


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Client k owns rows start[k] : start[k] + count[k] of every array in `examples` [M, ...]."""

    examples: Examples
    start: np.ndarray  # int32 [N], ascending
    count: np.ndarray  # int32 [N]; the counts add up to M

    @property
    def clients(self) -> int:
        return len(self.count)

    @property
    def most(self) -> int:
        """The largest count."""
        return int(self.count.max())

    @property
    def uniform(self) -> bool:
        """Whether all clients own equally many rows."""
        return bool((self.count == self.count[0]).all())


@dataclasses.dataclass(frozen=True, eq=False)
class Federated:
    """What each client trains on, its own test examples (maybe none), and the global test set."""

    train: Split
    personal: Split
    test: Examples

    @property
    def clients(self) -> int:
        return self.train.clients


def federate(
    source: Source,
    parts: Sequence[np.ndarray],
    *,
    personal_fraction: float = 0.0,
    personal_parts: Sequence[np.ndarray] | None = None,
    seed: int = 0,
) -> Federated:
    """The source with rows parts[k] of its training set owned by client k.

    A client's own test examples are either `personal_fraction` of its rows, held out of its
    training (floor(fraction n) of n rows, and that fraction of each label to within one row), or
    rows `personal_parts[k]` of the test set. Rows that no client owns are left out. Raises
    ValueError if rows are out of range or owned twice, or a client has none to train on.
    """
    if personal_fraction and personal_parts is not None:
        raise ValueError(
            "personal_fraction and personal_parts are two sources of one thing; use one"
        )
    if not 0 <= personal_fraction < 1:
        raise ValueError(f"personal_fraction={personal_fraction} is not in [0, 1)")
    if empty := [k for k, part in enumerate(parts) if not len(part)]:
        raise ValueError(f"client {empty[0]} of {len(parts)} has no row to train on; give it one")
    rows, owner = _flatten(parts, length(source.train), "parts")
    held = _hold_out(owner, _labels(source.train)[rows], personal_fraction, seed)
    train = _split(source.train, rows[~held], owner[~held], len(parts))
    if personal_parts is None:
        personal = _split(source.train, rows[held], owner[held], len(parts))
    elif len(personal_parts) == len(parts):
        rows, owner = _flatten(personal_parts, length(source.test), "personal_parts")
        personal = _split(source.test, rows, owner, len(parts))
    else:
        raise ValueError(f"{len(personal_parts)} personal_parts for {len(parts)} clients")
    return Federated(train, personal, source.test)


def label_table(split: Split, classes: int, *, label: str = "label") -> np.ndarray:
    """How many examples of each label each client owns [N, classes]."""
    labels = split.examples[label]
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; classes={classes}")
    owner = np.repeat(np.arange(split.clients), split.count)
    table = np.bincount(owner * classes + labels, minlength=split.clients * classes)
    return table.reshape(split.clients, classes)


def capacity(split: Split, cohort: int) -> int:
    """The most rows that `cohort` distinct clients can own together."""
    return int(np.sort(split.count)[::-1][:cohort].sum())


def pack(
    split: Split, ids: Sequence[int] | np.ndarray, capacity: int
) -> tuple[Examples, np.ndarray]:
    """(the clients' rows, one client after the other, in arrays [capacity, ...]; start int32 [K]).

    For examples that do not fit on the device. Rows that are left over are zeros. Raises ValueError
    if the clients own more rows than that; `capacity(split, len(ids))` is enough for any.
    """
    count = split.count[ids]
    if count.sum() > capacity:
        raise ValueError(f"the clients own {count.sum()} rows, above the capacity of {capacity}")
    start = _starts(count)
    packed = {key: np.zeros((capacity, *x.shape[1:]), x.dtype) for key, x in split.examples.items()}
    for k, to, n in zip(ids, start, count, strict=True):
        for key, x in split.examples.items():
            packed[key][to : to + n] = x[split.start[k] : split.start[k] + n]
    return packed, start


def _split(examples: Examples, rows: np.ndarray, owner: np.ndarray, clients: int) -> Split:
    count = np.bincount(owner, minlength=clients).astype(np.int32)
    return Split({key: taken(x, rows) for key, x in examples.items()}, _starts(count), count)


def taken(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """x[rows], beginning at a multiple of 64 bytes: then JAX's CPU devices use it in place.

    A copy for the host and one for each device would be most of what a further client costs.
    """
    shape = (len(rows), *x.shape[1:])
    size = int(np.prod(shape)) * x.dtype.itemsize
    space = np.empty(size + 64, np.uint8)
    begin = -space.ctypes.data % 64
    found = space[begin : begin + size].view(x.dtype).reshape(shape)
    return np.take(x, rows, axis=0, out=found, mode="clip")  # any other mode makes a copy first


def _starts(count: np.ndarray) -> np.ndarray:
    return (np.cumsum(count) - count).astype(np.int32)


def _flatten(parts: Sequence[np.ndarray], n: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(rows [M], their clients [M] ascending), checked against the n rows that there are."""
    if not len(parts):
        raise ValueError(f"{name} is empty; give one array of rows a client")
    arrays = [np.asarray(part) for part in parts]
    for k, part in enumerate(arrays):
        if part.ndim != 1 or (part.size and not np.issubdtype(part.dtype, np.integer)):
            raise ValueError(f"{name}[{k}] is {part.dtype} {part.shape}; give integer rows [n]")
    rows = np.concatenate(arrays).astype(np.int64)
    owner = np.repeat(np.arange(len(arrays)), [len(part) for part in arrays])
    if outside := np.flatnonzero((rows < 0) | (rows >= n)).tolist():
        row, k = rows[outside[0]], owner[outside[0]]
        raise ValueError(f"{name}[{k}] has row {row}; rows run from 0 to {n - 1}")
    owned = np.bincount(rows, minlength=n)
    if owned.max() > 1:
        row = np.argmax(owned)
        clients = owner[rows == row].tolist()
        raise ValueError(f"{name} give row {row} to clients {clients}; a row has one owner")
    return rows, owner


def _hold_out(owner: np.ndarray, label: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which rows are held out, bool [M]; `owner` [M] is ascending.

    With a client's rows in order of label, row i is held where floor(fraction i) goes up: of any
    n neighbours that takes floor(fraction n) or one more. The order of labels starts anywhere, so
    that no label is always the one that is rounded down.
    """
    rng = np.random.default_rng(seed)
    classes, clients = label.max() + 1, owner[-1] + 1
    turned = (label + rng.integers(classes, size=clients)[owner]) % classes
    order = np.lexsort((rng.random(len(owner)), turned, owner))
    i = np.arange(len(owner)) - np.searchsorted(owner, owner)  # place within the client
    steps = np.floor(fraction * np.stack([i, i + 1]) * (1 + 1e-12))  # 0.29 * 100 is below 29
    held = np.empty(len(owner), bool)
    held[order] = steps[1] > steps[0]
    return held


def _labels(examples: Examples) -> np.ndarray:
    """The labels [n] numbered from 0; all the same where there is not one label a row."""
    label = examples.get("label", np.zeros(0))
    if label.ndim != 1 or not label.size:
        return np.zeros(length(examples), np.int64)
    return np.unique(label, return_inverse=True)[1]


def length(examples: Examples) -> int:
    """How many rows the arrays have."""
    return len(next(iter(examples.values())))
