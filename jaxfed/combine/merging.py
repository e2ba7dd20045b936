"""FedLoRU's merge around any algorithm: every tau rounds it folds the factors into the base."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import trees, values
from jaxfed.algorithm import Algorithm, PyTree, check_may_change
from jaxfed.lowrank.factors import Theta


class Accumulated(NamedTuple):
    """The server's state in `accumulate`: that of the inner algorithm, and the first factors."""

    inner: Any
    start: Theta  # the factors before the first round

    @property
    def base(self) -> PyTree:
        """The inner server's frozen weights."""
        return self.inner.base

    @property
    def theta(self) -> Theta:
        """The inner server's trained weights."""
        return self.inner.theta


def accumulate(
    algorithm: Algorithm,
    *,
    every: int | Sequence[int],
    restart: Callable[[PyTree, Theta, Theta, jax.Array], tuple[PyTree, Theta]],
) -> Algorithm:
    """The algorithm, with its factors folded into the base every `every` rounds: FedLoRU's merge.

    `every` is tau, or a list of rounds t (from 1) after which to merge. `restart` is one of
    `lowrank.restarts`. Around FedLoRA this is FedLoRU (arXiv 2409.12371). The inner algorithm may
    be any whose server has the fields `base` and `theta`, with both factors in theta.

    A merge due after round t happens at the start of round t + 1, before the server sends anything.
    So the evaluation after round t sees the model aggregated in round t, as in the authors' code,
    and no merge follows the last round. A merge does not change the inner algorithm's optimizer
    moments and control variates. A merge is broadcast: every client, drawn or not, must receive the
    merged factors.
    """
    values.kind("algorithm", algorithm, Algorithm, "an Algorithm, such as fedavg(...) returns")
    check_may_change(algorithm, "a merge into the base")
    values.function("restart", restart, "one of lowrank.restarts, such as restarts.reinit")
    listed = _rounds(every if isinstance(every, Sequence) else [every])
    cycle = None if isinstance(every, Sequence) else listed[0]

    def due(done):  # number of rounds before this one
        if cycle is not None:
            return (done > 0) & (done % cycle == 0)
        return jnp.any(done == jnp.asarray(listed))

    def init(key):
        inner = algorithm.init(key)
        if isinstance(inner, Accumulated):
            raise ValueError("the algorithm merges its factors already; accumulate it once")
        if not inner.theta.factors:
            raise ValueError("nothing to merge: no factors are trained; select some with a rank")
        if any(f.a is None or f.b is None for f in inner.theta.factors.values()):
            raise ValueError("the server has no product to merge, as each client keeps a factor")
        if set(inner.theta.factors) - set(inner.base):
            raise ValueError("the server trains another form of the factors, which has no merge")
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
    """The rounds, or the one cycle, as a tuple; ValueError unless they are whole and from 1."""
    whole = all(isinstance(t, int | np.integer) and not isinstance(t, bool) for t in every)
    if not len(every) or not whole or min(every) < 1:
        raise ValueError(
            f"every={every}: use a whole number of rounds from 1 between merges, or a list of the "
            "rounds after which to merge"
        )
    return tuple(int(t) for t in every)
