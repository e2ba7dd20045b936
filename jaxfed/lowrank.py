"""Low-rank factors beside frozen weights: choose, apply, merge.

Beside a frozen kernel W [in, out] stand factors a [in, r] and b [r, out]; a layer gives

    y = x W + s (x a) b,        s = alpha / r,

and W + s a b is never formed while clients train. One rule covers every kernel: the factors of a
kernel [in..., out...] are a [in..., r] and b [r, out...], their product is tensordot(a, b, 1).
For a k x k convolution a is a k x k convolution into r channels and b a 1 x 1 convolution; for an
embedding, a is [vocabulary, r].

Models stay unmodified flax.linen modules: `apply` intercepts the layers at the chosen paths.
"""

import dataclasses
import math
import re
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxfed.algorithm import PyTree


@partial(jax.tree_util.register_dataclass, data_fields=("a", "b"), meta_fields=("scale",))
@dataclasses.dataclass(frozen=True)
class Factors:
    """a [in..., r] and b [r, out...]; `scale` is static and travels with them."""

    a: jax.Array
    b: jax.Array
    scale: float

    @property
    def rank(self) -> int:
        return self.b.shape[0]


class Theta(NamedTuple):
    """What is trained: whole weights, and factors beside frozen ones, each {path: ...}."""

    full: dict[str, jax.Array]
    factors: dict[str, Factors]


class Layer(NamedTuple):
    """A weight that can carry factors: its shape, of which the first `inputs` axes are inputs."""

    shape: tuple[int, ...]
    inputs: int

    @property
    def sides(self) -> tuple[int, int]:
        """(inputs, outputs) of the weight as a matrix."""
        return math.prod(self.shape[: self.inputs]), math.prod(self.shape[self.inputs :])


@dataclasses.dataclass(frozen=True)
class Select:
    """What is trained: factors at some paths, whole weights at others, the rest frozen.

    `factors` and `full` are regular expressions, searched in paths such as "dense_0/kernel"; where
    both match, `factors` wins. `rank` is a number, or {regular expression: number} for ranks per
    path (the first that matches counts); or give `fraction`, the share of all the model's
    parameters to be trained and sent, from which one rank follows. The scale is alpha / rank.

    `base="keep"` with `up="zero"` is fine-tuning: the model starts as it is. `base="zero"` with
    `up="random"` is FedLoRU's training from scratch (papers: arXiv 2409.12371 and its code).
    A rank above a layer's smaller side adds nothing, so it is an error unless `above="allow"` (the
    authors' ResNet-18 has r = 128 beside layers of 64 channels).
    """

    factors: str | None = None
    full: str | None = None
    rank: int | Mapping[str, int] | None = None
    fraction: float | None = None
    alpha: float | None = None
    base: Literal["keep", "zero"] = "keep"
    up: Literal["zero", "random"] = "zero"
    above: Literal["error", "allow"] = "error"

    def __post_init__(self) -> None:
        if self.factors is None and self.full is None:
            raise ValueError('nothing is trained; give factors="..." or full="..."')
        if self.factors is not None and (self.rank is None) == (self.fraction is None):
            raise ValueError(
                f"factors need a rank or a fraction, one of the two; got rank={self.rank} and "
                f"fraction={self.fraction}"
            )
        if self.base == "zero" and self.up == "zero":
            raise ValueError(
                'base="zero" with up="zero" is a network of zeros that no gradient leaves; use '
                'up="random"'
            )
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise ValueError(f"fraction={self.fraction} is not in (0, 1]")


everything = Select(full=".*")
"""Every weight is trained and sent: FedAvg as it was."""


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


def split(
    params: PyTree, layers: Mapping[str, Layer], select: Select, key: jax.Array
) -> tuple[dict[str, jax.Array], Theta]:
    """(base, theta): the frozen and the trained part of `params`, both flat {path: array}.

    Raises ValueError, listing the paths, if a pattern matches nothing or a rank does not fit.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    ranks = _ranks(flat, layers, select)
    full = {p: flat[p] for p in _matching(select.full, flat) if p not in ranks}
    base = {
        p: jnp.zeros_like(w) if p in ranks and select.base == "zero" else w
        for p, w in flat.items()
        if p not in full
    }
    factors = {
        p: _init(
            layers[p],
            r,
            select,
            jnp.promote_types(flat[p].dtype, jnp.float32),  # what is trained is never narrower
            jax.random.fold_in(key, zlib.crc32(p.encode())),
        )
        for p, r in ranks.items()
    }
    return base, Theta(full, factors)


def _matching(pattern: str | None, paths: Mapping[str, Any]) -> list[str]:
    if pattern is None:
        return []
    found = [p for p in paths if re.search(pattern, p)]
    if not found:
        raise ValueError(f"{pattern!r} matches none of: {', '.join(paths)}")
    return found


def _ranks(flat: Mapping, layers: Mapping[str, Layer], select: Select) -> dict[str, int]:
    """{path: rank} of the weights that get factors."""
    if select.factors is None:
        return {}
    chosen = [p for p in _matching(select.factors, layers) if p in flat]
    if isinstance(select.rank, int):
        ranks = dict.fromkeys(chosen, select.rank)
    elif select.rank is not None:
        ranks = {p: _first_rank(select.rank, p) for p in chosen}
    else:
        ranks = dict.fromkeys(chosen, _rank_of_fraction(flat, layers, chosen, select))
    if small := {p: r for p, r in ranks.items() if r < 1}:
        raise ValueError(f"a rank must be at least 1; got {small}")
    high = {p: (r, min(layers[p].sides)) for p, r in ranks.items() if r > min(layers[p].sides)}
    if high and select.above == "error":
        raise ValueError(
            "rank above the layer's smaller side at "
            + ", ".join(f"{p} ({r} > {side})" for p, (r, side) in high.items())
            + '; lower the rank, give ranks per path, or set above="allow"'
        )
    return ranks


def _first_rank(ranks: Mapping[str, int], path: str) -> int:
    for pattern, rank in ranks.items():
        if re.search(pattern, path):
            return rank
    raise ValueError(f"no rank is given for {path}; the patterns are {', '.join(ranks)}")


def _rank_of_fraction(
    flat: Mapping, layers: Mapping[str, Layer], chosen: list[str], select: Select
) -> int:
    """The largest rank with which at most `fraction` of all parameters is trained."""
    total = sum(w.size for w in flat.values())
    full = [] if select.full is None else _matching(select.full, flat)
    whole = sum(flat[p].size for p in full if p not in chosen)
    per_rank = sum(sum(layers[p].sides) for p in chosen)
    rank = int(((select.fraction or 0.0) * total - whole) / per_rank)
    if rank < 1:
        raise ValueError(
            f"fraction={select.fraction} of {total} parameters leaves no rank after the {whole} "
            f"trained in full; use at least {(whole + per_rank) / total:.4f}"
        )
    return rank


def _init(layer: Layer, rank: int, select: Select, dtype, key: jax.Array) -> Factors:
    """Down factor uniform with variance 1 / (3 fan_in); up factor likewise, or zero.

    The bound 1 / sqrt(fan_in) is what kaiming_uniform(a=sqrt(5)) gives in the authors' code.
    """
    alpha = rank if select.alpha is None else select.alpha
    down, up = jax.random.split(key)
    a = _uniform(down, (*layer.shape[: layer.inputs], rank), layer.sides[0], dtype)
    shape = (rank, *layer.shape[layer.inputs :])
    b = jnp.zeros(shape, dtype) if select.up == "zero" else _uniform(up, shape, rank, dtype)
    return Factors(a, b, float(alpha / rank))


def _uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int, dtype) -> jax.Array:
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def _down_factor(key: jax.Array, path: str, like: Factors, rank: int) -> jax.Array:
    """A random down factor [in..., rank] for the weight that `like` stands beside."""
    inputs = like.a.shape[:-1]
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return _uniform(key, (*inputs, rank), math.prod(inputs), like.a.dtype)


def fresh(theta: Theta, key: jax.Array) -> Theta:
    """Theta with new factors of the same shapes: down random, up zero. Whole weights stay."""
    return theta._replace(
        factors={
            p: dataclasses.replace(f, a=_down_factor(key, p, f, f.rank), b=jnp.zeros_like(f.b))
            for p, f in theta.factors.items()
        }
    )


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


def product(f: Factors) -> jax.Array:
    """s a b, with the shape of the weight that it stands beside."""
    return f.scale * jnp.tensordot(f.a, f.b, axes=1)


def norm(f: Factors) -> jax.Array:
    """||s a b||_F without the product: ||a b||^2 = <a'a, b b'>, of matrices [r, r]."""
    a, b = f.a.reshape(-1, f.rank), f.b.reshape(f.rank, -1)
    squared = jnp.sum((a.T @ a) * (b @ b.T))
    return abs(f.scale) * jnp.sqrt(jnp.maximum(squared, 0))  # rounding may leave it below


def nbytes(theta: Theta, rank: jax.Array) -> jax.Array:
    """Bytes of the weights trained whole, and of `rank` components of each layer's factors."""
    each = sum((f.a.nbytes + f.b.nbytes) // f.rank for f in theta.factors.values())
    return jnp.int32(sum(w.nbytes for w in theta.full.values()) + each * rank)


def merge(base: Mapping[str, jax.Array], theta: Theta) -> dict[str, jax.Array]:
    """The base with every product folded in: W + s a b. Theta is left as it is."""
    return {
        p: w + product(theta.factors[p]).astype(w.dtype) if p in theta.factors else w
        for p, w in base.items()
    }


def merged(base: Mapping[str, jax.Array], theta: Theta) -> PyTree:
    """The model's own parameters, nested, as if it had never had factors."""
    return traverse_util.unflatten_dict({**merge(base, theta), **theta.full}, sep="/")


def concat(first: Factors, second: Factors) -> Factors:
    """One adapter of the summed rank: its product is the sum of the two products."""
    ratio = second.scale / first.scale
    return Factors(
        jnp.concatenate([first.a, second.a], axis=-1),
        jnp.concatenate([first.b, second.b * ratio], axis=0),
        first.scale,
    )


def beside(
    factors: Mapping[str, Factors], rank: int, key: jax.Array, *, alpha: float | None = None
) -> dict[str, Factors]:
    """New factors of another rank at the same paths: down random, up zero, scale alpha / rank.

    A second adapter, such as one that each client keeps; `joined` puts it beside the first.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} leaves no factor; use at least 1")
    scale = float((rank if alpha is None else alpha) / rank)
    return {
        p: Factors(
            _down_factor(key, p, f, rank), jnp.zeros((rank, *f.b.shape[1:]), f.b.dtype), scale
        )
        for p, f in factors.items()
    }


def joined(theta: Theta, more: Mapping[str, Factors]) -> Theta:
    """Theta with a second adapter beside the first: W + s_1 a_1 b_1 + s_2 a_2 b_2 at each path.

    Their products add up, so the model sees one adapter of the summed rank.
    """
    return theta._replace(
        factors={p: concat(f, more[p]) if p in more else f for p, f in theta.factors.items()}
    )


def truncate(f: Factors, rank: jax.Array | int) -> Factors:
    """The factors with all components from `rank` on set to zero; `rank` may be traced.

    Zero in both factors of a component is a fixed point of SGD, momentum, Adam and AdamW, so a
    client of lower rank needs no mask while it trains.
    """
    kept = jnp.arange(f.rank) < rank
    return dataclasses.replace(f, a=f.a * kept, b=f.b * kept.reshape(-1, *[1] * (f.b.ndim - 1)))


@jax.custom_batching.sequential_vmap
def _svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One after the other under vmap: on a CPU, batched ones may wait for threads for ever."""
    u, sigma, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u, sigma, vt


def from_product(weight: jax.Array, inputs: int, rank: int, scale: float) -> Factors:
    """The best factors of `weight` [in..., out...] of that rank (truncated SVD, Eckart-Young).

    sqrt(sigma / s) goes to each side. `inputs` is how many leading axes are inputs. Components
    beyond the weight's smaller side are zero.
    """
    rows = math.prod(weight.shape[:inputs])
    u, sigma, vt = _svd(weight.reshape(rows, -1))
    root = jnp.sqrt(sigma[:rank] / scale)
    spare = (0, max(rank - len(sigma), 0))
    a = jnp.pad(u[:, :rank] * root, ((0, 0), spare)).reshape(*weight.shape[:inputs], rank)
    b = jnp.pad(root[:, None] * vt[:rank], (spare, (0, 0))).reshape(rank, *weight.shape[inputs:])
    return Factors(a, b, scale)
