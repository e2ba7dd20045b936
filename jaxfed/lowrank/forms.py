"""Forms: what clients train in place of A and B, and the model's weights that follow from it.

    HADAMARD   W + (A_1 B_1) o (A_2 B_2)         FedPara (Nam et al., ICLR 2022), LoHa
    SHIFTED    W + (A_1 B_1) o (A_2 B_2 + 1)     pFedPara, whose second pair stays at home

o multiplies entry by entry. The row-wise Kronecker products of the two A and of the two B are plain
factors of rank r_1 r_2 with this product, so a model, a merge and an evaluation know nothing new.
`combine.parametrised` gives an algorithm a form.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfed.lowrank.factors import Factors, Theta, check_unstacked, concat, product, uniform

SECOND = "@2"  # follows a path: its second pair of factors
CORE = "@core"  # follows a path: what stands between its factors


class Form(NamedTuple):
    """How a Theta of factors becomes what clients train, and the way back."""

    begin: Callable[[dict, Theta, jax.Array], tuple[dict, Theta]]
    """(base, theta, key) -> (base, what is trained), for the theta that the task begins with."""

    plain: Callable[[Mapping, Theta], tuple[dict, Theta]]
    """(base, what is trained) -> (base, theta) that the task's model can run."""


# ---------------------------------------------------------------------- two pairs


def hadamard(first: Factors, second: Factors) -> Factors:
    """Factors of rank r_1 r_2 whose product is that of the two products, entry by entry."""
    a = first.a[..., :, None] * second.a[..., None, :]  # [in..., r_1, r_2]
    b = first.b[:, None] * second.b[None, :]  # [r_1, r_2, out...]
    return Factors(
        a.reshape(*a.shape[:-2], -1), b.reshape(-1, *b.shape[2:]), first.scale * second.scale
    )


def _two_pairs(base: dict, theta: Theta, key: jax.Array) -> tuple[dict, Theta]:
    """The task's own pair at each path, and a second one whose product has entries of variance one.

    So W begins as spread as the first product. A kernel of more than one input axis (a convolution
    [h, w, in, out]) gets Tucker cores, FedPara's Proposition 3: A[h, w] = A' T[h, w] with
    A' [in, r] and T [h, w, r, r], 2 r (in + out + h w r) numbers. This start is ours.
    """
    check_unstacked(theta.factors)
    factors, full = dict(theta.factors), dict(theta.full)
    for p, f in theta.factors.items():
        drawn = partial(_drawn, jax.random.fold_in(key, zlib.crc32(p.encode())), f.a.dtype)
        cores = f.a.ndim > 2
        if cores:
            fan_in = math.prod(f.a.shape[:-1])
            down = drawn(0, f.a.shape[-2:], 1 / (3 * fan_in))
            factors[p] = dataclasses.replace(f, a=down)
            full[p + CORE] = drawn(1, (*f.a.shape[:-2], f.rank, f.rank), 1 / f.rank)
            full[p + SECOND + CORE] = drawn(2, full[p + CORE].shape, f.rank ** (-2 / 3))
        variance = f.rank ** (-2 / 3 if cores else -1 / 2)
        a, b = drawn(3, f.a.shape[-2:], variance), drawn(4, f.b.shape, variance)
        factors[p + SECOND] = Factors(a, b, 1.0)
    return base, Theta(full, factors)


def _drawn(
    key: jax.Array, dtype, purpose: int, shape: tuple[int, ...], variance: float
) -> jax.Array:
    """Uniform numbers of that variance, a stream for each purpose."""
    return math.sqrt(3 * variance) * uniform(jax.random.fold_in(key, purpose), shape, 1, dtype)


def _united(base: Mapping, theta: Theta, *, shifted: bool) -> tuple[dict, Theta]:
    """The pairs as plain factors or, where these have more numbers than the weight, in it."""
    weights, factors = dict(base), {}
    for p in theta.factors:
        if p.endswith(SECOND):
            continue
        f, g = (_with_core(theta, name) for name in (p, p + SECOND))
        rank, sides = f.rank * g.rank, (f.a.size // f.rank, f.b.size // f.rank)
        if (rank + shifted * f.rank) * sum(sides) < math.prod(sides):
            both = hadamard(f, g)
            factors[p] = concat(both, f) if shifted else both
        else:
            change = product(f) * (product(g) + shifted)
            weights[p] = weights[p] + change.astype(weights[p].dtype)
    full = {p: w for p, w in theta.full.items() if not p.endswith(CORE)}
    return weights, Theta(full, factors)


def _with_core(theta: Theta, path: str) -> Factors:
    """The factors at a path, with the core between them, if any, taken into a."""
    f, core = theta.factors[path], theta.full.get(path + CORE)
    if core is None:
        return f
    return dataclasses.replace(f, a=jnp.einsum("ip,...pq->...iq", f.a, core))


HADAMARD = Form(_two_pairs, partial(_united, shifted=False))
"""FedPara: (A_1 B_1) o (A_2 B_2), of rank r^2 at most, from 2 r (in + out) numbers."""

SHIFTED = Form(_two_pairs, partial(_united, shifted=True))
"""pFedPara: (A_1 B_1) o (A_2 B_2 + 1). The leaves with "@2" in their path stay with clients."""
