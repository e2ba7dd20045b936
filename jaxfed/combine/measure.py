"""The discrepancy of averages: the mean of the products A B minus the product of the means.

    M - A' B' = sum_k p_k (A_k - A') (B_k - B'),    M = sum_k p_k A_k B_k,  A' = sum_k p_k A_k, ...

This is the covariance of the factors over clients. It is zero if all clients share one factor.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp

from jaxfed import values
from jaxfed.algorithm import Algorithm, PyTree, overheard
from jaxfed.lowrank.factors import Factors, Theta


def discrepancy(factors: Mapping[str, Factors], weight: jax.Array) -> jax.Array:
    """||M - A' B'||_F / ||M||_F over all paths, for factors [K, ...] and weight [K]; zero if M is.

    Weights sum to one. Each path forms one matrix [in, out] for all clients together or, if that is
    less work, one of inner products [K r, K r]. It never forms a single client's product.
    """
    squares = jnp.zeros(2)
    for f in factors.values():
        squares += f.scale**2 * _squares(f, weight.astype(f.a.dtype))
    gap, whole = squares
    return jnp.sqrt(jnp.maximum(gap, 0) / jnp.where(whole > 0, whole, 1))


def _squares(f: Factors, weight: jax.Array) -> jax.Array:
    """(||M - A' B'||^2, ||M||^2) [2] of one weight, without its scale."""
    if f.stack:  # leaves [K, L, ...]
        layer = dataclasses.replace(f, stack=f.stack - 1)
        return jnp.sum(jax.vmap(partial(_squares, weight=weight), in_axes=1)(layer), axis=0)
    clients, rank = f.a.shape[0], f.b.shape[1]
    a, b = f.a.reshape(clients, -1, rank), f.b.reshape(clients, rank, -1)
    mean_a, mean_b = (jnp.tensordot(weight, x, axes=1) for x in (a, b))
    x = (a - mean_a) * weight[:, None, None]  # [K, in, r]
    x = jnp.moveaxis(x, 1, 0).reshape(-1, clients * rank)  # [in, K r]
    y = (b - mean_b).reshape(clients * rank, -1)  # [K r, out]
    if clients * rank * (len(x) + y.shape[1]) >= len(x) * y.shape[1]:
        gap = x @ y
        return jnp.stack([jnp.sum(gap**2), jnp.sum((gap + mean_a @ mean_b) ** 2)])
    x, y = jnp.concatenate([x, mean_a], axis=1), jnp.concatenate([y, mean_b])
    both = (x.T @ x) * (y @ y.T)  # [K r + r, K r + r]
    return jnp.stack([jnp.sum(both[:-rank, :-rank]), jnp.sum(both)])


def after_training(message: PyTree, upload: PyTree) -> dict[str, Factors]:
    """The clients' factors [K, ...] after training: the message plus the uploaded change.

    This is for algorithms that upload a change of theta, such as FedAvg. Message and upload are
    theta and its change, or have them as their field `theta`. Raises ValueError if they have no
    factors.
    """
    before, change = (getattr(tree, "theta", tree) for tree in (message, upload))
    if not (isinstance(before, Theta) and isinstance(change, Theta) and before.factors):
        raise ValueError(
            "clients upload no change of factors, so their averages have no discrepancy; train "
            "factors, or define with trained=... how to compute them from an upload"
        )
    return jax.tree.map(jnp.add, before.factors, change.factors)


def with_discrepancy(
    algorithm: Algorithm,
    *,
    trained: Callable[[PyTree, PyTree], Mapping[str, Factors]] = after_training,
) -> Algorithm:
    """The algorithm with the metric `discrepancy` of the factors that clients trained.

    `trained(message, upload)` gives the clients' factors [K, ...]; cohort.weight weights their
    means. If a round has several exchanges, the last one counts. Wrap the averaging algorithm
    directly, or wrap `combine.accumulate` around it. Raises ValueError if the algorithm does not
    upload a change of theta and `trained` is not given.
    """
    values.kind("algorithm", algorithm, Algorithm, "an Algorithm, such as fedavg(...) returns")
    if trained is after_training and not algorithm.sends_change:
        raise ValueError(
            "clients of this algorithm do not upload a change of factors; define with trained=... "
            "how to compute their factors from an upload"
        )

    def run_round(server, cohort, for_each_client):
        gaps = []

        def hear(reply, message, cohort):
            gaps.append(discrepancy(trained(message, reply.upload), cohort.weight))
            return reply

        verb = overheard(for_each_client, hear)
        server, states, metrics = algorithm.run_round(server, cohort, verb)
        return server, states, {**metrics, "discrepancy": gaps[-1]}

    return algorithm._replace(run_round=run_round)
