"""The algorithm under check: its rounds by the loop and by the engine, each computed once."""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import lowrank
from jaxfed.algorithm import Algorithm, Leaf, PyTree, trace_state
from jaxfed.algorithms.row import Setting
from jaxfed.analysis.certify import world
from jaxfed.analysis.certify.world import CLIENTS, DRAWS, ROUNDS, SETTING, WORLD
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.simulation import keys, loop


class Exchange(NamedTuple):
    """One call of the verb: what clients had, what crossed, what they keep."""

    base: PyTree
    message: PyTree
    upload: PyTree  # [K, ...]
    state: PyTree  # [K, ...]


class Round(NamedTuple):
    """One round by the loop."""

    before: Any  # the server
    after: Any
    exchanges: list[Exchange]  # those that run_round calls directly
    weight: Leaf  # [K]
    sent: Leaf  # [K] bytes that each client declares
    received: Leaf


class Looped(NamedTuple):
    """The rounds by the loop."""

    server: Any
    states: dict[int, PyTree]
    rounds: list[Round]


@dataclasses.dataclass(frozen=True)
class Subject:
    """An algorithm under check, which `make` makes anew whenever it is needed."""

    name: str
    make: world.Maker
    trains: str
    takes_rate: bool = True  # False: its learning rate is not ours to choose

    def algorithm(self, setting: Setting = SETTING) -> Algorithm:
        """The algorithm in the little world; TypeError or ValueError if it is none, or unfit."""
        made = self.make(world.task(self.trains, setting.rank), setting)
        if not isinstance(made, Algorithm):
            raise TypeError(f"it returned a {type(made).__name__}; return an Algorithm")
        if made.clients not in (None, CLIENTS):
            raise ValueError(
                f"it is made for {made.clients} clients and the check has {CLIENTS}; take the "
                "number from an argument `clients`"
            )
        return keys.as_numbers(made)

    @cached_property
    def looped(self) -> Looped:
        """Its rounds by the plain loop."""
        server, states, metrics = loop.rounds(listening(self.algorithm()), WORLD, DRAWS)
        if not is_finite((server, states)):
            raise FloatingPointError(
                f"a number is not finite after {ROUNDS} rounds; take a lower learning rate"
            )
        heard = [each[HEARD]._replace(sent=each["up"], received=each["down"]) for each in metrics]
        return Looped(server, states, heard)

    @cached_property
    def on_engine(self) -> loop.Engine:
        """Its round on one device, all clients under one vmap."""
        return loop.on_engine(self.algorithm(), WORLD)

    @cached_property
    def engined(self) -> tuple[Any, dict[int, PyTree]]:
        """(server, {client: state}) after its rounds by the engine."""
        return self.from_server(self.on_engine.server)

    def from_server(self, server: Any) -> tuple[Any, dict[int, PyTree]]:
        """The same from another server, by the same program."""
        on = self.on_engine._replace(server=server)
        return loop.engine_rounds(on, WORLD, DRAWS)[:2]


HEARD = "heard"


def listening(algorithm: Algorithm) -> Algorithm:
    """The algorithm whose metrics hold the whole round, for the loop only."""

    def run_round(server, cohort, for_each_client):
        exchanges: list[Exchange] = []
        trace = trace_state()

        def verb(client, base, message, cohort):
            reply = for_each_client(client, base, message, cohort)
            if trace_state() == trace:  # what is inside lax.cond does not exist outside
                exchanges.append(Exchange(base, message, reply.upload, reply.state))
            return reply

        after, states, metrics = algorithm.run_round(server, cohort, verb)
        heard = Round(server, after, exchanges, cohort.weight, (), ())
        return after, states, {**metrics, HEARD: heard}

    return algorithm._replace(run_round=run_round)


# ---------------------------------------------------------------------- comparing


def tolerance() -> float:
    """Half of the digits of JAX's own precision: 3e-4, in double precision 1e-8."""
    return float(np.sqrt(jnp.finfo(jnp.zeros(()).dtype).eps))


SMALL = 1e-2  # of a leaf's numbers, below which differences count as they are


def gap(found: PyTree, expected: PyTree) -> float:
    """The largest difference between two trees, relative to the largest number of its leaf.

    Infinite if the trees have other forms, or one has a number that is not finite.
    """
    (one, form), (two, other) = (jax.tree.flatten(tree) for tree in (found, expected))
    if str(form) != str(other):
        return np.inf
    most = 0.0
    for x, y in zip(one, two, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        if x.shape != y.shape or not np.all(np.isfinite(x)) or not np.all(np.isfinite(y)):
            return np.inf
        if x.size:
            most = max(most, float(np.abs(x - y).max() / max(np.abs(y).max(), SMALL)))
    return most


def is_finite(tree: PyTree) -> bool:
    """True if every number is finite."""
    return all(np.all(np.isfinite(np.asarray(x))) for x in jax.tree.leaves(tree))


def theta_of(tree: PyTree) -> Theta | None:
    """The theta that a tree is, or has as its field `theta`; None if there is none.

    {path: factors} is a theta without other weights.
    """
    found = getattr(tree, "theta", tree)
    if isinstance(found, Mapping) and found and all(map(is_whole, found.values())):
        return Theta({}, dict(found))
    whole = isinstance(found, Theta) and all(map(is_whole, found.factors.values()))
    return found if whole else None


def is_whole(f: Any) -> bool:
    """True for factors with both sides."""
    return isinstance(f, Factors) and f.a is not None and f.b is not None


def model(base: PyTree, theta: PyTree) -> PyTree:
    """The model's weights, factors merged; (base, theta) as they are if they have no product."""
    base, whole = getattr(base, "base", base), theta_of(theta)
    if whole is None or not set(whole.factors) <= set(base):
        return base, theta
    return lowrank.merged(base, whole)
