"""Facts about trees of arrays: how many bytes and numbers, which shapes, under which paths."""

import jax
import jax.numpy as jnp

from jaxfed.algorithm import PyTree


def nbytes(tree: PyTree) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def size(tree: PyTree) -> int:
    """How many numbers a tree holds."""
    return sum(x.size for x in jax.tree.leaves(tree))


def shapes(tree: PyTree) -> PyTree:
    """The tree with shapes and types in place of arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype), tree)
