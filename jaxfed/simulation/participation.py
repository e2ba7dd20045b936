"""Participation: the host draws each round's cohort from (seed, round) alone.

By default clients are drawn uniformly and weigh as much as their examples. An Experiment takes any
other `participation`: a function (rng, round, count [N], cohort) -> (ids [K], shares [K]) that
draws by `rng` alone, where shares need not sum to one; `weighted` and `available` make two.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxfed import values
from jaxfed.algorithm import PyTree
from jaxfed.data.federated import capacity, pack
from jaxfed.simulation import engine
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.host import Host


def draw(seed: int, t: int, clients: int, cohort: int) -> np.ndarray:
    """The ids [K] of round t's clients (t from 0), uniform without replacement."""
    return np.random.default_rng([seed, t]).choice(clients, cohort, replace=False)


def weighted(weight: ArrayLike | None = None) -> Callable:
    """Clients drawn one by one in proportion to weight [N] among those left, all of one share.

    By default to their numbers of examples. If one client were drawn, the expected upload is the
    mean over all clients by `weight` (Li et al., ICLR 2020, arXiv 1907.02189, scheme I); without
    replacement, those with large weights are drawn a little less often than K times their part.
    Clients of weight zero never take part. ValueError for weights below zero or not finite.
    """
    given = None if weight is None else values.array("weight", weight, np.float64)
    if given is not None and (given.ndim != 1 or not np.isfinite(given).all() or (given < 0).any()):
        raise ValueError("weight has values that are no weights; give finite ones [N] from 0 on")

    def drawn(rng: np.random.Generator, t: int, count: np.ndarray, cohort: int) -> Any:
        w = count if given is None else given
        if len(w) != len(count) or np.count_nonzero(w) < cohort:
            raise ValueError(
                f"{np.count_nonzero(w)} of {len(w)} weights are above zero, for a cohort of "
                f"{cohort} out of {len(count)} clients; give one for each client"
            )
        return rng.choice(len(w), cohort, replace=False, p=w / w.sum()), np.ones(cohort)

    return drawn


def available(when: Callable[[int], ArrayLike]) -> Callable:
    """Clients drawn uniformly from those that are available, `when(round)` -> bool [N].

    They weigh as much as their examples. ValueError in a round with fewer than a cohort.
    """
    values.function("when", when, "a function of the round (from 0) that returns bool [N]")

    def drawn(rng: np.random.Generator, t: int, count: np.ndarray, cohort: int) -> Any:
        there = np.asarray(when(t))
        if there.dtype != bool or there.shape != count.shape:
            raise ValueError(
                f"when({t}) is {there.dtype} {there.shape}; return bool [{len(count)}]"
            )
        if there.sum() < cohort:
            raise ValueError(
                f"{there.sum()} clients are available in round {t + 1}, fewer than a cohort of "
                f"{cohort}; use a smaller cohort"
            )
        ids = rng.choice(np.flatnonzero(there), cohort, replace=False)
        return ids, count[ids]

    return drawn


def cohort_of(e: Experiment, t: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids [K], shares [K] that need not sum to one) of round t, from 0."""
    count = e.data.train.count
    if e.participation is None:
        ids = draw(e.seed, t, e.data.clients, e.cohort)
        return ids, count[ids]
    found = e.participation(np.random.default_rng([e.seed, t]), t, count, e.cohort)
    ids, share = (np.asarray(x) for x in found)
    right = ids.shape == share.shape == (e.cohort,) and ids.dtype.kind in "iu"
    if not right or len(np.unique(ids)) < e.cohort or not 0 <= ids.min() <= ids.max() < len(count):
        raise ValueError(
            f"participation gives clients {ids.tolist()} in round {t + 1}; give {e.cohort} "
            f"different ones from 0 to {len(count) - 1}, and a share for each"
        )
    if not (np.isfinite(share).all() and share.min() >= 0 and share.sum() > 0):
        raise ValueError(
            f"participation gives the shares {share.tolist()} in round {t + 1}; give finite ones "
            "from 0 on that are not all zero"
        )
    return ids, share


def make(experiment: Experiment, devices: int, rounds: range) -> engine.Plan:
    """The plan of these rounds: clients [R, K] in the order of the devices, and their examples."""
    train = experiment.data.train
    drawn = [cohort_of(experiment, t) for t in rounds]
    order = [engine.deal(train.count[ids], devices) for ids, _ in drawn]
    places, share = (
        np.stack([pair[i][dealt] for pair, dealt in zip(drawn, order, strict=True)])
        for i in range(2)
    )  # [R, K]
    return engine.Plan(
        round=np.asarray(rounds, np.int32),
        id=places.astype(np.int32),
        slot=places.astype(np.int32),
        start=train.start[places].astype(np.int32),
        count=train.count[places].astype(np.int32),
        weight=share / share.sum(axis=1, keepdims=True),
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
