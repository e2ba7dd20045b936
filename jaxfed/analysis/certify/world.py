"""The little world of a check: six unequal clients, least squares in one layer 4 x 4."""

import dataclasses
from collections.abc import Callable
from functools import cache

import numpy as np

from jaxfed import local, lowrank, models, tasks
from jaxfed.algorithm import Algorithm
from jaxfed.algorithms.row import Setting
from jaxfed.simulation.loop import World
from jaxfed.tasks.task import Task

SIDE = 4  # inputs and outputs; the layer is square, so that a transposed product has its shape
COUNT = np.array([1, 3, 4, 6, 7, 9])
CLIENTS, COHORT, ROUNDS, RATE = len(COUNT), 5, 5, 0.05
DRAWS = np.stack([np.random.default_rng(t).permutation(CLIENTS)[:COHORT] for t in range(ROUNDS)])
WORDS = f"least squares in one dense layer {SIDE} x {SIDE}, {CLIENTS} clients, {COHORT} a round"


def _world() -> World:
    """Each client's targets follow a matrix of its own, so that clients disagree."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT.sum(), SIDE))
    own = (rng.normal(size=(CLIENTS, SIDE, SIDE)) + rng.normal(size=(SIDE, SIDE))) / 2
    y = np.einsum("ni,nio->no", x, own[np.repeat(np.arange(CLIENTS), COUNT)])
    return World({"x": x.astype(np.float32), "y": y.astype(np.float32)}, COUNT)


WORLD = _world()

SETTING = Setting(
    work=local.Work(batch_size=4, epochs=2, shuffle=False),
    rate=RATE,
    clients=CLIENTS,
    cohort=COHORT,
    rank=2,
    rounds=ROUNDS,
    personal_work=local.Work(batch_size=4, epochs=1, shuffle=False),
)
"""Work with a short last batch; clients make from 2 to 6 local steps."""

QUADRATICS = SETTING._replace(
    work=local.Work(batch_size=int(COUNT.max()), steps=5, shuffle=False),
    personal_work=local.Work(batch_size=int(COUNT.max()), steps=5, shuffle=False),
    cohort=CLIENTS,
    rank=SIDE,
    rounds=400,
)
"""All clients in every round, whole gradients, factors of full rank: the optimum can be reached."""


@cache
def task(trains: str, rank: int) -> Task:
    """Least squares, of which a row of the zoo trains what `Row.trains` says."""
    fine_tuned = lowrank.Select(factors="kernel", full="bias", rank=rank, alpha=1.5 * rank)
    select = {
        "any": lowrank.everything,
        "factors": fine_tuned,
        "scratch": dataclasses.replace(fine_tuned, base="zero", up="random"),
    }
    if trains == "norms":
        return tasks.regression(models.MLP((SIDE,), SIDE, norm="running"), WORLD.examples)
    if trains not in select:
        raise ValueError(
            f"it trains {trains!r}, which the check's task does not have ({WORDS}); its own tests "
            "hold it against the loop"
        )
    return tasks.regression(models.MLP((), SIDE), WORLD.examples, select=select[trains])


def optimum(share: np.ndarray) -> np.ndarray:
    """The weights [inputs + 1, outputs], kernel above bias, that minimise sum_k share_k f_k."""
    x = np.concatenate([WORLD.examples["x"], np.ones((COUNT.sum(), 1))], axis=1)
    root = np.sqrt(np.repeat(share / COUNT, COUNT))[:, None]
    return np.linalg.lstsq(root * x, root * WORLD.examples["y"].astype(float), rcond=None)[0]


Maker = Callable[[Task, Setting], Algorithm]
