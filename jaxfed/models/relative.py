"""Attention that also reads how far apart two positions are (DeBERTa, arXiv 2006.03654)."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Relative(NamedTuple):
    """How the distance i - j enters the score of a query at i and a key at j.

    With `buckets`, distances beyond half of them share logarithmic buckets up to `farthest`; -1
    gives each its own row up to `farthest`. `kinds` are "c2p", query i times the key of the
    distance, and "p2c", the query of the distance times key j. These come from the layer's own
    dense layers if they are `shared`, else from `place_key` and `place_query`. `norm` puts a
    LayerNorm on the table.
    """

    buckets: int
    farthest: int
    kinds: tuple[str, ...]
    shared: bool
    norm: bool

    @property
    def span(self) -> int:
        """Rows of the table for distances of either sign."""
        return self.buckets if self.buckets > 0 else self.farthest

    def rows(self, length: int) -> np.ndarray:
        """The row of the table for each pair of positions, int32 [L, L]."""
        distance = np.arange(length)[:, None] - np.arange(length)
        if self.buckets > 0:
            distance = bucket(distance, self.buckets, self.farthest)
        return np.clip(distance + self.span, 0, 2 * self.span - 1).astype(np.int32)

    def used(self, length: int) -> tuple[jax.Array, jax.Array]:
        """(the rows [R] that texts of this length use, and which of these each pair has [L, L])."""
        rows = self.rows(length)
        first, last = int(rows.min()), int(rows.max())
        return jnp.arange(first, last + 1), jnp.asarray(rows - first)


def bucket(distance: np.ndarray, buckets: int, farthest: int) -> np.ndarray:
    """Distances with the larger ones in logarithmic buckets: m = buckets / 2, and for |d| > m

    sign(d) (m + ceil(log(|d| / m) / log((farthest - 1) / m) (m - 1))), in float32 as in its files.
    """
    m = buckets // 2
    far = np.maximum(np.abs(distance), m).astype(np.float32)
    ratio = np.log(far / np.float32(m)) / np.log(np.float32((farthest - 1) / m))
    log = np.ceil(ratio * np.float32(m - 1)).astype(np.int64) + m
    return np.where(np.abs(distance) <= m, distance, np.sign(distance) * log)


def scale(kinds: tuple[str, ...], width: int) -> float:
    """By what scores of heads of that width are multiplied: one term for each kind and one more."""
    return 1 / math.sqrt(width * (1 + len(kinds)))


def scores(
    q: jax.Array, k: jax.Array, key: jax.Array | None, query: jax.Array | None, rows: jax.Array
) -> jax.Array:
    """Terms [B, heads, Q, L] of distances, for q [B, Q, heads, h] scaled and k [B, L, heads, h].

    `key` and `query` are [R, heads, h], the latter scaled, and `rows` [Q, L] number them.
    """
    total = jnp.zeros((), q.dtype)
    if key is not None:
        each = jnp.einsum("bqhd,rhd->bhqr", q, key)
        total = total + jnp.take_along_axis(each, rows[None, None], axis=-1)
    if query is not None:
        each = jnp.einsum("bkhd,rhd->bhrk", k, query)
        total = total + jnp.take_along_axis(each, rows[None, None], axis=-2)
    return total
