"""A model with low-rank terms beside its layers; models stay unmodified flax.linen modules."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeAlias

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxfed import trees
from jaxfed.algorithm import Leaf
from jaxfed.lowrank import fused, products, quantised
from jaxfed.lowrank.factors import STATISTICS, Factors, Layer, Theta, variables
from jaxfed.lowrank.gates import Gated

Act: TypeAlias = Callable[[nn.Module, str, str, Any, jax.Array], Any]
Where: TypeAlias = Callable[[nn.Module, str, str], bool]


def at_layers(act: Act, without: Where = lambda module, method, path: False) -> Callable:
    """An interceptor that returns act(module, method, path, y, x) for y = method(x) of each layer.

    `path` is that of the layer's weight. Where `without(module, method, path)` is true, the layer
    is not called, and y is None. A method that calls itself, as by super(), is one call of the
    layer, the innermost: what a subclass makes of its output, it makes of the low-rank term.
    """
    acted: list[str] = []

    def interceptor(next_fun, args, kwargs, context):
        before, path = len(acted), weight_path(context.module, context.method_name)
        alone = path is None or not without(context.module, context.method_name, path)
        y = next_fun(*args, **kwargs) if alone else None
        if path is None or path in acted[before:]:
            return y
        acted.append(path)
        return act(context.module, context.method_name, path, y, (*args, *kwargs.values())[0])

    return interceptor


def layers(model: nn.Module, *args, **kwargs) -> dict[str, Layer]:
    """{path: Layer} of every weight of `model` that can carry factors, found by tracing a call."""
    found: dict[str, Layer] = {}

    def record(module, method, path, y, x):
        shape = module.variables["params"][_kind(module)].shape
        found[path] = Layer(shape, _inputs(module, shape))
        return y

    with nn.intercept_methods(at_layers(record)):
        variables = jax.eval_shape(partial(model.init, **kwargs), jax.random.key(0), *args)
    names = [n for path in traverse_util.flatten_dict(variables["params"]) for n in path]
    if slashed := [n for n in names if "/" in n]:
        raise ValueError(
            f"the model calls a parameter {slashed[0]!r}, as nn.WeightNorm and nn.SpectralNorm do, "
            "and slashes divide paths; use layers without it"
        )
    return found


def weight_path(module: nn.Module, method: str) -> str | None:
    """The path of the weight that can carry factors in this method of a layer, if it is one."""
    kind = _kind(module) if method in _RULES else None
    return None if kind is None else "/".join((*module.path, kind))


def _kind(module: nn.Module) -> str | None:
    """The name of the weight of `module` that can carry factors, if any."""
    if isinstance(module, nn.Dense):
        return "kernel"
    if isinstance(module, nn.DenseGeneral):
        return "kernel" if not module.batch_dims else None
    if isinstance(module, nn.Conv):  # one without a path may be the low-rank term's own, in _down
        plain = module.feature_group_count == 1 and module.mask is None
        return "kernel" if plain and module.path else None
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

    A weight with factors may be missing from `base`: its layer then has the low-rank term and its
    bias alone. Quantised kernels are multiplied by as they are stored. With `dropout` above zero
    and a key, x a is dropped out before b (the authors' code drops 0.1).
    """
    stacked = {p: f for p, f in theta.factors.items() if f.stack}
    stored = {p: w for p, w in base.items() if quantised.is_quantised(w)}
    codes = {n: x for p, w in stored.items() for n, x in quantised.beside(p, w).items()}
    plain = {p: w for p, w in base.items() if p not in stored}
    absent = {*theta.factors, *stored} - {*plain, *theta.full}
    held = variables({**plain, **codes, **theta.full, **_beside_weights(stacked)})

    def fuses(module, method, path):
        return path in theta.factors and path not in absent and fused.suits(module, method)

    def without(module, method, path):
        return path in absent or fuses(module, method, path)

    def add(module, method, path, y, x):
        if path in stored:
            y = quantised.called(module, quantised.at(module, stored[path]), x)
        if path not in theta.factors:
            return y
        f: Factors | Gated = theta.factors[path]
        own = key
        if path in stacked:
            f, own = _of_this_layer(module, f, key)
        drop = partial(_dropout, dropout, own, path)
        if isinstance(f, Gated):
            weights = _weights(module, method, f, x)
            f, drop = f.factors, partial(_weigh, drop, weights)
        if fuses(module, method, path):
            ones = jnp.ones((*x.shape[:-1], f.rank), f.a.dtype)
            kept = drop(ones)
            return fused.dense(module, x, f.a, f.b, f.scale, None if kept is ones else kept)
        term = _RULES[method](module, f, x, drop)
        if y is not None:
            return y + term.astype(y.dtype)
        bias = module.variables.get("params", {}).get("bias")
        return term if bias is None else term + bias

    with nn.intercept_methods(at_layers(add, without)):
        return model.apply(held, *args, **kwargs)


def trained(
    model: nn.Module,
    base: Mapping[str, jax.Array],
    theta: Theta,
    *args,
    real: jax.Array,
    **kwargs,
) -> tuple[Any, dict[str, jax.Array]]:
    """(model(*args) in training, {path: next value} of its running statistics), as by `apply`.

    `real` [B] is one for a real example; others are left out of batch norms' statistics.
    """
    if not trees.running(theta.full):
        return apply(model, base, theta, *args, **kwargs), {}
    with nn.intercept_methods(among_real(real)):
        y, changed = apply(model, base, theta, *args, mutable=[STATISTICS], **kwargs)
    return y, trees.by_path(changed.get(STATISTICS, {}))


def among_real(real: Leaf) -> Callable:
    """An interceptor by which batch norms take their statistics from examples with real [B] = 1.

    A mask that the model gives them itself stays. ValueError for inputs [n, ...] with n != B.
    """

    def interceptor(next_fun, args, kwargs, context):
        module = context.module
        if not isinstance(module, nn.BatchNorm) or context.method_name != "__call__":
            return next_fun(*args, **kwargs)
        x = (*args, *kwargs.values())[0]
        given = (module.use_running_average, kwargs.get("use_running_average"), *args[1:2])
        if any(still is True for still in given) or kwargs.get("mask") is not None:
            return next_fun(*args, **kwargs)
        if len(x) != len(real):
            raise ValueError(
                f"{'/'.join(module.path)}: the norm gets {len(x)} rows of a batch of {len(real)} "
                "examples, some of which may be padding; give it the rows' mask, from the argument "
                "`mask` of the model's __call__"
            )
        mask = jnp.reshape(real, (-1, *[1] * (x.ndim - 1)))
        return next_fun(*args, **{**kwargs, "mask": mask})

    return interceptor


def features(
    model: nn.Module, base: Mapping[str, jax.Array], theta: Theta, *args, **kwargs
) -> jax.Array:
    """The input [B, ...] of the last layer that model(*args) calls, such as a classifier's head.

    Raises ValueError for a model without a layer that could carry factors.
    """
    inputs: list[jax.Array] = []

    def note(module, method, path, y, x):
        inputs.append(x)
        return y

    with nn.intercept_methods(at_layers(note)):
        apply(model, base, theta, *args, **kwargs)
    if not inputs:
        raise ValueError("the model calls no dense layer whose input could serve as features")
    return inputs[-1]


def _weights(module: nn.Module, method: str, f: Gated, x: jax.Array) -> jax.Array:
    """The weights of a gated adapter's components: [B, r], or [..., r] from a router."""
    if not f.routed:
        return f.spread(f.gate)
    if method != "__call__":
        raise ValueError(
            f"{'/'.join(module.path)}: a router reads the inputs of a layer's call, and this one "
            f"calls {method}; select other layers"
        )
    return f.spread(jax.nn.softmax(_down(module, f.router, x)))


def _weigh(drop: Callable, weights: jax.Array, h: jax.Array) -> jax.Array:
    """h [B, ..., r] after dropout, times the weights of its components."""
    if weights.ndim < h.ndim:  # one for each example
        weights = weights.reshape(len(h), *[1] * (h.ndim - 2), -1)
    return drop(h) * weights


def _beside_weights(factors: Mapping[str, Factors | Gated]) -> dict[str, jax.Array]:
    """Factors of stacked layers as parameters beside their weights.

    So nn.scan and nn.vmap give each layer its own, as they do with the weights, and its number.
    """
    beside: dict[str, jax.Array] = {}
    for p, held in factors.items():
        f = held.factors if isinstance(held, Gated) else held
        numbers = jnp.arange(f.layers).reshape(f.a.shape[: f.stack])
        beside |= {f"{p}_a": f.a, f"{p}_b": f.b, f"{p}_number": numbers}
        if isinstance(held, Gated) and held.routed:
            beside[f"{p}_gate"] = held.gate
    return beside


def _of_this_layer(
    module: nn.Module, f: Factors | Gated, key: jax.Array | None
) -> tuple[Factors | Gated, jax.Array | None]:
    """The factors, and a key, of the one layer of a stack that is being called."""
    own, kind = module.variables["params"], _kind(module)
    key = None if key is None else jax.random.fold_in(key, own[f"{kind}_number"])
    scale = f.factors.scale if isinstance(f, Gated) else f.scale
    here = Factors(own[f"{kind}_a"], own[f"{kind}_b"], scale)
    if isinstance(f, Gated):
        gate = own[f"{kind}_gate"] if f.routed else f.gate
        return dataclasses.replace(f, factors=here, gate=gate), key
    return here, key


def _dropout(rate: float, key: jax.Array | None, path: str, h: jax.Array) -> jax.Array:
    if rate == 0.0 or key is None:
        return h
    kept = jax.random.bernoulli(
        jax.random.fold_in(key, zlib.crc32(path.encode())), 1 - rate, h.shape
    )
    return jnp.where(kept, h / (1 - rate), 0)


def _call(module: nn.Module, f: Factors, x: jax.Array, drop: Callable) -> jax.Array:
    """The low-rank term s (x a) b of one layer."""
    h = drop(_down(module, f, x)) * f.scale
    out = f.b.shape[1:]
    return products.times(h, f.b.reshape(f.rank, math.prod(out))).reshape(*h.shape[:-1], *out)


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
    x = jnp.moveaxis(x, axes, range(-len(axes), 0))
    inputs = math.prod(f.a.shape[:-1])
    return products.times(x.reshape(*x.shape[: -len(axes)], inputs), f.a.reshape(inputs, f.rank))


def _attend(module: nn.Module, f: Factors, query: jax.Array, drop: Callable) -> jax.Array:
    """The low-rank term of Embed.attend: query (a b)^T."""
    return jnp.tensordot(drop(query @ f.b.T) * f.scale, f.a.T, axes=1)


_RULES: dict[str, Callable[[nn.Module, Factors, jax.Array, Callable], jax.Array]] = {
    "__call__": _call,
    "attend": _attend,
}
