"""The contract between an algorithm and the engine that runs it.

An algorithm is four pure functions, closed over its hyperparameters, as a gradient transformation
is in optax. The engine lends it one verb,

    reply = for_each_client(client, base, message, cohort)

which runs the client's procedure `client(base, message, k) -> Reply` for every client `k` of the
cohort at once and stacks the replies: each leaf of `reply` has a leading axis [K].

The wire is a value. `base` is on every client already; `message` is what the server sends in this
round; `reply.upload` is what the clients send back; nothing else crosses, so the bytes of a round
are the bytes of these two. Where fewer bytes cross than the arrays hold (a mask, a rank, a
compressor), the client declares them in `Reply.received` and `Reply.sent`. A round with two
exchanges calls the verb twice.

A `client` closes over hyperparameters, never over arrays: arrays travel in base, message and k.
FedAvg (algorithms/general/fedavg.py) is the shortest complete example.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core

PyTree: TypeAlias = Any
Leaf: TypeAlias = Any  # a jax.Array; or, in a tree of the same form, its shape or its axis


class Ordered(NamedTuple):
    """Examples that several data sets share, and the order in which one of them has their rows."""

    examples: PyTree  # arrays [M, ...]
    order: Leaf  # [n] which of their rows each row is


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("stored", "start", "width"),
    meta_fields=("most",),
)
@dataclasses.dataclass(frozen=True)
class Data:
    """Whose examples are whose: rows start : start + count of `examples` belong to a client.

    `stored` is a tree of arrays [M, ...] that all clients share (it is never copied per client), or
    Ordered rows of such. `start` is the first row of each client ([K] in a cohort, a scalar inside
    a client), and `most` the static upper bound on a client's count. `width` is the `most` of these
    data alone, if `most` is a bound for several data sets that share a program: random orders
    depend on it.
    """

    stored: PyTree
    start: Leaf
    most: int
    width: Leaf | None = None  # [], shared by all clients

    @property
    def examples(self) -> PyTree:
        """All rows, arrays [n, ...]; of Ordered ones a copy, which `at` does without."""
        if isinstance(self.stored, Ordered):
            return self._rows(slice(None))
        return self.stored

    def at(self, i: Leaf) -> PyTree:
        """The client's own examples i, counted from 0: arrays [*i.shape, ...]; inside a client."""
        return self._rows(self.start + i)

    def _rows(self, rows: Leaf | slice) -> PyTree:
        if isinstance(self.stored, Ordered):
            rows, stored = self.stored.order[rows], self.stored.examples
        else:
            stored = self.stored
        return jax.tree.map(lambda x: x[rows], stored)


class Cohort(NamedTuple):
    """The clients of one round; leading axis [K] unless stated otherwise. No place is padding.

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
    metrics: dict  # {name: scalar}, for the record only
    received: PyTree = None
    """Bytes that the client receives, as a tree of integers that add up; None: all of the message.

    Each is below 2^31 and may be traced."""
    sent: PyTree = None
    """Bytes that the client sends, likewise; None: all of the upload."""


Client: TypeAlias = Callable[[PyTree, PyTree, Cohort], Reply]


class ForEachClient(Protocol):
    """The verb that a round is lent: runs a client's procedure for every client of a cohort."""

    def __call__(self, client: Client, base: PyTree, message: PyTree, cohort: Cohort) -> Reply:
        """The replies of all clients, stacked: leaves [K, ...]."""


def no_broadcast(server: PyTree, t: int) -> int:
    """Zero bytes: nothing but the round's message reaches clients."""
    return 0


class Algorithm(NamedTuple):
    """Four pure functions; `server` is a NamedTuple with at least the fields base and theta.

    The task is the one that the algorithm was made for. The fields after it are facts about the
    algorithm; most algorithms need none of them.
    """

    init: Callable[[jax.Array], Any]
    """key -> server: what the server keeps."""

    init_client: Callable[[Any, jax.Array], PyTree]
    """(server, key) -> state: what one client keeps between rounds; () if nothing.

    It gets the server as it was before the first round, and a key of the client's own."""

    run_round: Callable[[Any, Cohort, ForEachClient], tuple[Any, PyTree, dict]]
    """(server, cohort, for_each_client) -> (server, states [K, ...], metrics).

    Metrics are a flat dict of scalars, or of one number a client [K]; hand on `reply.metrics`.
    Names in RESERVED are the record's own and are refused."""

    deploy: Callable[[Any, PyTree], tuple[PyTree, PyTree]]
    """(server, state) -> (base, theta): the model that this client would run at test time."""

    task: Any = None
    """The Task (jaxfed.tasks) whose model it trains, for evaluation."""

    broadcast: Callable[[PyTree, int], int] = no_broadcast
    """(server, t) -> bytes that every client, drawn or not, must receive before round t (from 0).

    Computed on the host; the server may be shapes. A merge into the base costs its factors."""

    clients: int | None = None
    """The size of the population that it was made for, with one setting each; None: of any."""

    rounds: int | None = None
    """How many rounds it can run at most; None: any number."""

    sends_change: bool = True
    """True if clients upload a change of theta (trained minus received), or a tree with one."""

    sums_states: bool = False
    """True if the server's theta is a mean of what clients keep, as in FedALT.

    Then no wrapper may change an upload, and no mean may be merged into the base."""


# ---------------------------------------------------------------------- what the engine notes

ACCOUNT = "account"
"""The name among a round's metrics under which the engine's own notes travel."""

RESERVED = frozenset(
    {
        ACCOUNT,
        "accuracy",
        "broadcast",
        "clients",
        "down",
        "finite",
        "personal",
        "round",
        "seconds",
        "skipped",
        "test_loss",
        "up",
    }
)
"""Names that a record gives meaning to; no metric may have them."""


class Account(NamedTuple):
    """What the engine notes of each client of a round [K]."""

    finite: Leaf  # bool: its upload and metrics are finite
    skipped: Leaf  # bool: a guard left it out
    down: Leaf  # int32 [K, 2]: bytes that it received, as trees.byte_count has them
    up: Leaf  # likewise, bytes that it sent


def check_names(names: Iterable[str]) -> None:
    """Raises ValueError if one of these names of metrics is reserved."""
    if taken := sorted(RESERVED & set(names)):
        raise ValueError(
            f"the metric {taken[0]!r} has a name that records use themselves; rename it, "
            f"for example to 'train_{taken[0]}'. Reserved are {', '.join(sorted(RESERVED))}"
        )


# ---------------------------------------------------------------------- for those who wrap it


def check_may_change(algorithm: Algorithm, what: str) -> None:
    """Raises ValueError if the server of an algorithm relies on uploads as clients keep them."""
    if algorithm.sums_states:
        raise ValueError(
            f"the server's theta is a mean of what clients keep, and {what} would part the two; "
            "wrap another algorithm, such as fedavg or pfedlora"
        )


def overheard(for_each_client: ForEachClient, hear: Callable[..., Reply]) -> ForEachClient:
    """The verb, with every exchange's replies replaced by hear(reply, message, cohort)."""

    def verb(client, base, message, cohort):
        return hear(for_each_client(client, base, message, cohort), message, cohort)

    return verb


class Exchange(NamedTuple):
    """One call of the verb, as shapes."""

    message: PyTree
    reply: Reply  # leaves [K, ...]
    conditional: bool  # inside lax.cond, scan or another trace: it may run never or often


def trace_state() -> Any:
    """A value that is equal for calls in the same trace, so that one inside lax.cond differs."""
    return core.get_opaque_trace_state()


def exchanges(algorithm: Algorithm, server: PyTree, cohort: Cohort) -> list[Exchange]:
    """The exchanges of a round. Nothing is computed; server and cohort may be shapes.

    An exchange inside lax.cond is listed once for each branch that has it.
    """
    listed: list[Exchange] = []

    def shapes(tree):
        return jax.eval_shape(lambda x: x, tree)

    def run(server, cohort):
        trace = trace_state()

        def hear(reply, message, cohort):
            conditional = trace_state() != trace
            listed.append(Exchange(shapes(message), shapes(reply), conditional))
            return reply

        return algorithm.run_round(server, cohort, overheard(mapped, hear))

    jax.eval_shape(run, server, cohort)
    return listed


def mapped(client: Client, base: PyTree, message: PyTree, cohort: Cohort) -> Reply:
    """The verb in its plainest form: one vmap, on no device in particular.

    The account is empty; guards read it.
    """
    reply = jax.vmap(client, in_axes=(None, None, axes(cohort)))(base, message, cohort)
    flag, digits = jnp.zeros(cohort.id.shape, bool), jnp.zeros((*cohort.id.shape, 2), jnp.int32)
    account = Account(flag, flag, digits, digits)
    return reply._replace(metrics={**reply.metrics, ACCOUNT: account})


def upload_shapes(algorithm: Algorithm, server: PyTree, cohort: Cohort) -> list[PyTree]:
    """The shapes of what one client uploads in each exchange of a round."""
    uploads = [each.reply.upload for each in exchanges(algorithm, server, cohort)]
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), uploads)


def axes(cohort: Cohort) -> Cohort:
    """The axis of each field of a cohort that runs over clients; None for what clients share."""
    data = dataclasses.replace(cohort.data, stored=None, start=0, width=None)
    return Cohort(0, data, 0, 0, 0, 0, None, None)


def client_slice(cohort: Cohort, i: int) -> Cohort:
    """Client i of a cohort, as its procedure sees it."""
    return on_axis(lambda a: a[i], cohort)


def on_axis(function: Callable, cohort: Cohort, over: Cohort | None = None) -> Cohort:
    """The cohort with `function` applied to the arrays that run over clients.

    `over` names the axes, as `axes(cohort)` does by default.
    """
    return jax.tree.map(
        lambda axis, part: part if axis is None else jax.tree.map(function, part),
        axes(cohort) if over is None else over,
        cohort,
        is_leaf=lambda x: x is None,
    )
