"""A model with low-rank terms beside its layers; models stay unmodified flax.linen modules."""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxfed.lowrank.factors import Factors, Layer, Theta


def layers(model: nn.Module, *args, **kwargs) -> dict[str, Layer]:
    """{path: Layer} of every weight of `model` that can carry factors, found by tracing a call."""
    found: dict[str, Layer] = {}

    def record(next_fun, args, kwargs, context):
        result = next_fun(*args, **kwargs)
        module, kind = context.module, _kind(context.module)
        if kind and context.method_name in ("__call__", "attend"):
            path = "/".join((*module.path, kind))
            shape = module.variables["params"][kind].shape
            found[path] = Layer(shape, _inputs(module, shape))
        return result

    with nn.intercept_methods(record):
        jax.eval_shape(partial(model.init, **kwargs), jax.random.key(0), *args)
    return found


def _kind(module: nn.Module) -> str | None:
    """The name of the weight of `module` that can carry factors, if any."""
    if isinstance(module, nn.Dense):
        return "kernel"
    if isinstance(module, nn.DenseGeneral):
        return "kernel" if not module.batch_dims else None
    if isinstance(module, nn.Conv):  # one without a path may be the low-rank term's own, in _down
        return "kernel" if module.feature_group_count == 1 and module.path else None
    return "embedding" if isinstance(module, nn.Embed) else None


def _inputs(module: nn.Module, shape: tuple[int, ...]) -> int:
    if isinstance(module, nn.DenseGeneral):
        return len(module.axis) if isinstance(module.axis, tuple | list) else 1
    return len(shape) - 1


def apply(
    model: nn.Module,
    base: Mapping[str, jax.Array],
    theta: Theta,
    *args,
    dropout: float = 0.0,
    key: jax.Array | None = None,
    **kwargs,
) -> Any:
    """model(*args) with the trained weights in place and the low-rank terms added.

    With `dropout` above zero and a key, x a is dropped out before b (the authors' code drops 0.1).
    """
    params = traverse_util.unflatten_dict({**base, **theta.full}, sep="/")

    def interceptor(next_fun, args, kwargs, context):
        y = next_fun(*args, **kwargs)
        module = context.module
        kind = _kind(module) if context.method_name in _RULES else None
        path = "/".join((*module.path, kind)) if kind else ""
        if path not in theta.factors:
            return y
        f = theta.factors[path]
        drop = partial(_dropout, dropout, key, path)
        return y + _RULES[context.method_name](module, f, args[0], drop).astype(y.dtype)

    with nn.intercept_methods(interceptor):
        return model.apply({"params": params}, *args, **kwargs)


def _dropout(rate: float, key: jax.Array | None, path: str, h: jax.Array) -> jax.Array:
    if rate == 0.0 or key is None:
        return h
    kept = jax.random.bernoulli(
        jax.random.fold_in(key, zlib.crc32(path.encode())), 1 - rate, h.shape
    )
    return jnp.where(kept, h / (1 - rate), 0)


def _call(module: nn.Module, f: Factors, x: jax.Array, drop: Callable) -> jax.Array:
    """The low-rank term s (x a) b of one layer."""
    return jnp.tensordot(drop(_down(module, f, x)) * f.scale, f.b, axes=1)


def _down(module: nn.Module, f: Factors, x: jax.Array) -> Any:
    """x a [..., r], as the layer itself would apply a weight of r outputs."""
    if isinstance(module, nn.Embed):
        return f.a[x]
    if isinstance(module, nn.Conv):
        narrow = module.clone(features=f.rank, use_bias=False, parent=None, name=None)
        return narrow.apply({"params": {"kernel": f.a}}, x)
    axis = getattr(module, "axis", -1)
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    axes = sorted(i % x.ndim for i in axes)  # the order in which DenseGeneral's kernel has them
    return jnp.tensordot(x, f.a, axes=(axes, list(range(len(axes)))))


def _attend(module: nn.Module, f: Factors, query: jax.Array, drop: Callable) -> jax.Array:
    """The low-rank term of Embed.attend: query (a b)^T."""
    return jnp.tensordot(drop(query @ f.b.T) * f.scale, f.a.T, axes=1)


_RULES: dict[str, Callable[[nn.Module, Factors, jax.Array, Callable], jax.Array]] = {
    "__call__": _call,
    "attend": _attend,
}
