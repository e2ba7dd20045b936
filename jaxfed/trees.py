"""Facts about trees of arrays: bytes, numbers, shapes, paths; and which leaves are statistics."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed.algorithm import Leaf, PyTree


def nbytes(tree: PyTree) -> int:
    """How many bytes a tree of arrays or shapes holds."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def size(tree: PyTree) -> int:
    """How many numbers a tree holds."""
    return sum(x.size for x in jax.tree.leaves(tree))


def zeros_in_place_of(function: Callable) -> Callable:
    """A function whose results have the shapes of this one's, and that reads no argument."""

    def zeros(*arguments):
        shapes = jax.eval_shape(function, *arguments)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return zeros


def by_path(tree: PyTree) -> dict[str, Any]:
    """{"layer/kernel": leaf} of a tree of dicts; whatever else it holds is a leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, lambda x: not isinstance(x, Mapping))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def shapes(tree: PyTree) -> PyTree:
    """The tree with shapes and types in place of arrays."""

    def shape(x):
        held = x if isinstance(x, jax.ShapeDtypeStruct) else jnp.asarray(x)
        return jax.ShapeDtypeStruct(held.shape, held.dtype)

    return jax.tree.map(shape, tree)


DIGIT = 30  # bits of a digit: sums of two digits fit into an int32


def byte_count(tree: PyTree, declared: PyTree = None) -> jax.Array:
    """The bytes of a tree as two digits, int32 [2]: n = 2^30 first + second.

    With `declared`, the sum of its leaves instead: integers that may be traced, each below 2^31.
    An int32 alone would end at 2 GiB.
    """
    high, low = divmod(nbytes(tree), 2**DIGIT) if declared is None else (0, 0)
    for piece in jax.tree.leaves(declared):
        if not isinstance(piece, int) and not jnp.issubdtype(jnp.asarray(piece).dtype, jnp.integer):
            raise TypeError(f"declared bytes are {jnp.asarray(piece).dtype}; give integers")
        if isinstance(piece, int) and piece >= 2**31:
            raise ValueError(f"declared bytes {piece} do not fit an int32; declare them in pieces")
        low = low + (piece & (2**DIGIT - 1))
        high, low = high + (piece >> DIGIT) + (low >> DIGIT), low & (2**DIGIT - 1)
    return jnp.stack([jnp.asarray(high, jnp.int32), jnp.asarray(low, jnp.int32)])


def nbytes_if(condition: jax.Array, tree: PyTree) -> PyTree:
    """The bytes of each leaf, or zero where a scalar condition fails: to declare what crosses."""
    return jax.tree.map(lambda x: jnp.where(condition, x.nbytes, 0), tree)


def added(counts: Sequence[jax.Array]) -> jax.Array:
    """The sum of byte counts [..., 2], again in two digits."""
    total, *more = counts
    for count in more:
        low = total[..., 1] + count[..., 1]
        high = total[..., 0] + count[..., 0] + (low >> DIGIT)
        total = jnp.stack([high, low & (2**DIGIT - 1)], axis=-1)
    return total


def as_number(count: np.ndarray) -> np.ndarray:
    """Byte counts [..., 2] in two digits as int64 [...], on the host."""
    count = np.asarray(count, np.int64)
    return count[..., 0] * 2**DIGIT + count[..., 1]


# ---------------------------------------------------------------------- running statistics


@partial(jax.tree_util.register_dataclass, data_fields=("value",), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Running:
    """A running statistic among the leaves of theta, such as the mean of a batch norm.

    It is sent, averaged or kept like a weight, but no optimizer moves it. In place of a gradient
    it has s - s', where s' is its next value, and each local step takes s to s'
    (`local.accepting`).
    """

    value: Leaf


def is_running(x: Any) -> bool:
    """True for a running statistic."""
    return isinstance(x, Running)


def running(tree: PyTree) -> list[Running]:
    """The running statistics in a tree."""
    found = jax.tree.leaves(tree, is_leaf=is_running)
    return [x for x in found if is_running(x) and x.value is not None]


def zero_running(tree: PyTree) -> PyTree:
    """The tree with all running statistics at zero."""
    return jax.tree.map(
        lambda x: jax.tree.map(jnp.zeros_like, x) if is_running(x) else x,
        tree,
        is_leaf=is_running,
    )


def apart(tree: PyTree) -> tuple[PyTree, PyTree]:
    """(the tree without running statistics, the running statistics alone), None for what is out."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_running)
    parts = [(None, x) if is_running(x) else (x, None) for x in leaves]
    rest, kept = zip(*parts, strict=True) if parts else ((), ())
    return jax.tree.unflatten(structure, rest), jax.tree.unflatten(structure, kept)


def together(rest: PyTree, kept: PyTree) -> PyTree:
    """The tree from its two parts, as `apart` has them."""
    return jax.tree.map(lambda x, y: y if x is None else x, rest, kept, is_leaf=lambda x: x is None)


def refuse_running(tree: PyTree, why: str) -> None:
    """Raises ValueError, with the reason, if a tree has running statistics."""
    if found := running(tree):
        raise ValueError(
            f"the model keeps {len(found)} running statistics, as nn.BatchNorm does, and {why}; "
            "use nn.GroupNorm or nn.LayerNorm"
        )
