"""The loop oracle: an algorithm's rounds with a Python loop over clients in place of the engine.

`rounds` is the contract of algorithm.py written down a second time, as plainly as can be: clients'
kept states are a dict, the cohort is built by hand, and clients work one after the other. The loop
is compiled with the round; `loop` is the same in Python. `engine_rounds` is the same through the
engine.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import trees
from jaxfed.algorithm import ACCOUNT, Cohort, Data, client_slice
from jaxfed.simulation import account, engine


class World(NamedTuple):
    """A population: client i owns rows start[i] : start[i] + count[i] of the examples."""

    examples: dict
    count: np.ndarray  # [N]
    seed: int = 3

    @property
    def start(self):
        return np.cumsum(self.count) - self.count

    @property
    def most(self):
        return int(self.count.max())


def loop(client, base, message, cohort):
    """The verb, as a loop in Python."""
    one = jax.jit(partial(account.noted, client))
    replies = [one(base, message, client_slice(cohort, i)) for i in range(len(cohort.id))]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *replies)


def compiled_loop(client, base, message, cohort):
    """The verb, as a loop that can be compiled: one place of the cohort after the other."""

    def at(i):
        return account.noted(client, base, message, client_slice(cohort, i))

    return jax.lax.map(at, jnp.arange(len(cohort.id)))


def cohort(world, states, ids, t):
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


def plain(metrics):
    """The metrics with the account's entries under names of their own, bytes as numbers."""
    notes = metrics[ACCOUNT]._asdict()
    sizes = {name: trees.as_number(notes.pop(name)) for name in ("down", "up")}
    return {**{n: m for n, m in metrics.items() if n != ACCOUNT}, **notes, **sizes}


@cache
def started(algorithm, x64):
    """(server, state of a client) before the first round, in this precision."""

    def start(key):
        server = algorithm.init(key)
        return server, algorithm.init_client(server, jax.random.key(1))

    with jax.enable_x64(x64):
        return jax.jit(start)(jax.random.key(0))


def start(algorithm):
    return started(algorithm, jax.config.jax_enable_x64)


class Loop:
    """Rounds of `make(rate)`, compiled once for each size of a cohort, whatever the rate.

    With a verb of one's own they are not compiled.
    """

    def __init__(self, make, world, verb=None):
        def one_round(rate, server, states, ids, t):
            drawn = cohort(world, states, ids, t)
            ran = account.run_round(make(rate), server, drawn, verb or compiled_loop)
            server, new, metrics = ran
            return (
                server,
                [jax.tree.map(lambda s, n=n: s[n], new) for n in range(len(ids))],
                metrics,
            )

        self._world, self._step = world, one_round if verb else jax.jit(one_round)

    def rounds(self, begun, draws, rate=None):
        """(server, {client: state}, [metrics]) after a round of each of the cohorts `draws`.

        `begun` (server, state of a client) stands before the first.
        """
        server, first = begun
        states, metrics = dict.fromkeys(range(len(self._world.count)), first), []
        for t, ids in enumerate(draws):
            now = self._step(rate, server, [states[i] for i in ids], np.asarray(ids), t)
            server, new, noted = now
            states |= zip(map(int, ids), new, strict=True)
            metrics.append(plain(noted))
        return server, states, metrics


def rounds(algorithm, world, draws, verb=None):
    """(server, {client: state}, [metrics]) after a round of each of the cohorts `draws`."""
    return Loop(lambda _: algorithm, world, verb).rounds(start(algorithm), draws)


class Engine(NamedTuple):
    """A round as compiled for a machine, and what it starts from."""

    machine: engine.Machine
    step: Any  # (server, states, examples, plan) -> (server, states, metrics)
    server: Any
    states: Any
    examples: Any
    traces: list  # grows by one whenever the round is traced


def on_engine(algorithm, world, *, devices=1, chunk=None, uniform=False) -> Engine:
    machine, traces = engine.machine(devices, chunk), []

    def counted(*arguments):
        traces.append(None)
        return algorithm.run_round(*arguments)

    verb = engine.for_each_client(machine, uniform=uniform)
    rounds = engine.rounds(algorithm._replace(run_round=counted), verb, world.seed, world.most)
    step = engine.compiled(rounds, machine, donate=(0, 1))
    server, first = start(algorithm)
    states = jax.tree.map(lambda x: jnp.stack([x] * len(world.count)), first)
    placed = engine.place((server, states, world.examples), machine)
    return Engine(machine, step, *placed, traces)


def plan(world, draws, devices=1, first=0) -> engine.Plan:
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


def engine_rounds(on, world, draws, *, fused=False):
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


def assert_close(found, expected, rtol=1e-6, atol=1e-7):
    """Same structure, shapes and dtypes; numbers equal up to rounding."""
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=rtol, atol=atol)
