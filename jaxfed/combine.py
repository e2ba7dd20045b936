"""Combinators: Algorithm -> Algorithm. They wrap the server, or the verb that a round is lent."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfed import aggregate, lowrank
from jaxfed.algorithm import Algorithm, PyTree
from jaxfed.lowrank import Theta


def keep(base: PyTree, theta: Theta, start: Theta, key: jax.Array) -> tuple[PyTree, Theta]:
    """Merge and leave the factors as they are: the product then counts twice.

    What the authors' released CIFAR run does. W <- W + s A B; A, B stay.
    """
    return lowrank.merge(base, theta), theta


def reinit(base: PyTree, theta: Theta, start: Theta, key: jax.Array) -> tuple[PyTree, Theta]:
    """Merge and begin anew, down factor random and up factor zero: the function is unchanged.

    W <- W + s A B; A random, B = 0, as in ReLoRA.
    """
    return lowrank.merge(base, theta), lowrank.fresh(theta, key)


def residual(base: PyTree, theta: Theta, start: Theta, key: jax.Array) -> tuple[PyTree, Theta]:
    """Merge what was gained since the start and return there: the function is unchanged.

    W <- W + s (A B - A_0 B_0); A, B <- A_0, B_0, the factors that training began with (FRLoRA).
    """
    undone = {
        p: w - lowrank.product(start.factors[p]).astype(w.dtype) if p in start.factors else w
        for p, w in lowrank.merge(base, theta).items()
    }
    return undone, theta._replace(factors=start.factors)


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
    variates of the algorithm inside are carried across a merge. The metric `broadcast` is the
    bytes that every client, drawn or not, must receive for a merge to be known to all.
    """
    if isinstance(every, int) and every < 1:
        raise ValueError(f"every={every} is no cycle; merge every 1 round or more")
    if not isinstance(every, int) and (not every or min(every) < 1):
        raise ValueError(f"every={every}: give the rounds, from 1, after which to merge")

    def due(done):  # rounds done before this one
        if isinstance(every, int):
            return (done > 0) & (done % every == 0)
        return jnp.any(done == jnp.asarray(every))

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
        size = sum(x.nbytes for x in jax.tree.leaves(theta.factors))
        broadcast = jnp.where(merging, jnp.int32(size), 0)
        return Accumulated(inner, start), states, {**metrics, "broadcast": broadcast}

    return algorithm._replace(
        init=init,
        init_client=lambda server, key: algorithm.init_client(server.inner, key),
        run_round=run_round,
        deploy=lambda server, state: algorithm.deploy(server.inner, state),
    )


def skip_nonfinite(
    algorithm: Algorithm,
    *,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """The algorithm without the clients whose upload or loss is not finite in a round.

    Such a client's upload is replaced by the mean of the others', which leaves that mean as if the
    client had not been drawn; give the `mean` that the algorithm uses. It keeps its old state.
    The metric `skipped` [K] tells which clients; if no upload is finite, all count as zero.
    A server that counts its cohort beside the mean (SCAFFOLD's |S| in c) still counts them.
    """

    def run_round(server, cohort, for_each_client):
        skipped = []

        def guarded(client, base, message, cohort):
            reply = for_each_client(client, base, message, cohort)
            fine = aggregate.finite((reply.upload, reply.metrics))  # [K]
            clean = aggregate.choose(fine, reply.upload, jax.tree.map(jnp.zeros_like, reply.upload))
            weight = cohort.weight * fine
            others = mean(clean, weight / jnp.maximum(jnp.sum(weight), 1e-30))
            skipped.append(~fine)
            metrics = {n: jnp.where(fine, m, 0) for n, m in reply.metrics.items()}
            return reply._replace(
                upload=aggregate.choose(fine, clean, others),
                state=aggregate.choose(fine, reply.state, cohort.state),
                metrics={**metrics, "finite": jnp.ones_like(fine)},
            )

        server, states, metrics = algorithm.run_round(server, cohort, guarded)
        return server, states, {**metrics, "skipped": jnp.any(jnp.stack(skipped), axis=0)}

    return algorithm._replace(run_round=run_round)
