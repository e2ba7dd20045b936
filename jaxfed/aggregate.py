"""Functions of stacked uploads: leaves [K, ...] with one entry per client, and weights [K]."""

import jax
import jax.numpy as jnp

from jaxfed.algorithm import PyTree


def weighted_mean(stacked: PyTree, weight: jax.Array) -> PyTree:
    """Mean over clients: leaves [K, ...] with weight [K] summing to one -> leaves [...]."""
    for x in jax.tree.leaves(stacked):
        if x.shape[:1] != weight.shape:
            raise ValueError(f"leaves are {x.shape}, weights {weight.shape}; give one a client")
    return jax.tree.map(lambda x: jnp.tensordot(weight.astype(x.dtype), x, axes=1), stacked)


def uniform_mean(stacked: PyTree, weight: jax.Array) -> PyTree:
    """Unweighted mean over clients: leaves [K, ...], weight [K] -> leaves [...].

    Clients of weight zero do not count.
    """
    present = (weight > 0).astype(weight.dtype)
    return weighted_mean(stacked, present / jnp.sum(present))


def norm_weighted(stacked: PyTree, norm: jax.Array, weight: jax.Array) -> PyTree:
    """Mean over clients weighted by their norms: HETLoRA's sparsity-weighted average.

    p_k = norm_k / sum_j norm_j over the clients of weight above zero; if all these norms are zero,
    p = weight. Leaves [K, ...], norm [K], weight [K] -> leaves [...].
    """
    norm = jnp.where(weight > 0, norm, 0)
    total = jnp.sum(norm)
    share = jnp.where(total > 0, norm / jnp.where(total > 0, total, 1), weight)
    return weighted_mean(stacked, share)


def finite(stacked: PyTree) -> jax.Array:
    """True for each client whose leaves are all finite: leaves [K, ...] -> bool [K]."""
    flags = [
        jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1) for x in jax.tree.leaves(stacked)
    ]
    return jnp.all(jnp.stack(flags), axis=0)


def choose(which: jax.Array, stacked: PyTree, other: PyTree) -> PyTree:
    """Leaves [K, ...]: those of `stacked` if which [K], else those of `other` [K, ...] or [...]."""
    return jax.tree.map(
        lambda x, y: jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x, y), stacked, other
    )
