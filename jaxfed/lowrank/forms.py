"""Forms: what clients train in place of A and B, and the model's weights that follow from it.

    HADAMARD   W + (A_1 B_1) o (A_2 B_2)         FedPara (Nam et al., ICLR 2022), LoHa
    SHIFTED    W + (A_1 B_1) o (A_2 B_2 + 1)     pFedPara, whose second pair stays at home
    square     W + s A R B, A and B fixed        Fed-SB (arXiv 2502.15436)
    heads      W + s sum_i s_i A_i H_i B_i       Ravan (Raje et al., NeurIPS 2025); A_i, B_i fixed
    SEPARABLE  W + s A B, of kernels k x k as    FedHM (Yao et al., arXiv 2111.14655)
               matrices [k in, k out]

o multiplies entry by entry. The row-wise Kronecker products of the two A and of the two B are plain
factors of rank r_1 r_2 with this product. Each form is so written as plain factors, and a model, a
merge and an evaluation know nothing new. What is fixed lies in the base.
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

from jaxfed import values
from jaxfed.lowrank.factors import (
    Factors,
    Theta,
    concat,
    each_layer,
    from_product,
    merge,
    orthonormal,
    product,
    thin_svd,
    uniform,
)

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

    def one(f, g):
        a = f.a[..., :, None] * g.a[..., None, :]  # [in..., r_1, r_2]
        b = f.b[:, None] * g.b[None, :]  # [r_1, r_2, out...]
        a, b = a.reshape(*a.shape[:-2], -1), b.reshape(-1, *b.shape[2:])
        return Factors(a, b, f.scale * g.scale)

    return each_layer(one, first, second)


def _two_pairs(base: dict, theta: Theta, key: jax.Array) -> tuple[dict, Theta]:
    """The task's own pair at each path, and a second one whose product has entries of variance one.

    So W begins as spread as the first product. A kernel of more than one input axis (a convolution
    [h, w, in, out]) gets Tucker cores, FedPara's Proposition 3: A[h, w] = A' T[h, w] with
    A' [in, r] and T [h, w, r, r], 2 r (in + out + h w r) numbers. This start is ours.
    """
    factors, full = dict(theta.factors), dict(theta.full)
    for p, f in theta.factors.items():
        drawn = partial(_drawn, jax.random.fold_in(key, zlib.crc32(p.encode())), f.a.dtype)
        side = (*f.a.shape[: f.stack], *f.a.shape[-2:])
        cores = f.a.ndim - f.stack > 2
        if cores:
            fan_in = math.prod(f.a.shape[f.stack : -1])
            down = drawn(0, side, 1 / (3 * fan_in))
            factors[p] = dataclasses.replace(f, a=down)
            full[p + CORE] = drawn(1, (*f.a.shape[:-2], f.rank, f.rank), 1 / f.rank)
            full[p + SECOND + CORE] = drawn(2, full[p + CORE].shape, f.rank ** (-2 / 3))
        variance = f.rank ** (-2 / 3 if cores else -1 / 2)
        a, b = drawn(3, side, variance), drawn(4, f.b.shape, variance)
        factors[p + SECOND] = Factors(a, b, 1.0, f.stack)
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
        rank, held = f.rank * g.rank, f.rank * f.layers
        sides = f.a.size // held, f.b.size // held
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

    def one(f, core):
        return dataclasses.replace(f, a=jnp.einsum("ip,...pq->...iq", f.a, core))

    return each_layer(one, f, core)


HADAMARD = Form(_two_pairs, partial(_united, shifted=False))
"""FedPara: (A_1 B_1) o (A_2 B_2), of rank r^2 at most, from 2 r (in + out) numbers."""

SHIFTED = Form(_two_pairs, partial(_united, shifted=True))
"""pFedPara: (A_1 B_1) o (A_2 B_2 + 1). The leaves with "@2" in their path stay with clients."""


# ---------------------------------------------------------------------- between fixed factors

FIXED = "fixed/"  # base["fixed/PATH/a"] and b hold the fixed factors of the weight at PATH
SCALES = "@scales"  # follows a path: one scale for each head, while a client trains


def square(along: Callable[[dict, Theta], Mapping[str, jax.Array]] | None = None) -> Form:
    """The form whose r x r core R alone is trained, from zero: r^2 numbers for each weight.

    A and B are the first r singular vectors, on either side, of the matrix {path: ...} that
    `along(base, theta)` gives: for Fed-SB the first gradient (`combine.gradient_of`). By default
    they are W's own, as in LoRA-XS (arXiv 2405.17604). The mean of R is the mean of the products.
    """

    def begin(base, theta, key):
        matrices = merge(base, theta) if along is None else along(base, theta)

        def fixed(p, f):
            return each_layer(partial(_singular, p), f, matrices[p].astype(f.a.dtype))

        return _around_cores(base, theta, fixed, ())

    return Form(begin, partial(_with_cores, axes=2))


def _singular(path: str, f: Factors, matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a, b) of f's shapes: the first singular vectors of a matrix [in..., out...]."""
    u, _, vt = thin_svd(matrix.reshape(f.a.size // f.rank, -1))
    if f.rank > len(vt):
        raise ValueError(
            f"rank={f.rank} is above {path}'s smaller side, {len(vt)}; use at most that"
        )
    return u[:, : f.rank].reshape(f.a.shape), vt[: f.rank].reshape(f.b.shape)


def heads(count: int) -> Form:
    """The form of so many heads, whose r x r cores H_i alone are trained, from zero.

    All A_i together have orthonormal columns, drawn at random, and all B_i orthonormal rows;
    ValueError if count times r is above a weight's smaller side.
    """
    values.whole("count", count, 1)

    def begin(base, theta, key):
        def fixed(p, f):
            own = jax.random.fold_in(key, zlib.crc32(p.encode()))
            own = jax.random.split(own, f.a.shape[: f.stack]) if f.stack else own
            return each_layer(partial(_random, p, count), f, own)

        return _around_cores(base, theta, fixed, (count,))

    return Form(begin, partial(_with_cores, axes=3))


def _random(path: str, count: int, f: Factors, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a [in..., count r], b [count r, out...]) with orthonormal columns and rows."""
    width = count * f.rank
    sides = math.prod(f.a.shape[:-1]), math.prod(f.b.shape[1:])
    if width > min(sides):
        raise ValueError(
            f"{count} heads of rank {f.rank} are above {path}'s smaller side, {min(sides)}; "
            "use fewer, or a lower rank"
        )
    keys = jax.random.split(key)
    drawn = (jax.random.normal(k, (n, width)) for k, n in zip(keys, sides, strict=True))
    a, bt = (orthonormal(x.astype(f.a.dtype)) for x in drawn)
    return a.reshape(*f.a.shape[:-1], width), bt.T.reshape(width, *f.b.shape[1:])


def folded(theta: Theta) -> Theta:
    """Theta with s_i H_i in the place of H_i and of the scales."""
    full = {p: w for p, w in theta.full.items() if not p.endswith(SCALES)}
    for p, scales in theta.full.items():
        if p.endswith(SCALES):
            core = p.removesuffix(SCALES) + CORE
            full[core] = full[core] * scales[..., None, None]
    return theta._replace(full=full)


def _around_cores(
    base: dict, theta: Theta, fixed: Callable, count: tuple[int, ...]
) -> tuple[dict, Theta]:
    """(base with fixed factors, s a and b; theta with cores of zeros in the place of factors).

    W takes the product of the task's factors, so the model begins where the task's does.
    """
    base, full = merge(base, theta), dict(theta.full)
    for p, f in theta.factors.items():
        a, b = fixed(p, f)
        base |= {f"{FIXED}{p}/a": f.scale * a, f"{FIXED}{p}/b": b}
        full[p + CORE] = jnp.zeros((*f.a.shape[: f.stack], *count, f.rank, f.rank), f.a.dtype)
    return base, Theta(full, {})


def _with_cores(base: Mapping, theta: Theta, *, axes: int) -> tuple[dict, Theta]:
    """Plain factors s a and R b; of heads, those of all heads beside each other.

    `axes` is how many a core has in one layer.
    """
    weights = {p: w for p, w in base.items() if not p.startswith(FIXED)}
    theta, factors = folded(theta), {}
    for name, core in theta.full.items():
        if name.endswith(CORE):
            p = name.removesuffix(CORE)
            a, b = (base[f"{FIXED}{p}/{side}"] for side in "ab")
            stack, rows = core.ndim - axes, core.shape[-1]
            each = core.reshape(*core.shape[:stack], -1, rows, rows)  # [..., heads, r, r]
            inner = jnp.einsum("...hqr,...hrn->...hqn", each, b.reshape(*each.shape[:-1], -1))
            factors[p] = Factors(a, inner.reshape(b.shape), 1.0, stack)
    full = {p: w for p, w in theta.full.items() if not p.endswith(CORE)}
    return weights, Theta(full, factors)


# ---------------------------------------------------------------------- kernels as matrices


def reshaped(kernel: jax.Array) -> jax.Array:
    """A convolution [h, w, in, out] as the tensor [w, in, h, out], a matrix of w in by h out.

    Other weights as they are.
    """
    return jnp.transpose(kernel, (1, 2, 0, 3)) if kernel.ndim == 4 else kernel


def restored(tensor: jax.Array) -> jax.Array:
    """The kernel of which `reshaped` makes this tensor."""
    return jnp.transpose(tensor, (2, 0, 1, 3)) if tensor.ndim == 4 else tensor


def _separable(base: dict, theta: Theta, key: jax.Array) -> tuple[dict, Theta]:
    """Factors a [w, in, r], b [r, h, out] of each convolution, the best of the task's product."""

    def one(f):
        if f.a.ndim != 4:
            return f
        return from_product(reshaped(product(f)), 2, f.rank, f.scale)

    return base, theta._replace(factors={p: each_layer(one, f) for p, f in theta.factors.items()})


def _joint(base: Mapping, theta: Theta) -> tuple[dict, Theta]:
    """Plain factors of rank h r: a[h', w, in, (h, r)] = [h' = h] a[w, in, r], b[(h, r), out]."""

    def one(f):
        if f.a.ndim != 3 or f.b.ndim != 3:
            return f
        rank, high, out = f.b.shape
        a = jnp.einsum("gh,wir->gwihr", jnp.eye(high, dtype=f.a.dtype), f.a)
        b = jnp.swapaxes(f.b, 0, 1).reshape(high * rank, out)
        return dataclasses.replace(f, a=a.reshape(*a.shape[:3], high * rank), b=b)

    factors = {p: each_layer(one, f) for p, f in theta.factors.items()}
    return dict(base), theta._replace(factors=factors)


SEPARABLE = Form(_separable, _joint)
"""A k x k convolution as a k x 1 one after a 1 x k one, of r channels between them."""
