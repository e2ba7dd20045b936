"""The change of the weights by training: W_t - W_0 of each layer, its singular values and ranks."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxfed import lowrank
from jaxfed.algorithm import PyTree
from jaxfed.analysis import operators
from jaxfed.lowrank.factors import Theta


def change(before: tuple[PyTree, Theta], after: tuple[PyTree, Theta]) -> dict[str, jax.Array]:
    """{path: W_t - W_0} of every weight, with factors folded in at both times.

    `before` and `after` are (base, theta) of the same model. Merges in between do not matter.
    """
    old, new = (operators.whole(*pair)[1].full for pair in (before, after))
    return jax.tree.map(jnp.subtract, new, old)


def singular_values(weight: jax.Array, inputs: int | None = None) -> jax.Array:
    """The singular values [min(in, out)] of a weight [in..., out...] as a matrix, largest first.

    `inputs` is the number of leading axes that are inputs; by default all axes but the last.
    """
    rows = lowrank.Layer(weight.shape, weight.ndim - 1 if inputs is None else inputs).sides[0]
    return jnp.linalg.svd(weight.reshape(rows, -1), compute_uv=False)


def stable_rank(sigma: jax.Array) -> jax.Array:
    """sum sigma_i^2 / sigma_1^2 of singular values [..., n], largest first; zero if all are."""
    first = sigma[..., 0]
    return jnp.sum(sigma**2, -1) / jnp.where(first > 0, first, 1) ** 2


def effective_rank(sigma: jax.Array) -> jax.Array:
    """exp(-sum p_i log p_i) with p = sigma / sum sigma (Roy and Vetterli, EUSIPCO 2007)."""
    total = jnp.sum(sigma, -1, keepdims=True)
    p = sigma / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), -1)
    return jnp.where(total[..., 0] > 0, jnp.exp(entropy), 0)


def share(vectors: PyTree, update: PyTree) -> jax.Array:
    """||V'd||^2 / ||d||^2: the share of the update d in the span of orthonormal `vectors`.

    `vectors` has leaves [count, ...], otherwise like those of d, as spectrum.largest gives them. A
    random update in n dimensions has the share count / n on average.
    """
    along = [
        jnp.tensordot(v, d, axes=d.ndim)
        for v, d in zip(jax.tree.leaves(vectors), jax.tree.leaves(update), strict=True)
    ]
    length = sum(jnp.sum(d**2) for d in jax.tree.leaves(update))
    return jnp.sum(sum(along[1:], along[0]) ** 2) / jnp.where(length > 0, length, 1)


def shown(weights: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """{path: singular values} of the weights that have more than one axis."""
    return {p: singular_values(w) for p, w in weights.items() if w.ndim > 1}
