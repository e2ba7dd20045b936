"""Participation: the host draws each round's cohort from (seed, round) alone."""

import numpy as np

from jaxfed.algorithm import PyTree
from jaxfed.data.federated import capacity, pack
from jaxfed.simulation import engine
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.host import Host


def draw(seed: int, t: int, clients: int, cohort: int) -> np.ndarray:
    """The ids [K] of round t's clients (t from 0), uniform without replacement."""
    return np.random.default_rng([seed, t]).choice(clients, cohort, replace=False)


def make(experiment: Experiment, devices: int, rounds: range) -> engine.Plan:
    """The plan of these rounds: clients [R, K] in the order of the devices, and their examples."""
    e, train = experiment, experiment.data.train
    drawn = [draw(e.seed, t, e.data.clients, e.cohort) for t in rounds]
    places = np.stack([ids[engine.deal(train.count[ids], devices)] for ids in drawn])  # [R, K]
    count = train.count[places]
    return engine.Plan(
        round=np.asarray(rounds, np.int32),
        id=places.astype(np.int32),
        slot=places.astype(np.int32),
        start=train.start[places].astype(np.int32),
        count=count.astype(np.int32),
        weight=count / count.sum(axis=1, keepdims=True),
    )


def packed(experiment: Experiment, plan: engine.Plan) -> tuple[PyTree, engine.Plan]:
    """(the examples of one round's clients, the plan with each client's first row in them)."""
    train = experiment.data.train
    examples, start = pack(train, plan.id[0], capacity(train, experiment.cohort))
    return examples, plan._replace(start=start[None])


def fuse(e: Experiment, h: Host, seconds: float) -> int:
    """The most rounds in one call that last a quarter of a second and divide the schedule."""
    step = np.gcd(e.evaluate_every or e.rounds, h.checkpoint_every or e.rounds)
    fits = [n for n in range(1, int(step) + 1) if step % n == 0 and n * seconds <= 0.25]
    return max(fits, default=1)
