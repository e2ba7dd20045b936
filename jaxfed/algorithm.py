"""The contract between an algorithm and the engine that runs it.

An algorithm is four pure functions, closed over its hyperparameters, as a gradient transformation
is in optax. The engine lends it one verb,

    reply = for_each_client(client, base, message, cohort)

which runs the client's procedure `client(base, message, k) -> Reply` for every client `k` of the
cohort at once, and stacks what comes back: each leaf of `reply` has a leading axis [K].

The wire is a value. `base` is on every client already; `message` is what the server sends in this
round; `reply.upload` is what the clients send back; nothing else crosses, so the bytes of a round
are the bytes of these two. Two exchanges in a round are two calls.

A `client` closes over hyperparameters, never over arrays: arrays travel in base, message and k.
FedAvg (algorithms/fedavg.py) is the shortest complete example.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import jax

PyTree: TypeAlias = Any
Leaf: TypeAlias = Any  # a jax.Array; or, in a tree of the same form, its shape or its axis


class Algorithm(NamedTuple):
    """Four pure functions; `server` is a NamedTuple with at least the fields base and theta.

    What follows them are facts, of which most algorithms need none.
    """

    init: Callable[[jax.Array], Any]
    """key -> server: what the server keeps."""

    init_client: Callable[[Any, jax.Array], PyTree]
    """(server, key) -> state: what one client keeps between rounds; () if nothing.

    The first one: of the server as it was before the first round, and a key of the client's own."""

    run_round: Callable[[Any, "Cohort", Callable], tuple[Any, PyTree, dict]]
    """(server, cohort, for_each_client) -> (server, states [K, ...], metrics).

    Metrics are a flat dict of scalars, or of one number a client [K]."""

    deploy: Callable[[Any, PyTree], tuple[PyTree, PyTree]]
    """(server, state) -> (base, theta): the model that this client would run at test time."""

    clients: int | None = None
    """The size of the population that it was made for, with one setting each; None: of any."""

    sends_change: bool = True
    """Whether an upload, or its field theta, is the client's change of the theta it was sent."""


@partial(jax.tree_util.register_dataclass, data_fields=("examples", "start"), meta_fields=("most",))
@dataclasses.dataclass(frozen=True)
class Data:
    """Whose examples are whose: rows start : start + count of `examples` belong to a client.

    `examples` is a tree of arrays [M, ...] that all clients share (it is never copied per client),
    `start` the first row of each client ([K] in a cohort, a scalar inside a client), and `most` the
    static upper bound on a client's count.
    """

    examples: PyTree
    start: Leaf
    most: int


class Cohort(NamedTuple):
    """The clients of one round; leading axis [K] unless said otherwise.

    Inside `client(base, message, k)`, `k` is one client's slice of it.
    """

    state: PyTree  # what each client kept since it was last drawn
    data: Data  # its examples; the arrays themselves are shared
    count: Leaf  # how many examples it has
    weight: Leaf  # its share in the average; sums to one over the cohort
    key: Leaf  # its randomness in this round
    id: Leaf  # which client of the population it is
    round: Leaf  # [] the round's number, from 0
    round_key: Leaf  # [] the server's randomness in this round


class Reply(NamedTuple):
    """What one client's procedure returns."""

    upload: PyTree  # goes over the wire to the server
    state: PyTree  # stays with the client
    metrics: dict  # scalars, for the record only


def axes(cohort: Cohort) -> Cohort:
    """The axis of each field of a cohort that runs over clients; None for what clients share."""
    data = dataclasses.replace(cohort.data, examples=None, start=0)
    return Cohort(0, data, 0, 0, 0, 0, None, None)


def client_slice(cohort: Cohort, i: int) -> Cohort:
    """Client i of a cohort, as its procedure sees it."""
    return jax.tree.map(
        lambda axis, part: jax.tree.map(lambda a: a[i], part) if axis == 0 else part,
        axes(cohort),
        cohort,
        is_leaf=lambda x: x is None,
    )
