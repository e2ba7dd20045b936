"""The state of a run after one of its rounds, read from its folder, which does not change."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxfed.algorithm import Algorithm, Cohort, PyTree
from jaxfed.lowrank.factors import Theta
from jaxfed.simulation import engine
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.loaded import Model


def ids_of(asked: Sequence[int], population: int, cohort: int) -> np.ndarray:
    """The ids asked for, or `cohort` ids evenly over the population if none is asked for.

    Raises ValueError for an id that does not exist or is given twice.
    """
    if outside := [k for k in asked if not 0 <= k < population]:
        raise ValueError(f"there is no client {outside[0]}; use ids from 0 to {population - 1}")
    if len(set(asked)) < len(asked):
        raise ValueError(f"clients={tuple(asked)} names one twice; give each once")
    if asked:
        return np.asarray(asked, np.int32)
    return np.linspace(0, population - 1, cohort).round().astype(np.int32)


def deployed(algorithm: Algorithm, server: Any) -> tuple[PyTree, Theta]:
    """(base, theta) of the server's model, which a client that was never drawn would deploy."""
    base, theta = algorithm.deploy(server, algorithm.init_client(server, jax.random.key(0)))
    if not isinstance(theta, Theta):
        raise TypeError(f"theta is a {type(theta).__name__}; only a lowrank.Theta can be analysed")
    return base, theta


def cohort_of(e: Experiment, model: Model, ids: np.ndarray, machine: engine.Machine) -> Cohort:
    """The cohort of these clients in the next round, padded with the last one to all devices."""
    train, spare = e.data.train, -len(ids) % len(machine.devices)
    weight = np.pad(train.count[ids] / train.count[ids].sum(), (0, spare))
    ids = np.pad(ids, (0, spare), mode="edge")
    plan = engine.Plan(
        np.int32(model.round), ids, np.arange(len(ids)), train.start[ids], train.count[ids], weight
    )
    examples = engine.place(train.examples, machine)
    return engine.cohort(model.people.states_of(ids), examples, plan, e.seed, train.most)
