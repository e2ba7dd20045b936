"""The plain loop: an algorithm's rounds with a loop over clients in place of the engine.

`rounds` is the contract of algorithm.py written down a second time, as plainly as can be: clients'
kept states are a dict, the cohort is built by hand, and clients work one after the other. The loop
is compiled with the round; `loop` is the same in Python. `engine_rounds` is the same through the
engine. `jaxfed check` and the tests compare the two.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import trees
from jaxfed.algorithm import (
    ACCOUNT,
    Algorithm,
    Client,
    Cohort,
    Data,
    ForEachClient,
    Leaf,
    PyTree,
    Reply,
    client_slice,
)
from jaxfed.simulation import account, engine


class World(NamedTuple):
    """A population: client i owns rows start[i] : start[i] + count[i] of the examples."""

    examples: dict
    count: Leaf  # [N]
    seed: int = 3

    @property
    def start(self) -> np.ndarray:
        """The first row of each client [N]."""
        return np.cumsum(self.count) - self.count

    @property
    def most(self) -> int:
        """The largest client's number of examples."""
        return int(self.count.max())


def loop(client: Client, base: PyTree, message: PyTree, cohort: Cohort) -> Reply:
    """The verb, as a loop in Python."""
    one = jax.jit(partial(account.noted, client))
    replies = [one(base, message, client_slice(cohort, i)) for i in range(len(cohort.id))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *replies)


def compiled_loop(client: Client, base: PyTree, message: PyTree, cohort: Cohort) -> Reply:
    """The verb, as a loop that can be compiled: one place of the cohort after the other."""

    def at(i):
        return account.noted(client, base, message, client_slice(cohort, i))

    return jax.lax.map(at, jnp.arange(len(cohort.id)))


def cohort(world: World, states: Sequence[PyTree], ids: Any, t: Any) -> Cohort:
    """The clients `ids` [K] in round t; `states` [K]."""
    clients_key, round_key = jax.random.split(jax.random.fold_in(jax.random.key(world.seed), t))
    ids = jnp.asarray(ids, jnp.int32)
    start, count = (jnp.asarray(x, jnp.int32)[ids] for x in (world.start, world.count))
    return Cohort(
        state=jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
        data=Data(jax.tree.map(jnp.asarray, world.examples), start, world.most),
        count=count,
        weight=count / count.sum(),
        key=jax.vmap(partial(jax.random.fold_in, clients_key))(ids),
        id=ids,
        round=jnp.asarray(t, jnp.int32),
        round_key=round_key,
    )


def plain(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics with the account's entries under names of their own, bytes as numbers."""
    notes = metrics[ACCOUNT]._asdict()
    sizes = {name: trees.as_number(notes.pop(name)) for name in ("down", "up")}
    return {**{n: m for n, m in metrics.items() if n != ACCOUNT}, **notes, **sizes}


@cache
def _started(algorithm: Algorithm, x64: bool) -> tuple[Any, PyTree]:
    def begin(key):
        server = algorithm.init(key)
        return server, algorithm.init_client(server, jax.random.key(1))

    with jax.enable_x64(x64):
        return jax.jit(begin)(jax.random.key(0))


def start(algorithm: Algorithm) -> tuple[Any, PyTree]:
    """(server, state of a client) before the first round, in JAX's own precision."""
    return _started(algorithm, jax.dtypes.canonicalize_dtype(float).itemsize == 8)


@dataclasses.dataclass(frozen=True)
class Loop:
    """Rounds of `make(rate)`, compiled once for each size of a cohort, whatever the rate.

    With a verb of one's own they are not compiled.
    """

    make: Callable[[Any], Algorithm]
    world: World
    verb: ForEachClient | None = None

    @cached_property
    def _step(self) -> Callable:
        def one_round(rate, server, states, ids, t):
            drawn = cohort(self.world, states, ids, t)
            verb = self.verb or compiled_loop
            server, new, metrics = account.run_round(self.make(rate), server, drawn, verb)
            each = [jax.tree.map(lambda s, n=n: s[n], new) for n in range(len(ids))]
            return server, each, metrics

        return one_round if self.verb else jax.jit(one_round)

    def rounds(
        self, begun: tuple[Any, PyTree], draws: Any, rate: Any = None
    ) -> tuple[Any, dict[int, PyTree], list[dict]]:
        """(server, {client: state}, [metrics]) after a round of each of the cohorts `draws`.

        `begun` (server, state of a client) stands before the first.
        """
        server, first = begun
        states: dict[int, PyTree] = dict.fromkeys(range(len(self.world.count)), first)
        metrics = []
        for t, ids in enumerate(draws):
            now = self._step(rate, server, [states[i] for i in ids], np.asarray(ids), t)
            server, new, noted = now
            states |= zip(map(int, ids), new, strict=True)
            metrics.append(plain(noted))
        return server, states, metrics


def rounds(
    algorithm: Algorithm, world: World, draws: Any, verb: ForEachClient | None = None
) -> tuple[Any, dict[int, PyTree], list[dict]]:
    """(server, {client: state}, [metrics]) after a round of each of the cohorts `draws`."""
    return Loop(lambda _: algorithm, world, verb).rounds(start(algorithm), draws)


class Engine(NamedTuple):
    """A round as compiled for a machine, and what it starts from."""

    machine: engine.Machine
    step: Any  # (server, states, examples, plan) -> (server, states, metrics)
    server: Any
    states: Any
    examples: Any
    traces: list[None]  # grows by one whenever the round is traced


def on_engine(
    algorithm: Algorithm,
    world: World,
    *,
    devices: int = 1,
    chunk: int | None = None,
    uniform: bool = False,
) -> Engine:
    """The algorithm's round on so many devices; nothing is compiled before its first round."""
    machine = engine.machine(devices, chunk)
    traces: list[None] = []

    def counted(*arguments):
        traces.append(None)
        return algorithm.run_round(*arguments)

    verb = engine.for_each_client(machine, uniform=uniform)
    rounds = engine.rounds(algorithm._replace(run_round=counted), verb, world.seed, world.most)
    step = engine.compiled(rounds, machine, donate=(0, 1))
    server, first = start(algorithm)
    states = jax.tree.map(lambda x: jnp.stack([x] * len(world.count)), first)
    placed = engine.place((server, states, world.examples), machine)
    server, states, examples = placed
    return Engine(machine, step, server, states, examples, traces)


def plan(world: World, draws: Any, devices: int = 1, first: int = 0) -> engine.Plan:
    """The rounds of these cohorts as the host would deal them over the devices."""
    drawn = np.asarray(draws)
    order = np.stack([engine.deal(world.count[ids], devices) for ids in drawn])
    ids = np.take_along_axis(drawn, order, axis=1).astype(np.int32)
    count = world.count[ids].astype(np.int32)
    return engine.Plan(
        np.asarray(range(first, first + len(draws)), np.int32),
        id=ids,
        slot=ids.copy(),
        start=world.start[ids].astype(np.int32),
        count=count,
        weight=count / count.sum(axis=1, keepdims=True),
    )


def engine_rounds(
    on: Engine, world: World, draws: Any, *, fused: bool = False
) -> tuple[Any, dict[int, PyTree], list[dict]]:
    """(server, {client: state}, [metrics]) as `rounds`, by the engine; `on` can be used again."""
    parts = [(0, draws)] if fused else [(t, [ids]) for t, ids in enumerate(draws)]
    server, states = jax.tree.map(jnp.copy, (on.server, on.states))
    metrics = []
    for t, some in parts:
        now = plan(world, some, len(on.machine.devices), first=t)
        server, states, found = on.step(server, states, on.examples, now)
        metrics += [plain(jax.tree.map(lambda m, i=i: m[i], found)) for i in range(len(some))]
    kept = {i: jax.tree.map(lambda s, i=i: s[i], states) for i in range(len(world.count))}
    return server, kept, metrics
