"""A dense layer and its low-rank term in one pass over memory, for GPUs.

    y = x W + s ((x A) o m) B + c

m is what a layer multiplies x A by: dropout's mask, the weights of a gate. As products of matrices,
XLA moves 7 arrays of x's size on a GPU (5 from JAX 0.12 on): x is read for x A and for x W, x W and
the term are written, and both are read for their sum. A gradient moves 9 (7) more. Here x A comes
first, and one kernel (lowrank/kernel.py) adds its product with B to the sums of x W before it
writes them: 3 arrays, and 5 more for the gradient. What follows a layer, such as an activation,
then needs a loop of its own.

The gradient with respect to x has the layer's own form, g W' + s ((g B') o m) A', and is computed
likewise. Second derivatives are there as well; a forward derivative needs a gradient within, as in
`hypergrad.hvp`.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

form = jax.make_user_context(None)
"""`with form("kernel"): ...` computes the dense layers with factors that are traced within so.

"interpreted" is the kernel on any device, slowly, and None the products of matrices.
"""


class _Plan(NamedTuple):
    """How x W + S B + c is computed."""

    interpret: bool
    inside: Any  # type in which x and W are multiplied
    out: Any  # type of the result
    scale: float = 1.0  # s
    turned: bool = False  # W is [n, d] and B [n, r], not [d, n] and [r, n]


def suits(module: nn.Module, method: str) -> bool:
    """True if the kernel is in use and can compute this method of a layer.

    It can compute calls of flax's own dense layer that sums in float32 at JAX's default precision.
    """
    if form.value is None or method != "__call__" or type(module) is not nn.Dense:
        return False
    dot = module.dot_general or lax.dot_general
    plain = getattr(dot, "func", dot) is lax.dot_general and module.dot_general_cls is None
    wide = jnp.promote_types(module.dtype or module.variables["params"]["kernel"].dtype, "float32")
    return plain and module.precision is None and wide == jnp.float32


def dense(
    module: nn.Dense,
    x: jax.Array,
    a: jax.Array,
    b: jax.Array,
    scale: float,
    weights: jax.Array | None,
) -> jax.Array:
    """The output [..., n] of a dense layer with factors, by the kernel, in the layer's types.

    `weights` [..., r] multiply x a; None is ones.
    """
    own, rows = module.variables["params"], x.shape[:-1]
    kernel, bias = own["kernel"], own.get("bias")
    inside = jnp.dtype(module.dtype or jnp.promote_types(x.dtype, kernel.dtype))
    sums = getattr(module.dot_general, "keywords", {}).get("preferred_element_type")
    plan = _Plan(form.value == "interpreted", inside, jnp.dtype(sums or inside), scale)
    flat = x.reshape(-1, x.shape[-1])
    if weights is not None:
        weights = weights.reshape(len(flat), len(b))
    return _layer(plan, flat, kernel, a, b, weights, bias).reshape(*rows, -1)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _layer(plan, x, w, a, b, weights, bias):
    return _forward(plan, x, w, a, b, weights, bias)[0]


def _forward(plan, x, w, a, b, weights, bias):
    h = x @ a  # [rows, r]
    y = _sum(plan, x, w, _weighed(plan, h, weights), b, bias)
    return y, (x, w, a, b, weights, bias, h)


def _backward(plan, kept, g):
    x, w, a, b, weights, bias, h = kept
    turned = _Plan(plan.interpret, jnp.promote_types(g.dtype, w.dtype), x.dtype, turned=True)
    u = _times(g, b, turned=True)  # [rows, r]
    down = _weighed(plan, u, weights)
    return (
        _sum(turned, g, w, down, a, None),
        _across(x, g, w),
        _across(x, down, a),
        _across(_weighed(plan, h, weights), g, b),
        None if weights is None else (plan.scale * u * h).astype(weights.dtype),
        None if bias is None else jnp.sum(g, 0, jnp.float32).astype(bias.dtype),
    )


_layer.defvjp(_forward, _backward)


def _weighed(plan: _Plan, h: jax.Array, weights: jax.Array | None) -> jax.Array:
    return h * plan.scale if weights is None else h * (plan.scale * weights)


def _times(x: jax.Array, w: jax.Array, *, turned: bool) -> jax.Array:
    """x [rows, d] times w, [d, n] or turned [n, d], summed in float32."""
    wide = jnp.promote_types(x.dtype, w.dtype)
    axes = (((1,), (1 if turned else 0,)), ((), ()))
    return lax.dot_general(x.astype(wide), w.astype(wide), axes, preferred_element_type=jnp.float32)


def _across(x: jax.Array, g: jax.Array, like: jax.Array) -> jax.Array:
    """x' g, the gradient of a factor, in its type."""
    return _times(x.T, g, turned=False).astype(like.dtype)


def _sum(plan, x, w, s, b, bias):
    """x W + S B + c: x [rows, d], s [rows, r] -> [rows, n]."""
    return _sum_p.bind(x, w, s, b, *([] if bias is None else [bias]), plan=plan, axes=())


def _kernel(plan, x, w, s, b, bias=None):
    """The sum in one kernel."""
    from jaxfed.lowrank import kernel  # here, for Pallas takes 0.1 s to import

    x, w = x.astype(plan.inside), w.astype(plan.inside)
    how = {"out": plan.out, "turned": plan.turned, "interpret": plan.interpret}
    return kernel.added(x, w, s, b, bias, **how)


def _products(plan, x, w, s, b, bias=None):
    """The sum as plain products, which JAX can differentiate as often as one likes."""
    x, w = x.astype(plan.inside), w.astype(plan.inside)
    y = _times(x, w, turned=plan.turned) + _times(s, b, turned=plan.turned)
    return (y if bias is None else y + bias.astype(y.dtype)).astype(plan.out)


# A primitive, because rules of custom_jvp are lost within those of custom_vjp in a scan. `axes` are
# the axes of each vmap, the innermost first.
_sum_p = Primitive("low_rank_sum")


def _vmapped(function, *operands, plan, axes):
    function = partial(function, plan)
    for each in axes:
        function = jax.vmap(function, each)
    return function(*operands)


def _shape(*operands, **params):
    found = jax.eval_shape(partial(_vmapped, _products, **params), *operands)
    return jax.core.ShapedArray(found.shape, found.dtype)


def _derivative(operands, tangents, **params):
    moving = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]

    def plain(*moved):
        found = {**dict(enumerate(operands)), **dict(zip(moving, moved, strict=True))}
        return _vmapped(_products, *found.values(), **params)

    here, there = ([x[i] for i in moving] for x in (operands, tangents))
    return _sum_p.bind(*operands, **params), jax.jvp(plain, here, there)[1]


def _batched(operands, at, *, plan, axes):
    return _sum_p.bind(*operands, plan=plan, axes=(*axes, tuple(at))), 0


_computed = partial(_vmapped, _kernel)
_sum_p.def_impl(_computed)
_sum_p.def_abstract_eval(_shape)
ad.primitive_jvps[_sum_p] = _derivative
batching.primitive_batchers[_sum_p] = _batched
mlir.register_lowering(_sum_p, mlir.lower_fun(_computed, multiple_results=False))
