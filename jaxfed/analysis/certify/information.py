"""The least bytes that an upload can be sent in, by the codes that the zoo's methods use."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import trees
from jaxfed.algorithm import PyTree

GRID = 2**16  # levels, above which numbers are no multiples of a step


def least(
    uploads: Sequence[PyTree],
    previous: Sequence[PyTree] | None,
    messages: Sequence[PyTree] | None = None,
) -> int:
    """Bytes that a client needs for its uploads of a round, given those of its round before.

    A receiver that kept the last upload needs the change alone (EF21), if that is less. One that
    knows the messages may need their sums with the uploads, where these are alike: of a client that
    has some of the components alone, its upload takes off the others.
    """
    codes = [_bytes(uploads)]
    if previous is not None:
        codes.append(_bytes(_combined(np.subtract, uploads, previous)))
    known, sent = jax.tree.leaves(messages), jax.tree.leaves(uploads)
    if trees.shapes(known) == trees.shapes(sent):  # the trees may have other names
        codes.append(_bytes(_combined(np.add, known, sent)))
    return min(codes)


def _combined(operator: Callable, x: Sequence[PyTree], y: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda a, b: operator(np.asarray(a), np.asarray(b)), list(x), list(y))


def _bytes(tree: PyTree) -> int:
    return sum(_leaf(np.asarray(x)) for x in jax.tree.leaves(tree))


def _leaf(x: np.ndarray) -> int:
    """The shortest of four codes: the non-zeros, the factors of a low rank, a codebook, a grid.

    Positions of non-zeros, signs and headers are not counted, so this is a lower bound.
    """
    values = x[x != 0]
    if not values.size or x.dtype.kind not in "fiu":
        return 0
    size = _width(x)
    codes = [values.size * size]
    if x.ndim >= 2:
        matrix = x.reshape(-1, x.shape[-1]).astype(np.float64)
        rank = int(np.linalg.matrix_rank(matrix, tol=1e-5 * np.abs(matrix).max()))
        codes.append(rank * (sum(matrix.shape) - rank) * size)
    levels = np.unique(np.abs(values))
    codes.append(levels.size * size + values.size * _bits(levels.size) // 8)
    for points in (np.append(levels, 0), np.append(x, 0) - min(x.min(), 0)):
        scaled = np.unique(np.round(points.astype(np.float64) / np.abs(x).max(), 6))
        if multiples := _multiples(scaled):
            codes.append(size + values.size * _bits(multiples + 1) // 8)
    return min(codes)


def _width(x: np.ndarray) -> int:
    """Bytes of one number: 2 if a type of half precision holds all of them."""
    halves = (jnp.float16, jnp.bfloat16) if x.dtype.kind == "f" else ()
    with np.errstate(over="ignore"):
        held = any(np.array_equal(x.astype(half).astype(x.dtype), x) for half in halves)
    return min(2, x.dtype.itemsize) if held else x.dtype.itemsize


def _multiples(points: np.ndarray) -> int:
    """The largest multiple if ascending numbers from 0 are multiples of a step; 0 if not."""
    for part in range(1, 9):
        multiples = points * part / np.diff(points).min()
        if multiples[-1] < GRID and np.allclose(multiples, np.round(multiples), atol=1e-2):
            return int(np.round(multiples[-1]))
    return 0


def _bits(levels: int) -> int:
    return int(np.ceil(np.log2(max(levels, 1))))
