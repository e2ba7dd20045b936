"""FedLoRU's merge around any algorithm: factors are folded into the base every tau rounds."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import trees
from jaxfed.algorithm import Algorithm, PyTree
from jaxfed.lowrank.factors import Theta


class Accumulated(NamedTuple):
    """The server of `accumulate`; base and theta are those of the algorithm inside."""

    inner: Any
    start: Theta  # the factors that training began with

    @property
    def base(self) -> PyTree:
        return self.inner.base

    @property
    def theta(self) -> Theta:
        return self.inner.theta


def accumulate(
    algorithm: Algorithm,
    *,
    every: int | Sequence[int],
    restart: Callable[[PyTree, Theta, Theta, jax.Array], tuple[PyTree, Theta]],
) -> Algorithm:
    """The algorithm with its factors folded into the base every `every` rounds: FedLoRU's merge.

    `every` is tau, or a list of rounds t (from 1) after which to merge. `restart` is `keep`,
    `reinit` or `residual`. Around FedLoRA this is FedLoRU (arXiv 2409.12371); any algorithm whose
    server has the fields `base` and `theta`, with factors in theta, may stand inside.

    The merge that is due after round t is made at the start of round t + 1, before anything is
    sent: so the model that is evaluated after round t is the one that was aggregated in it, as in
    the authors' code, and no merge trails after the last round. Optimizer moments and control
    variates of the algorithm inside are carried across a merge. A merge is broadcast: every client,
    drawn or not, must receive the factors that were merged.
    """
    cycle = operator.index(every) if isinstance(every, int | np.integer) else None
    listed = _rounds(every) if isinstance(every, Sequence) else ()
    if cycle is not None and cycle < 1:
        raise ValueError(f"every={every} is no cycle; merge every 1 round or more")

    def due(done):  # rounds done before this one
        if cycle is not None:
            return (done > 0) & (done % cycle == 0)
        return jnp.any(done == jnp.asarray(listed))

    def init(key):
        inner = algorithm.init(key)
        if not inner.theta.factors:
            raise ValueError("nothing to merge: no factors are trained; select some with a rank")
        return Accumulated(inner, inner.theta._replace(full={}))

    def run_round(server, cohort, for_each_client):
        inner, start = server
        merging = due(cohort.round)
        base, theta = jax.lax.cond(
            merging,
            lambda base, theta: restart(base, theta, start, cohort.round_key),
            lambda base, theta: (base, theta),
            inner.base,
            inner.theta,
        )
        inner = inner._replace(base=base, theta=theta)
        inner, states, metrics = algorithm.run_round(inner, cohort, for_each_client)
        return Accumulated(inner, start), states, metrics

    def broadcast(server, t):
        merging = t in listed if cycle is None else t > 0 and t % cycle == 0
        size = trees.nbytes(server.theta.factors) if merging else 0
        return size + algorithm.broadcast(server.inner, t)

    return algorithm._replace(
        init=init,
        init_client=lambda server, key: algorithm.init_client(server.inner, key),
        run_round=run_round,
        broadcast=broadcast,
        deploy=lambda server, state: algorithm.deploy(server.inner, state),
    )


def _rounds(every: Sequence[int]) -> tuple[int, ...]:
    """A list of rounds to merge after, checked."""
    whole = all(isinstance(t, int | np.integer) and not isinstance(t, bool) for t in every)
    if not len(every) or not whole or min(every) < 1:
        raise ValueError(
            f"every={every}: give the rounds, whole numbers from 1, after which to merge"
        )
    return tuple(int(t) for t in every)
