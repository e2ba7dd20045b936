"""A source and a partition made into arrays whose rows are sorted by client."""

import dataclasses
import reprlib
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxfed import values
from jaxfed.data import memory, sources
from jaxfed.data.partition import Named
from jaxfed.data.sources import Examples, Source


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Client k owns rows start[k] : start[k] + count[k] of every array in `examples` [M, ...]."""

    examples: Examples
    start: np.ndarray  # int32 [N], ascending
    count: np.ndarray  # int32 [N]; the counts add up to M
    row: np.ndarray | None = None  # [M], equal for copies of one row that clients share

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


class Size(NamedTuple):
    """What data need at most, so that several data sets can share the programs of the largest."""

    rows: int  # of training examples
    most: int  # of them, for a client
    own_rows: int  # of the clients' own test examples
    own_most: int
    tested: int  # clients that have any

    def or_more(self, other: "Size | None") -> "Size":
        """The size that both fit in."""
        return self if other is None else Size(*map(max, self, other))


@dataclasses.dataclass(frozen=True, eq=False)
class Federated:
    """What each client trains on, its own test examples (maybe none), and the global test set."""

    train: Split
    personal: Split
    test: Examples
    names: tuple[Hashable, ...] | None = None  # of the clients, if their parts had any
    validation: Examples | None = None  # for choices, in place of the test set

    @property
    def clients(self) -> int:
        return self.train.clients

    @property
    def size(self) -> Size:
        """What these data need."""
        rows, own_rows = (int(split.count.sum()) for split in (self.train, self.personal))
        tested = int(np.count_nonzero(self.personal.count))
        return Size(rows, self.train.most, own_rows, self.personal.most, tested)

    def validated(self) -> "Federated":
        """The data with a validation set for a test set: `validation`, if it was given.

        Else it is a tenth of each client's training rows: of n rows floor(n / 10) are held out of
        the training, and that part of each label to within one row. Where clients have test
        examples of their own, they get their held-out rows in the place of those, whatever was
        given. A row that clients share is held out of all of them or of none, and counts once.
        ValueError if rows are held out and no client has ten.
        """
        given, own = self.validation, self.personal
        if given is not None and not own.count.any():
            return dataclasses.replace(self, test=given)
        owner, row = np.repeat(np.arange(self.clients), self.train.count), self.train.row
        held = _held(owner, _labels(self.train.examples), 0.1, 0, row)
        if not held.any():
            raise ValueError(
                f"no client has 10 rows to hold one out of; the largest has {self.train.most}: "
                "use fewer clients, or evaluate on the test set"
            )
        examples = self.train.examples
        train = _part(self.train, ~held, owner)
        if own.count.any():
            own = _part(self.train, held, owner)
        once = np.flatnonzero(held)
        if row is not None:
            once = once[np.unique(row[once], return_index=True)[1]]
        test = {name: x[once] for name, x in examples.items()} if given is None else given
        return dataclasses.replace(self, train=train, test=test, personal=own)

    def number(self, client: Hashable) -> int:
        """The number of a client given by its name, or by its number if no name is a number.

        ValueError if there is no such client.
        """
        names = self.names or ()
        found = [k for k, name in enumerate(names) if client == name or str(client) == str(name)]
        counted = not any(isinstance(name, int | float) for name in names)
        if not found and counted and str(client).isdecimal() and not isinstance(client, float):
            found = [int(str(client))]
        if found and found[0] < self.clients:
            return found[0]
        there = f"use {reprlib.repr(list(names))}" if names else f"use 0 to {self.clients - 1}"
        raise ValueError(f"there is no client {client}; {there}")


def federate(
    source: Source,
    parts: Sequence[np.ndarray],
    *,
    personal_fraction: float = 0.0,
    personal_parts: Sequence[np.ndarray] | None = None,
    shared: bool = False,
    validation: Examples | None = None,
    seed: int = 0,
) -> Federated:
    """The source with rows parts[k] of its training set owned by client k.

    A client's own test examples are either `personal_fraction` of its rows, held out of its
    training (floor(fraction n) of n rows, and that fraction of each label to within one row), or
    rows `personal_parts[k]` of the test set. If both parts have names, as by `partition.natural`,
    clients get the test rows of their own name (some may have none), whatever the order. Rows that
    no client owns are left out. With `shared`, a row may belong to several clients, each of whom
    has a copy; with personal_fraction it is then held out of all of them or of none. `validation`
    is a set like the test set, for `--on validation`, which else holds out training rows.
    Raises ValueError if rows are out of range or owned twice, a client has none to train on, a name
    has test rows and does not train, or the source does not hold finite numbers of one kind in all
    sets.
    """
    values.kind("source", source, Source, "a Source, as sources.arrays(train, test) makes it")
    sources.check_numbers(source)
    if validation is not None:
        validation = sources.another("validation", validation, source)
    for name, given in (("parts", parts), ("personal_parts", personal_parts)):
        if given is not None or name == "parts":
            _check_parts(name, given)
    if personal_fraction and personal_parts is not None:
        raise ValueError(
            "personal_fraction and personal_parts are two sources of one thing; use one"
        )
    values.whole("seed", seed, 0)
    if not 0 <= values.number("personal_fraction", personal_fraction) < 1:
        raise ValueError(f"personal_fraction={personal_fraction} is not in [0, 1)")
    if empty := [k for k, part in enumerate(parts) if not len(part)]:
        raise ValueError(f"client {empty[0]} of {len(parts)} has no row to train on; give it one")
    names = getattr(parts, "names", None)
    if names is not None and isinstance(personal_parts, Named):
        personal_parts = _by_name(names, personal_parts)
    if not isinstance(shared, bool):
        raise TypeError(f"shared={shared!r}; use True or False")
    rows, owner = _flatten(parts, length(source.train), "parts", shared)
    labels = _labels(source.train)[rows]
    held = _held(owner, labels, personal_fraction, seed, rows if shared else None)
    train = _split(source.train, rows[~held], owner[~held], len(parts), shared)
    if not train.count.all():
        raise ValueError(
            f"personal_fraction={personal_fraction} holds out all rows of client "
            f"{np.argmin(train.count)}, which it shares; use a smaller one, or personal_parts"
        )
    if personal_parts is None:
        personal = _split(source.train, rows[held], owner[held], len(parts), shared)
    elif len(personal_parts) == len(parts):
        rows, owner = _flatten(personal_parts, length(source.test), "personal_parts", shared)
        personal = _split(source.test, rows, owner, len(parts), shared)
    else:
        raise ValueError(f"{len(personal_parts)} personal_parts for {len(parts)} clients")
    return Federated(train, personal, source.test, names, validation)


def _check_parts(name: str, parts: Any) -> None:
    """Raises TypeError unless these are several arrays of rows."""
    wanted = isinstance(parts, Sequence | np.ndarray) and not isinstance(parts, str)
    if not wanted or any(not hasattr(part, "__len__") for part in parts):
        raise TypeError(
            f"{name} is {reprlib.repr(parts)}; give a list of one array of rows for each client"
        )


def _by_name(names: Sequence[Hashable], personal: Named) -> list[np.ndarray]:
    """The test rows of each of these names; raises ValueError for a name that does not train."""
    mine = dict(zip(personal.names, personal, strict=True))
    if strangers := [name for name in personal.names if name not in set(names)]:
        raise ValueError(
            f"{len(strangers)} of {len(mine)} names in personal_parts train on nothing: "
            f"{', '.join(map(repr, strangers[:5]))}; leave their test rows out"
        )
    return [mine.get(name, np.zeros(0, np.int64)) for name in names]


def label_table(split: Split, classes: int, *, label: str = "label") -> np.ndarray:
    """How many examples of each label each client owns [N, classes]."""
    values.choice("label", label, split.examples)
    labels, classes = split.examples[label], values.whole("classes", classes, 1)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; classes={classes}")
    owner = np.repeat(np.arange(split.clients), split.count)
    table = np.bincount(owner * classes + labels, minlength=split.clients * classes)
    return table.reshape(split.clients, classes)


def filled_up(examples: Examples, rows: int) -> Examples:
    """The examples, followed by zeros so that there are so many rows."""

    def longer(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.zeros((rows - len(x), *x.shape[1:]), x.dtype)])

    return {name: x if len(x) == rows else longer(x) for name, x in examples.items()}


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


def _split(
    examples: Examples, rows: np.ndarray, owner: np.ndarray, clients: int, shared: bool = False
) -> Split:
    count = np.bincount(owner, minlength=clients).astype(np.int32)
    made = {key: taken(x, rows) for key, x in examples.items()}
    return Split(made, _starts(count), count, rows if shared else None)


def _part(split: Split, which: np.ndarray, owner: np.ndarray) -> Split:
    """The rows of a split for which `which` [M] is True, each with the same client."""
    part = _split(split.examples, np.flatnonzero(which), owner[which], split.clients)
    return part if split.row is None else dataclasses.replace(part, row=split.row[which])


def taken(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """x[rows], in memory that JAX's CPU devices use in place.

    A copy for the host and one for each device would be most of what a further client costs.
    """
    found = memory.aligned((len(rows), *x.shape[1:]), x.dtype)
    return np.take(x, rows, axis=0, out=found, mode="clip")  # any other mode makes a copy first


def _starts(count: np.ndarray) -> np.ndarray:
    return (np.cumsum(count) - count).astype(np.int32)


def _flatten(
    parts: Sequence[np.ndarray], n: int, name: str, shared: bool
) -> tuple[np.ndarray, np.ndarray]:
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
        times = np.unique(owner * n + rows, return_counts=True)
        if doubled := times[0][times[1] > 1].tolist():
            k, row = divmod(doubled[0], n)
            raise ValueError(f"{name} give row {row} to client {k} more than once; give it once")
        if not shared:
            row = np.argmax(owned)
            clients = owner[rows == row].tolist()
            raise ValueError(
                f"{name} give row {row} to clients {clients}; give it to one, or use shared=True"
            )
    return rows, owner


def _held(
    owner: np.ndarray, label: np.ndarray, fraction: float, seed: int, row: np.ndarray | None
) -> np.ndarray:
    """Which rows are held out, bool [M]; of copies of one row, the first decides for all."""
    if row is None:
        return hold_out(owner, label, fraction, seed)
    _, first, copy = np.unique(row, return_index=True, return_inverse=True)
    order = np.sort(first)  # so that owners ascend
    held = np.empty(len(row), bool)
    held[order] = hold_out(owner[order], label[order], fraction, seed)
    return held[first][copy]


def hold_out(owner: np.ndarray, label: np.ndarray, fraction: float, seed: int) -> np.ndarray:
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
