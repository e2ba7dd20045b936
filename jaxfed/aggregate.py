"""Functions of stacked uploads: leaves [K, ...] with one entry per client, and weights [K]."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import values
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


# ---------------------------------------------------------------------- robust means


def median(stacked: PyTree, weight: jax.Array) -> PyTree:
    """The median over clients of each entry: leaves [K, ...], weight [K] -> leaves [...].

    Clients of weight above zero count alike; of an even number, the mean of the middle two (Yin et
    al., ICML 2018).
    """
    present = weight > 0
    count = jnp.sum(present)

    def middle(x):
        ordered = _ordered(x, present)
        return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2

    return jax.tree.map(middle, stacked)


def trimmed(share: float) -> Callable[[PyTree, jax.Array], PyTree]:
    """A mean of each entry without its largest and smallest values (Yin et al., ICML 2018).

    Of n clients of weight above zero it leaves out floor(share n) values at either end; the others
    count alike. ValueError unless share is from 0 to below 1/2.
    """
    if values.number("share", share, 0.0, 0.5) == 0.5:
        raise ValueError("share=0.5 leaves out all clients; use less, or the median")

    def mean(stacked, weight):
        present = weight > 0
        count = jnp.sum(present)
        every = np.floor(share * np.arange(len(weight) + 1) + 1e-9)  # of 0, 1, ..., K clients
        left_out = jnp.asarray(every, count.dtype)[count]
        place = jnp.arange(len(weight))
        inside = (place >= left_out) & (place < count - left_out)

        def one(x):
            kept = jnp.where(_over(inside, x), _ordered(x, present), 0)
            return jnp.sum(kept, axis=0) / (count - 2 * left_out).astype(x.dtype)

        return jax.tree.map(one, stacked)

    return mean


LARGE = float(np.finfo(np.float32).max)  # below infinity, the score of those who are absent


def krum(byzantine: int) -> Callable[[PyTree, jax.Array], PyTree]:
    """The upload that lies nearest to others (Blanchard et al., NeurIPS 2017).

    Of n clients of weight above zero, f = `byzantine` of whom may upload anything, the one whose
    n - f - 2 nearest others are nearest, by the sum of squared distances over the whole tree. The
    paper's guarantee needs n > 2 f + 2. An upload that is not finite is at an infinite distance of
    all. ValueError for fewer than f + 3 clients.
    """
    values.whole("byzantine", byzantine, 0)

    def mean(stacked, weight):
        if len(weight) < byzantine + 3:
            raise ValueError(
                f"byzantine={byzantine} needs {byzantine + 3} clients a round at least; there are "
                f"{len(weight)}"
            )
        present = weight > 0
        flat = jnp.concatenate(
            [x.reshape(len(weight), -1) for x in jax.tree.leaves(stacked)], axis=1
        )
        # One row after the other: products would lose all digits beside one huge upload.
        distance = jax.lax.map(lambda x: jnp.sum((flat - x) ** 2, axis=1), flat)
        distance = jnp.where(jnp.isfinite(distance), distance, jnp.inf)
        alone = ~present | jnp.eye(len(weight), dtype=bool)  # no client is its own neighbour
        near = jnp.sort(jnp.where(alone, jnp.inf, distance), axis=1)
        neighbours = jnp.maximum(jnp.sum(present) - byzantine - 2, 1)
        score = jnp.sum(jnp.where(jnp.arange(len(weight)) < neighbours, near, 0), axis=1)
        chosen = jnp.argmin(jnp.where(present, jnp.minimum(score, LARGE), jnp.inf))
        return jax.tree.map(lambda x: x[chosen], stacked)

    return mean


def _ordered(x: jax.Array, present: jax.Array) -> jax.Array:
    """Each entry's values in ascending order over clients [K, ...], those of absent ones last."""
    return jnp.sort(jnp.where(_over(present, x), x, jnp.inf), axis=0)


def _over(flag: jax.Array, x: jax.Array) -> jax.Array:
    """Flags [K] as [K, 1, ...], to stand beside x [K, ...]."""
    return flag.reshape(-1, *[1] * (x.ndim - 1))


# ---------------------------------------------------------------------- which client


def finite(stacked: PyTree) -> jax.Array:
    """True for each client whose leaves are all finite: leaves [K, ...] -> bool [K]."""
    flags = [
        jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1) for x in jax.tree.leaves(stacked)
    ]
    return jnp.all(jnp.stack(flags), axis=0)


def choose(which: jax.Array, stacked: PyTree, other: PyTree) -> PyTree:
    """Leaves [K, ...]: those of `stacked` if which [K], else those of `other` [K, ...] or [...]."""
    return jax.tree.map(lambda x, y: jnp.where(_over(which, x), x, y), stacked, other)
