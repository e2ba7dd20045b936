"""A round of T trials as several vmapped at once, and group after group."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def group(trials: int, most: int | None) -> int:
    """The largest size of at most `most` of which groups can be made of so many trials."""
    if most is None:
        return trials
    return max(n for n in range(1, max(1, most) + 1) if trials % n == 0)


def in_groups(
    function: Callable,
    axes: Sequence[int | None],
    out_axes: Sequence[int | None],
    changing: slice,
    most: int | None,
) -> Callable:
    """A trial's function of leaves, for T trials of which at most `most` are computed at once.

    Leaves of axis 0 are [T, ...], and all share others. Its first results are what the `changing`
    leaves become, which are written in their place. A trial that is computed alone has no axis of
    length one, which would make its products of matrices slower.
    """
    many = jax.vmap(function, in_axes=tuple(axes), out_axes=list(out_axes))

    def run(*leaves: jax.Array) -> list[jax.Array]:
        trials = next(len(x) for x, axis in zip(leaves, axes, strict=True) if axis == 0)
        size = group(trials, most)
        if size == trials:
            return many(*leaves)

        def at(x: jax.Array, axis: int | None, i: Any) -> jax.Array:
            if axis is None:
                return x
            if size == 1:
                return jax.lax.dynamic_index_in_dim(x, i, keepdims=False)
            return jax.lax.dynamic_slice_in_dim(x, i * size, size)

        def put(x: jax.Array, new: jax.Array, axis: int | None, i: Any) -> jax.Array:
            if axis is None:
                return new
            if size == 1:
                return jax.lax.dynamic_update_index_in_dim(x, new, i, axis=0)
            return jax.lax.dynamic_update_slice_in_dim(x, new, i * size, axis=0)

        def part(i: Any, results: Sequence[jax.Array]) -> list[jax.Array]:
            """The results of group i, whose changing leaves are as they were."""
            own = zip(leaves[changing], results, axes[changing], strict=False)  # metrics are last
            mine = [x if axis is None else y for x, y, axis in own]
            now = [*leaves[: changing.start], *mine, *leaves[changing.stop :]]
            mapped = [at(x, axis, i) for x, axis in zip(now, axes, strict=True)]
            return (function if size == 1 else many)(*mapped)

        def step(i: Any, results: list[jax.Array]) -> list[jax.Array]:
            found = zip(results, part(i, results), out_axes, strict=True)
            return [put(x, new, axis, i) for x, new, axis in found]

        metrics = jax.eval_shape(many, *leaves)[len(leaves[changing]) :]
        empty = [jnp.zeros(s.shape, s.dtype) for s in metrics]
        return jax.lax.fori_loop(0, trials // size, step, [*leaves[changing], *empty])

    return run
