"""Who owns which example: each function returns one ascending int64 array of rows a client.

They are exact: every row belongs to one client, no client is empty unless `least=0` allows it, and
the same seed gives the same rows. Nothing is drawn until it fits, so they always end.

What makes clients differ is drawn before rows are. So the same partition with the same seed, over
the labels of a test set, gives each client test rows like its training rows: for `dirichlet` but
for rounding and moved rows, for the others where labels are as frequent in both sets.
"""

from collections.abc import Hashable, Iterable
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from jaxfed import values

Parts: TypeAlias = list[np.ndarray]


class Named(list[np.ndarray]):
    """The rows of each client, as any Parts, and `names`: whose rows they are, in that order."""

    def __init__(self, parts: Iterable[np.ndarray], names: Iterable[Hashable]) -> None:
        super().__init__(parts)
        self.names = tuple(names)


def iid(n: int, clients: int, *, seed: int) -> Parts:
    """Rows 0..n-1 at random, in sizes that differ by at most one."""
    _check_size(n, clients, least=1, seed=seed)
    return _group(np.random.default_rng(seed).permutation(np.arange(n) % clients), clients)


def lognormal(n: int, clients: int, *, sigma: float, seed: int, least: int = 1) -> Parts:
    """Rows at random, in sizes proportional to exp(sigma z_k), z_k ~ N(0, 1).

    Rows then move, one by one, from the largest client to those with fewer than `least`.
    """
    _check_size(n, clients, least, seed)
    values.number("sigma", sigma, 0)
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(clients)
    share = np.exp(sigma * (z - z.max()))  # the largest is 1: no overflow
    owner = _deal(n, share / share.sum(), rng)
    return _group(_repair(owner, clients, least, rng), clients)


def dirichlet(
    labels: ArrayLike, clients: int, *, concentration: float, seed: int, least: int = 1
) -> Parts:
    """Each label is shared out by proportions p ~ Dir(c, ..., c) over the clients.

    A small `concentration` c gives clients few labels, a large one makes them alike. Rows then
    move, one by one, from the largest client to those with fewer than `least`. Yurochkin et al.,
    ICML 2019; the skew by Dir(c) is also Hsu et al., 2019, who draw each client's proportions over
    labels.
    """
    label, count = _check_labels(labels, clients, least, seed)
    if values.number("concentration", concentration) <= 0:
        raise ValueError(
            f"concentration={concentration} is no Dirichlet parameter; use a positive number, such "
            "as 0.1 to 100"
        )
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(clients, concentration), size=len(count))  # [C, N]
    owner = np.empty(len(label), np.int64)
    for c in range(len(count)):
        owner[label == c] = _deal(count[c], share[c], rng)
    return _group(_repair(owner, clients, least, rng), clients)


def pathological(labels: ArrayLike, clients: int, *, classes: int, seed: int) -> Parts:
    """Each client owns rows of exactly `classes` distinct labels, and all rows are used.

    McMahan et al., AISTATS 2017, deal each client two shards of rows sorted by label, which is
    almost that; here a label is cut into as many shards as it has clients, all shards being as
    equal in size as their labels allow. Raises ValueError where no such partition exists.
    """
    label, count = _check_labels(labels, clients, least=1, seed=seed)
    values.whole("classes", classes, 1)
    shards = _shards(count, clients, classes)
    rng = np.random.default_rng(seed)
    holds = _draw_holders(shards, clients, classes, rng)  # [N, C]
    owner = np.empty(len(label), np.int64)
    for c in range(len(count)):
        holders = rng.permutation(np.flatnonzero(holds[:, c]))
        owner[label == c] = rng.permutation(holders[np.arange(count[c]) % shards[c]])
    return _group(owner, clients)


def label_similarity(labels: ArrayLike, clients: int, *, s: float, seed: int) -> Parts:
    """A fraction s of each label is dealt at random; the rest is sorted by label and cut in order.

    s=1 is iid, s=0 gives most clients few labels; sizes differ by at most one. Karimireddy et al.,
    SCAFFOLD, ICML 2020, section 7; label by label as in EPISODE (Crawshaw et al., ICLR 2023).
    """
    label, count = _check_labels(labels, clients, least=1, seed=seed)
    values.number("s", s, 0, 1)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(label))
    rows = rows[np.argsort(label[rows], kind="stable")]  # by label, at random within one
    place = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    pooled = place < np.repeat(np.round(s * count), count)
    pool, rest = rng.permutation(rows[pooled]), rows[~pooled]
    owner = np.empty(len(label), np.int64)
    owner[pool] = np.arange(len(pool)) % clients
    # The pool's remainder went to the first clients, so the last ones take this one.
    owner[rest] = np.sort(clients - 1 - np.arange(len(rest)) % clients)
    return _group(owner, clients)


def natural(keys: ArrayLike) -> Named:
    """One client a distinct key [n] (a user, a writer), in the order of the sorted keys.

    The keys are the names of the clients, by which `federate` matches their test rows. Raises
    ValueError for keys that are missing (NaN, None).
    """
    keys = values.array("keys", keys)
    if keys.ndim != 1 or not len(keys):
        raise ValueError(f"keys have shape {keys.shape}; give one key a row, [n] with n above 0")
    if missing := np.flatnonzero([key is None or key != key for key in keys.tolist()]).tolist():
        raise ValueError(f"row {missing[0]} has no key ({keys[missing[0]]}); leave such rows out")
    distinct, owner = values.distinct("keys", keys, return_inverse=True)
    return Named(_group(owner, len(distinct)), distinct.tolist())


def _group(owner: np.ndarray, clients: int) -> Parts:
    """The rows of each client, ascending, from the client of each row [n]."""
    rows = np.argsort(owner, kind="stable")
    return np.split(rows, np.cumsum(np.bincount(owner, minlength=clients))[:-1])


def _deal(n: int, share: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The client of each of n places, in a random order.

    Client k gets n share[k] places to within one, and that exactly in the mean over draws: the
    offset is random, or labels with fewer rows than clients would all go to the same clients.
    """
    place = (np.arange(n) + rng.random()) / n
    return rng.permutation(np.searchsorted(np.cumsum(share)[:-1], place, side="right"))


def _repair(owner: np.ndarray, clients: int, least: int, rng: np.random.Generator) -> np.ndarray:
    """`owner` with rows moved, each from the client then largest, until all have `least`."""
    owner, size = owner.copy(), np.bincount(owner, minlength=clients)
    rows = [list(rng.permutation(part)) for part in _group(owner, clients)]
    for k in np.repeat(np.arange(clients), np.maximum(least - size, 0)):
        donor = np.argmax(size)
        owner[rows[donor].pop()] = k
        size[donor] -= 1
    return owner


def _shards(count: np.ndarray, clients: int, classes: int) -> np.ndarray:
    """How many clients hold each label [C]: `clients * classes` in all, in shards nearly equal.

    A label needs a row for each client that holds it, and a client holds it once.
    """
    most, total = np.minimum(count, clients), clients * classes
    if not 1 <= classes <= len(count):
        raise ValueError(f"classes={classes}, but there are {len(count)} labels; use 1 to that")
    if not len(count) <= total <= most.sum():
        raise ValueError(
            f"{clients} clients of {classes} classes hold {total} shards, but {len(count)} labels "
            f"with {count.min()} to {count.max()} rows make {len(count)} to {most.sum()} shards; "
            f"use {'fewer' if total > most.sum() else 'more'} clients or classes"
        )
    shards = np.ones_like(count)
    for _ in range(total - len(count)):
        shards[np.argmax(np.where(shards < most, count / shards, 0))] += 1
    return shards


def _draw_holders(
    shards: np.ndarray, clients: int, classes: int, rng: np.random.Generator
) -> np.ndarray:
    """Which client holds which label, bool [N, C]: `classes` in a row, shards[c] in column c.

    Client by client, labels are drawn in proportion to the shards they have left; one with a shard
    left for each remaining client is always taken, and so the last client finds what it needs.
    """
    holds, left = np.zeros((clients, len(shards)), bool), shards.copy()
    for k in range(clients):
        score = left / rng.exponential(size=len(left))  # the largest: draws without replacement
        score[left == clients - k] = np.inf
        holds[k, np.argsort(-score)[:classes]] = True
        left -= holds[k]
    return holds


def _check_size(n: int, clients: int, least: int, seed: int) -> None:
    for name, value, low in (("n", n, 0), ("clients", clients, 1), ("least", least, 0)):
        values.whole(name, value, low)
    values.whole("seed", seed, 0)
    if n < max(1, clients * least):
        raise ValueError(
            f"{clients} clients cannot have {least} of {n} rows each; use fewer clients"
        )


def _check_labels(
    labels: ArrayLike, clients: int, least: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(each row's label [n] numbered from 0, each label's number of rows [C])."""
    labels = values.array("labels", labels)
    if labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape}; give one label a row, [n]")
    _check_size(len(labels), clients, least, seed)
    if missing := np.flatnonzero([x is None or x != x for x in labels.tolist()]).tolist():
        raise ValueError(f"row {missing[0]} has no label ({labels[missing[0]]}); leave it out")
    counted = {"return_inverse": True, "return_counts": True}
    _, label, count = values.distinct("labels", labels, **counted)
    return label, count
