"""Similarity of clients: cosines between their gradients or updates, whole or of low rank.

Clients are a leading axis [K]. The cosines follow from Gram matrices [K, K] of inner products.
Factors can be compared in two ways: as numbers (`inner`), or as their products s a b, which are
changes of a weight (`inner_of_products`). The products are never formed.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxfed import lowrank
from jaxfed.algorithm import PyTree
from jaxfed.lowrank.factors import Factors, Theta


def inner(stacked: PyTree) -> jax.Array:
    """<x_j, x_k> [K, K] for a tree with leaves [K, ...]; x_k is client k's tree as one vector."""
    flat = [x.reshape(len(x), -1) for x in jax.tree.leaves(stacked)]
    return sum((x @ x.T for x in flat), jnp.zeros(()))


def inner_of_products(stacked: Theta) -> jax.Array:
    """<x_j, x_k> [K, K] of changes of weights, with the products s a b of factors [K, ...].

    <a b, c d> = <a'c, b d'>, so no product is formed.
    """
    return inner(stacked.full) + sum(map(_inner_of_factors, stacked.factors.values()))


def _inner_of_factors(f: Factors) -> jax.Array:
    if f.stack:  # leaves [K, L, ...]
        layer = dataclasses.replace(f, stack=f.stack - 1)
        return jnp.sum(jax.vmap(_inner_of_factors, in_axes=1)(layer), axis=0)
    clients, rank = f.a.shape[0], f.b.shape[1]
    a = jnp.moveaxis(f.a.reshape(clients, -1, rank), 1, 0).reshape(-1, clients * rank)
    b = f.b.reshape(clients * rank, -1)
    both = ((a.T @ a) * (b @ b.T)).reshape(clients, rank, clients, rank)
    return f.scale**2 * both.sum((1, 3))


def cosines(gram: jax.Array) -> jax.Array:
    """cos(x_j, x_k) [K, K] from inner products [K, K]; zero if one of the two is zero."""
    length = jnp.sqrt(jnp.maximum(jnp.diag(gram), 0))
    both = length[:, None] * length
    return jnp.where(both > 0, gram / jnp.where(both > 0, both, 1), 0)


def pairs(cosines: jax.Array) -> jax.Array:
    """The entries above the diagonal [K (K - 1) / 2]: one for each pair of clients."""
    return cosines[jnp.triu_indices(len(cosines), 1)]


def low_rank(
    weights: Mapping[str, jax.Array], rank: int, inputs: Mapping[str, int] | None = None
) -> Theta:
    """The best approximation of rank `rank` to each weight (truncated SVD), as factors of scale 1.

    Weights with one axis, such as biases, stay whole. `inputs` is {path: number of leading axes
    that are inputs}; by default all axes but the last. Components are sorted, so `leading` gives
    the best approximation of every lower rank.
    """
    inputs = inputs or {}
    matrices = {p: w for p, w in weights.items() if w.ndim > 1}
    return Theta(
        {p: w for p, w in weights.items() if p not in matrices},
        {
            p: lowrank.from_product(w, inputs.get(p, w.ndim - 1), rank, 1.0)
            for p, w in matrices.items()
        },
    )


def leading(stacked: Theta, rank: int) -> Theta:
    """The first `rank` components of factors [K, ...], such as those of `low_rank`."""
    return stacked._replace(
        factors={
            p: dataclasses.replace(f, a=f.a[..., :rank], b=f.b[:, :rank])
            for p, f in stacked.factors.items()
        }
    )


def moved(before: Theta, change: Theta) -> Theta:
    """Clients' updates as changes of weights: factors of s (a + da) (b + db) - s a b, of rank 2 r.

    `before` is theta, and `change` is each client's change of theta [K, ...].
    """
    return Theta(change.full, {p: _moved(f, change.factors[p]) for p, f in before.factors.items()})


def _moved(f: Factors, change: Factors) -> Factors:
    """Factors of da (b + db) + a db."""
    a = jnp.broadcast_to(f.a, change.a.shape)
    return Factors(
        jnp.concatenate([change.a, a], axis=-1),
        jnp.concatenate([f.b + change.b, change.b], axis=1),
        f.scale,
    )
