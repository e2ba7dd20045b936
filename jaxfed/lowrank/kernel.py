"""x W + S B in one kernel for GPUs, by Pallas and Triton.

A block computes a tile of the result: it sums the products of tiles of x and W along d in float32,
adds those of S and B, rank r, and c, and writes the tile once. LoRA's fused kernels are split at
S = x A in the same way: to compute S within would repeat it for every tile of a row. Under vmap
over clients these are an axis of the grid, and W, which has none, is shared.

A client with few rows fills a tile badly, and reads the whole of W through the cache.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

TILE = 128  # rows and columns of a tile, at most
DEPTH = 128  # bytes of a row of x that a block multiplies at once, at most
LEAST = 16  # side of a product in Triton


def added(
    x: jax.Array,
    w: jax.Array,
    s: jax.Array,
    b: jax.Array,
    bias: jax.Array | None,
    *,
    out: jnp.dtype,
    turned: bool,
    interpret: bool,
) -> jax.Array:
    """x w + s b + bias: x [rows, d], w [d, n], s [rows, r], b [r, n] -> [rows, n] in the type out.

    w [n, d] and b [n, r] if `turned`. `interpret` runs it on any device, slowly.
    """
    rows, columns = len(x), w.shape[0 if turned else 1]
    tile = min(TILE, _power(rows)), min(TILE, _power(columns))
    pairs = [x, w] + ([s, b] if s.shape[1] else [])
    return pl.pallas_call(
        partial(_tile, tile, turned, len(pairs)),
        grid=(pl.cdiv(rows, tile[0]) * pl.cdiv(columns, tile[1]),),
        out_shape=jax.ShapeDtypeStruct((rows, columns), out),
        compiler_params=triton.CompilerParams(num_warps=8 if math.prod(tile) > 2**13 else 4),
        interpret=interpret,
        name="low_rank_sum",
    )(*pairs, *([] if bias is None else [bias]))


def _power(n: int) -> int:
    """The least power of two from n, and from LEAST, on."""
    return max(LEAST, 1 << (n - 1).bit_length())


def _tile(tile, turned, paired, *refs):
    """One tile of the result: products of each pair of the first `paired` matrices, and a bias."""
    pairs, bias, y_ref = refs[:paired], refs[paired:-1], refs[-1]
    rows, columns = y_ref.shape
    row, column = jnp.divmod(pl.program_id(0), pl.cdiv(columns, tile[1]))
    down, across = _span(row * tile[0], tile[0], rows), _span(column * tile[1], tile[1], columns)
    sums = jnp.zeros(tile, jnp.float32)
    for left, right in zip(pairs[::2], pairs[1::2], strict=True):
        sums = _added(sums, left, right, down, across, turned)
    if bias:
        at, real = across
        sums += triton.load(bias[0].at[at], mask=real, other=0).astype(jnp.float32)[None]
    triton.store(_at(y_ref, down, across), sums.astype(y_ref.dtype), mask=_real(down, across))


def _added(sums, left, right, down, across, turned):
    """The sums with those of left [down, :] times right [:, across], or turned [across, :]."""
    wide = jnp.promote_types(left.dtype, right.dtype)
    length = left.shape[1]
    deep = min(DEPTH // wide.itemsize, _power(length))

    def add(i, sums):
        part = _span(i * deep, deep, length)
        x = _read(left, down, part)
        w = _read(right, across, part).T if turned else _read(right, part, across)
        return sums + triton.dot(x.astype(wide), w.astype(wide)).astype(sums.dtype)

    return lax.fori_loop(0, pl.cdiv(length, deep), add, sums)


def _span(start, length, end):
    """(indices from `start` on, which of them are below `end`)."""
    return pl.ds(start, length), start + jnp.arange(length) < end


def _read(ref, first, second):
    """The tile of a matrix at two spans, zero beyond its ends."""
    return triton.load(_at(ref, first, second), mask=_real(first, second), other=0)


def _at(ref, first, second):
    return ref.at[first[0], second[0]]


def _real(first, second):
    return first[1][:, None] & second[1][None]
