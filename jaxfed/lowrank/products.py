"""Products of inputs and a weight, in the form whose gradients a CPU computes fast.

The gradient of w in y = x w is x' g. As autodiff writes it, XLA's compiler for CPUs

* transposes all of g in memory if it has more axes than a matrix;
* puts x on the left, and transposes it there, also where g is far narrower, as it is for factors.

Either makes the gradient of a factor slower than it is here, up to seven times
(`python benchmarks/costs/factor_gradients.py`). The products that are summed are the same. On
other platforms `times` is the plain product.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def times(x: jax.Array, w: jax.Array, precision: lax.PrecisionLike = None) -> jax.Array:
    """x [..., d] times w [d, n] -> [..., n], on a CPU as a product of two matrices."""
    flat, plain = partial(_flat, precision=precision), partial(jnp.matmul, precision=precision)
    return lax.platform_dependent(x, w, cpu=flat, default=plain)


def _flat(x, w, precision):
    *rows, d = x.shape
    y = jnp.matmul(x.reshape(math.prod(rows), d), narrow_left(w), precision=precision)
    return y.reshape(*rows, w.shape[-1])


def narrow_left(w: jax.Array) -> jax.Array:
    """w [..., d, n] itself, to multiply x [..., d] by; its gradient is (g' x)' if n is below d."""
    return _narrow_left(w) if w.shape[-1] < w.shape[-2] else w


@jax.custom_jvp
def _narrow_left(w):
    return w


@_narrow_left.defjvp
def _derivative(w, tangent):
    return _narrow_left(*w), lax.platform_dependent(*tangent, cpu=_turned, default=lambda t: t)


def _turned(t):
    """t itself. In its transpose XLA cannot simplify (g' x)' to x' g, which would be slower."""
    return lax.optimization_barrier(t.swapaxes(-1, -2)).swapaxes(-1, -2)
