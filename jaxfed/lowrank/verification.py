"""That a layer with factors computes with the merged weight W + s a b."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxfed.algorithm import PyTree
from jaxfed.lowrank import quantised
from jaxfed.lowrank.factors import Factors, Theta, merged, variables
from jaxfed.lowrank.interception import apply, layers, weight_path

OURS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed)
# With other fields than these away from their defaults, they may have a product of their own.
KNOWN = {"features", "num_embeddings", "name", "parent", "kernel_init", "bias_init"}
KNOWN |= {"embedding_init", "param_dtype", "use_bias", "dtype", "precision", "axis", "batch_dims"}
KNOWN |= {"kernel_size", "strides", "padding", "input_dilation", "kernel_dilation"}
KNOWN |= {"feature_group_count"}
REMEDY = "train it whole (full=...) or leave it frozen"


class Call(NamedTuple):
    """One call of a layer, and the shapes of its input."""

    path: str  # of its weight
    module: nn.Module
    method: str
    inputs: tuple[tuple, dict]


def check(model: nn.Module, base: Mapping[str, Any], theta: Theta, *args, **kwargs) -> None:
    """Nothing; raises ValueError, with the paths, if factors are not what they seem somewhere.

    With factors, every layer must compute what it computes with W + s a b in place of W. flax's own
    layers do, if their weight is read nowhere else, which a trace shows. A layer of another class,
    or with a product of its own, is compared by numbers, one of each kind, alone, on random input.
    `base` and `theta` may be shapes; the model is called as by `apply`.
    """
    if not theta.factors:
        return
    params = {**quantised.shapes(base), **theta.full}
    calls: list[Call] = []

    def forward(params, args):
        return model.apply(variables(params), *args, **kwargs)

    with nn.intercept_methods(_silencing(theta.factors, calls)):
        jaxpr = jax.make_jaxpr(forward)(params, args).jaxpr
    paths = dict(zip(map(id, jaxpr.invars), jax.tree.leaves({p: p for p in params}), strict=False))
    if read := {p for i, p in paths.items() if i in _read(jaxpr)} & set(theta.factors):
        raise ValueError(
            f"{', '.join(sorted(read))}: the weight is also read outside its layer's call, where "
            f"factors beside it would be missing; {REMEDY}"
        )
    for call in _one_of_each_kind(calls):
        if not _agrees(call):
            raise ValueError(
                f"{call.path}: {type(call.module).__name__} computes something else than its "
                f"weight times its input, so factors beside the weight do not merge; {REMEDY}"
            )


def _silencing(paths: Collection[str], calls: list[Call]) -> Callable:
    """An interceptor that notes each call of a layer, and returns zeros in place of its output.

    What still reads the layer's weight is not the layer.
    """

    def interceptor(next_fun, args, kwargs, context):
        path = weight_path(context.module, context.method_name)
        if path is None or path not in paths:
            return next_fun(*args, **kwargs)
        y = jax.eval_shape(partial(next_fun, *args, **kwargs))
        calls.append(Call(path, context.module, context.method_name, _shapes((args, kwargs))))
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), y)

    return interceptor


def _shapes(tree: PyTree) -> PyTree:
    """The tree with shapes and types in place of arrays; what is no array stays."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, "dtype") else x, tree
    )


def _read(jaxpr: Any) -> set[int]:
    """The ids of the jaxpr's inputs that one of its equations, also deeper down, computes with."""
    read = {id(v) for v in jaxpr.outvars}
    for equation in jaxpr.eqns:
        inner = [getattr(p, "jaxpr", p) for p in equation.params.values()]
        inner = [p for p in inner if hasattr(p, "eqns")]
        if len(inner) == 1 and len(inner[0].invars) == len(equation.invars):
            below = _read(inner[0])
            pairs = zip(equation.invars, inner[0].invars, strict=True)
            read |= {id(outer) for outer, v in pairs if id(v) in below}
        else:
            read |= {id(v) for v in equation.invars}
    return read


def _one_of_each_kind(calls: Iterable[Call]) -> list[Call]:
    """The smallest call of every kind that is not known to multiply by the weight."""
    kinds: dict[str, list[Call]] = {}
    for call in calls:
        fields = {
            f.name: (getattr(call.module, f.name), f) for f in dataclasses.fields(call.module)
        }
        own = {n: v for n, (v, f) in fields.items() if n not in KNOWN and v is not f.default}
        if type(call.module) not in OURS or own:
            kinds.setdefault(f"{type(call.module)} {call.method} {own}", []).append(call)
    return [min(same, key=_size) for same in kinds.values()]


def _size(call: Call) -> int:
    return sum(np.size(x) for x in jax.tree.leaves(call.inputs))


class _Alone(nn.Module):
    """A model that is one layer."""

    layer: nn.Module
    method: str

    def __call__(self, *args, **kwargs) -> Any:
        return getattr(self.layer, self.method)(*args, **kwargs)


def _agrees(call: Call) -> bool:
    """Whether the layer with random factors is the layer with the merged weight.

    To a twentieth of what the factors change, which leaves room for bfloat16.
    """
    alone = _Alone(call.module.clone(parent=None, name=None), call.method)
    rng = np.random.default_rng(0)
    draw = partial(jax.tree.map, partial(_draw, rng))
    args, kwargs = draw(call.inputs)
    ((path, layer),) = [
        (p, f) for p, f in layers(alone, *args, **kwargs).items() if p.count("/") == 1
    ]
    shapes = jax.eval_shape(partial(alone.init, **kwargs), jax.random.key(0), *args)["params"]
    base = traverse_util.flatten_dict(draw(shapes), sep="/")
    a = rng.normal(size=(*layer.shape[: layer.inputs], 1)).astype(np.float32)
    b = rng.normal(size=(1, *layer.shape[layer.inputs :])).astype(np.float32)
    theta = Theta({}, {path: Factors(jnp.asarray(a), jnp.asarray(b), 1.0)})

    @jax.jit
    def outputs(base, theta):
        plain, whole = Theta({}, {}), {"params": merged(base, theta)}
        return (
            apply(alone, base, theta, *args, **kwargs),
            alone.apply(whole, *args, **kwargs),
            apply(alone, base, plain, *args, **kwargs),
        )

    found, expected, before = (
        np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(y)])
        for y in outputs(base, theta)
    )
    return bool(abs(found - expected).max() <= abs(expected - before).max() / 20)


def _draw(rng: np.random.Generator, x: Any) -> Any:
    """Random numbers of this shape and type; what has no shape stays."""
    if not hasattr(x, "dtype"):
        return x
    if jnp.issubdtype(x.dtype, np.inexact):
        return rng.normal(size=x.shape).astype(x.dtype)
    return rng.integers(2, size=x.shape).astype(x.dtype)
