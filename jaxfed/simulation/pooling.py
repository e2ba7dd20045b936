"""What runs that go on at once have alike, in memory once: first weights, and rows of examples.

Seeds that deal the data give each run the same rows in another order, or most of them. Such runs
take their rows from one pool, each in an order of its own (algorithm.Ordered).
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed.algorithm import Ordered, PyTree
from jaxfed.data import memory
from jaxfed.data.federated import Split, length
from jaxfed.data.sources import Examples
from jaxfed.simulation import engine
from jaxfed.simulation.prepare import Prepared

PIECE = 2**22  # bytes of rows that are compared at once


def shared(runs: Iterable[Prepared]) -> list[Prepared]:
    """The runs, without copies of what they have alike; each is taken after the one before.

    Servers that are equal are the first's, and so are examples that all have alike. If runs differ
    in a set of examples, this set, and others of its form, are Ordered rows of a pool. In place of
    all examples, the experiments have a row of each set: once a run is prepared, nothing else needs
    them. If one cannot be prepared, those before it are closed.
    """
    members: list[Prepared] = []
    pools: dict[tuple, Pool] = {}
    orders: list[dict[str, np.ndarray]] = []
    try:
        for p in runs:
            members.append(p)
            if len(members) == 2:
                orders.append(_orders(members[0], pools))
            if len(members) > 1:
                orders.append(_orders(p, pools))
                p = _thin(_with_server_of(members[0], p))  # before the next is made
                members[-1] = p
    except BaseException:
        for member in members:
            member.close()
        raise
    return members if not orders else _pooled(members, orders, pools)


def _pooled(
    members: Sequence[Prepared],
    orders: Sequence[dict[str, np.ndarray]],
    pools: "dict[tuple, Pool]",
) -> list[Prepared]:
    """The runs with the examples that they share: those of the first, or rows of a pool.

    `orders` are those of each run's sets. The first run still has its examples, the others none.
    """
    first, machine = members[0], members[-1].machine
    sets, forms = _placed(first), {name: _form(x) for name, x in _host(first).items()}
    rows = {name: length(x) for name, x in sets.items()}
    differ = {n for n in sets if any(not np.array_equal(o[n], orders[0][n]) for o in orders)}
    pooled = {forms[name] for name in differ}
    plain = {name: x for name, x in sets.items() if forms[name] not in pooled}
    thin = [_thin(first), *members[1:]]
    del sets, first
    placed = {form: engine.place(pools[form].examples, machine) for form in pooled}

    def own(name: str, order: np.ndarray) -> PyTree:
        if name in plain:
            return plain[name]
        padded = np.pad(order, (0, rows[name] - len(order)))
        return Ordered(placed[forms[name]], engine.place(padded, machine))

    return [
        _with(p, {name: own(name, order) for name, order in each.items()})
        for p, each in zip(thin, orders, strict=True)
    ]


def alike(x: Any, y: Any) -> bool:
    """True for equal arrays; at once if they are one."""
    same = x.shape == y.shape and x.dtype == y.dtype
    return x is y or (same and bool(jnp.array_equal(x, y)))


class Pool:
    """Rows of one form; those that several sets have are there once."""

    def __init__(self, like: Examples) -> None:
        self.examples = {name: x[:0] for name, x in like.items()}  # [M, ...]
        self._keys = np.zeros(0, np.uint64)  # of the rows, ascending
        self._row = np.zeros(0, np.int32)  # the row of each key

    def add(self, examples: Examples) -> np.ndarray:
        """Which rows of the pool these are, int32 [n], after those that it lacked were added."""
        keys, before = _keys(examples), len(self._keys)
        order = np.full(len(keys), -1, np.int32)
        if before:
            place = np.minimum(np.searchsorted(self._keys, keys), before - 1)
            known = np.flatnonzero(self._keys[place] == keys)
            known = known[_equal(examples, known, self.examples, self._row[place[known]])]
            order[known] = self._row[place[known]]
        new = np.flatnonzero(order < 0)
        order[new] = before + np.arange(len(new), dtype=np.int32)
        if len(new) == len(keys) and not before:
            self.examples = examples
        elif len(new):
            self.examples = {n: _joined(x, examples[n][new]) for n, x in self.examples.items()}
        keys = np.concatenate([self._keys, keys[new]])
        row = np.concatenate([self._row, order[new]])
        ascending = np.argsort(keys, kind="stable")
        self._keys, self._row = keys[ascending], row[ascending]
        return order


# ---------------------------------------------------------------------- rows


def _form(examples: Examples) -> tuple:
    """Equal for sets whose rows may be in one pool."""
    return tuple((n, x.shape[1:], x.dtype.str) for n, x in sorted(examples.items()))


def _bytes(x: np.ndarray) -> np.ndarray:
    """The rows as bytes [n, B]."""
    return np.ascontiguousarray(x).reshape(len(x), -1).view(np.uint8)


def _keys(examples: Examples) -> np.ndarray:
    """A number for each row, uint64 [n], which seldom is that of another row."""
    rng, keys = np.random.default_rng(0), np.zeros(length(examples), np.uint64)
    for _, x in sorted(examples.items()):
        width = int(np.prod(x.shape[1:])) * x.dtype.itemsize
        factors = rng.integers(2**64, size=-(-width // 4), dtype=np.uint64)
        for here in _pieces(len(x), width):
            rows = _bytes(x[here])
            words = np.pad(rows, ((0, 0), (0, -width % 4))).view(np.uint32)
            keys[here] += words.astype(np.uint64) @ factors
    return keys


def _equal(x: Examples, i: np.ndarray, y: Examples, j: np.ndarray) -> np.ndarray:
    """Whether row i[n] of x is row j[n] of y in every bit, bool [n]."""
    same = np.ones(len(i), bool)
    for name, rows in x.items():
        width = int(np.prod(rows.shape[1:])) * rows.dtype.itemsize
        for here in _pieces(len(i), width):
            pair = _bytes(rows[i[here]]), _bytes(y[name][j[here]])
            same[here] &= np.all(np.equal(*pair), axis=1)
    return same


def _pieces(rows: int, width: int) -> list[slice]:
    """Slices of so many rows, of `width` bytes each, that are compared at once."""
    step = max(1, PIECE // max(1, width))
    return [slice(i, i + step) for i in range(0, rows, step)]


def _joined(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    found = memory.aligned((len(x) + len(y), *x.shape[1:]), x.dtype)
    return np.concatenate([x, y], out=found)


# ---------------------------------------------------------------------- a run's sets of examples


def _host(p: Prepared) -> dict[str, Examples]:
    """{name: the examples of a set as the host has them}, in JAX's numbers."""
    data = p.experiment.data
    sets = {"test": data.test, "personal": data.personal.examples}
    if p.supply.examples is not None:
        sets["train"] = data.train.examples
    return jax.tree.map(lambda x: np.asarray(x, jax.dtypes.canonicalize_dtype(x.dtype)), sets)


def _orders(p: Prepared, pools: dict[tuple, Pool]) -> dict[str, np.ndarray]:
    """{set: its rows in the pool of their form}."""
    host = _host(p)
    return {n: pools.setdefault(_form(x), Pool(x)).add(x) for n, x in sorted(host.items())}


def _placed(p: Prepared) -> dict[str, PyTree]:
    """{name: the examples of a set on the devices}."""
    train = {} if p.supply.examples is None else {"train": p.supply.examples}
    return {**p.evaluate.examples, **train}


def _with(p: Prepared, sets: dict[str, PyTree]) -> Prepared:
    """The run with these sets on the devices, in place of its own."""
    tests = {name: x for name, x in sets.items() if name != "train"}
    return dataclasses.replace(
        p,
        supply=dataclasses.replace(p.supply, examples=sets.get("train")),
        evaluate=dataclasses.replace(p.evaluate, examples=tests),
    )


def _with_server_of(first: Prepared, p: Prepared) -> Prepared:
    """The run with the first's weights in place of equal ones of its own."""
    theirs, own = first.state.server, p.state.server
    kinds: list[Any] = [jax.tree.structure(x) for x in (own, theirs)]
    if kinds[0] != kinds[1]:
        return p
    server = jax.tree.map(lambda x, y: y if alike(x, y) else x, own, theirs)
    return dataclasses.replace(p, state=p.state._replace(server=server))


def _thin(p: Prepared) -> Prepared:
    """The run without its examples: its experiment has one row of each set, which stands for all.

    Numbers of rows stay as they are.
    """
    data = p.experiment.data

    def split(x: Split) -> Split:
        return dataclasses.replace(x, examples=jax.tree.map(_one_row, x.examples), row=None)

    thin = dataclasses.replace(
        data,
        train=split(data.train),
        personal=split(data.personal),
        test=jax.tree.map(_one_row, data.test),
        validation=None,
    )
    experiment = dataclasses.replace(p.experiment, data=thin)
    p = dataclasses.replace(
        p,
        experiment=experiment,
        supply=dataclasses.replace(p.supply, experiment=experiment),
        evaluate=dataclasses.replace(p.evaluate, data=thin),
    )
    return _with(p, {})


def _one_row(x: np.ndarray) -> np.ndarray:
    return np.broadcast_to(x[:1].copy(), x.shape)
