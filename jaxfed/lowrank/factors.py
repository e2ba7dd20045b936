"""Factors beside frozen weights: their algebra."""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxfed import trees, values
from jaxfed.algorithm import PyTree
from jaxfed.lowrank import quantised


@partial(jax.tree_util.register_dataclass, data_fields=("a", "b"), meta_fields=("scale", "stack"))
@dataclasses.dataclass(frozen=True)
class Factors:
    """a [in..., r] and b [r, out...]; `scale` is static and travels with them.

    Beside a weight [L, in..., out...] of L stacked layers (nn.scan, nn.vmap) they are a
    [L, in..., r] and b [L, r, out...], a pair for each layer; `stack` counts such leading axes.
    """

    a: jax.Array
    b: jax.Array
    scale: float
    stack: int = 0

    @property
    def rank(self) -> int:
        return self.b.shape[self.stack]

    @property
    def layers(self) -> int:
        """How many layers are stacked; one without a stack."""
        return math.prod(self.a.shape[: self.stack])


def each_layer(function: Callable, f: Factors, *more: Any) -> Any:
    """function(f, *more) of adapters [in..., r] of one layer; of a stack, one layer at a time.

    `more` are factors and arrays of the same layers, with the same leading axes. Results are
    stacked likewise.
    """
    if not f.stack:
        return function(f, *more)

    def moved(x, axes):
        return dataclasses.replace(x, stack=x.stack + axes) if isinstance(x, Factors) else x

    inside = (moved(x, -1) for x in (f, *more))
    found = jax.vmap(partial(each_layer, function))(*inside)
    return jax.tree.map(partial(moved, axes=1), found, is_leaf=lambda x: isinstance(x, Factors))


class Theta(NamedTuple):
    """What is trained: whole weights, and factors beside frozen ones, each {path: ...}.

    A model's running statistics (`trees.Running`) stand among the whole weights.
    """

    full: dict[str, Any]
    factors: dict[str, Factors]


class Layer(NamedTuple):
    """A weight that can carry factors: its shape, of which the first `inputs` axes are inputs.

    Of stacked layers, the shape of one.
    """

    shape: tuple[int, ...]
    inputs: int

    @property
    def sides(self) -> tuple[int, int]:
        """(inputs, outputs) of the weight as a matrix."""
        return math.prod(self.shape[: self.inputs]), math.prod(self.shape[self.inputs :])


def uniform(key: jax.Array, shape: tuple[int, ...], fan_in: int, dtype) -> jax.Array:
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def down_factor(key: jax.Array, path: str, like: Factors, rank: int) -> jax.Array:
    """A random down factor [in..., rank] for the weight that `like` stands beside."""
    shape = like.a.shape[:-1]
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return uniform(key, (*shape, rank), math.prod(shape[like.stack :]), like.a.dtype)


def up_factor(key: jax.Array, path: str, like: Factors, rank: int, up: str) -> jax.Array:
    """An up factor [rank, out...], "zero" or "random", for the weight that `like` stands beside."""
    shape = (*like.b.shape[: like.stack], rank, *like.b.shape[like.stack + 1 :])
    if up == "zero":
        return jnp.zeros(shape, like.b.dtype)
    key = jax.random.fold_in(jax.random.fold_in(key, zlib.crc32(path.encode())), 1)
    return uniform(key, shape, rank, like.b.dtype)


def fresh(theta: Theta, key: jax.Array, *, up: Literal["zero", "random"] = "zero") -> Theta:
    """Theta with new factors of the same shapes: down random, up as asked. Whole weights stay."""
    return theta._replace(
        factors={p: drawn(key, p, f, f.rank, f.scale, up) for p, f in theta.factors.items()}
    )


def drawn(
    key: jax.Array,
    path: str,
    like: Factors,
    rank: int,
    scale: float,
    up: Literal["zero", "random"] = "zero",
) -> Factors:
    """New factors of that rank and scale at the weight that `like` stands beside."""
    a, b = down_factor(key, path, like, rank), up_factor(key, path, like, rank, up)
    return Factors(a, b, scale, like.stack)


def product(f: Factors) -> jax.Array:
    """s a b, with the shape of the weight that it stands beside; ValueError for a gated adapter."""
    if not isinstance(f, Factors):
        raise ValueError(
            f"a {type(f).__name__} adapter has another product for every input, so it does not "
            "merge; run the model with the adapter beside its weights"
        )
    return each_layer(lambda f: f.scale * jnp.tensordot(f.a, f.b, axes=1), f)


def norm(f: Factors) -> jax.Array:
    """||s a b||_F without the product, by matrices [r, r]."""
    return jnp.sqrt(jnp.maximum(inner(f, f), 0))  # rounding may leave it below


def inner(f: Factors, g: Factors) -> jax.Array:
    """<s a b, s' a' b'> of two adapters at one weight, by matrices [r, r']: <a^T a', b b'^T>."""
    if f.stack:
        return jnp.sum(each_layer(inner, f, g))
    (a, b), (a2, b2) = ((x.a.reshape(-1, x.rank), x.b.reshape(x.rank, -1)) for x in (f, g))
    return f.scale * g.scale * jnp.sum((a.T @ a2) * (b @ b2.T))


def cosine(first: Mapping[str, Factors], second: Mapping[str, Factors]) -> jax.Array:
    """<P, Q> / (|P| |Q|) of the products of two adapters, over all paths together.

    It is -1 if they cancel in direction, and 0 if one of them is zero. Both have the same paths.
    """
    dot = sum(inner(f, second[p]) for p, f in first.items())
    squares = (sum(norm(f) ** 2 for f in factors.values()) for factors in (first, second))
    size = jnp.sqrt(math.prod(squares))
    return jnp.where(size > 0, dot / jnp.where(size > 0, size, 1), 0)


def nbytes(theta: Theta, rank: jax.Array | None = None, sides: str = "ab") -> dict[str, Any]:
    """{path: bytes} of the weights trained whole and of `rank` components of each layer's factors.

    None is all components, and `sides` one of "ab", "a", "b" and "". Declares what crosses the wire
    where a client has fewer components than the arrays hold, or where one side stays as it is.
    """

    def size(f: Factors) -> Any:
        held = sum(getattr(f, side).nbytes for side in sides)
        return held if rank is None else rank * (held // f.rank)

    return {p: trees.nbytes(w) for p, w in theta.full.items()} | {
        p: size(f) for p, f in theta.factors.items()
    }


def merge(base: Mapping[str, jax.Array], theta: Theta) -> dict[str, jax.Array]:
    """The base with every product folded in: W + s a b. Theta is left as it is.

    ValueError for a product beside a quantised weight.
    """
    quantised.refuse({p: w for p, w in base.items() if p in theta.factors}, "a merge")
    return {
        p: w + product(theta.factors[p]).astype(w.dtype) if p in theta.factors else w
        for p, w in base.items()
    }


def merged(base: Mapping[str, jax.Array], theta: Theta) -> PyTree:
    """The model's own parameters, nested, as if it had never had factors.

    Running statistics stand beside them, as arrays; `variables` has them apart, for flax. Quantised
    weights are floats again.
    """
    full = {p: w.value if trees.is_running(w) else w for p, w in theta.full.items()}
    return traverse_util.unflatten_dict({**merge(quantised.floats(base), theta), **full}, sep="/")


STATISTICS = "batch_stats"
"""The collection of a flax model that holds its running statistics."""


def variables(flat: Mapping[str, Any]) -> dict[str, PyTree]:
    """Weights and running statistics {path: ...} as a flax model takes them, in collections.

    Quantised weights are floats again.
    """
    kept = {p: w.value for p, w in flat.items() if trees.is_running(w)}
    params = quantised.floats({p: w for p, w in flat.items() if p not in kept})
    nested = {"params": traverse_util.unflatten_dict(params, sep="/")}
    return nested | ({STATISTICS: traverse_util.unflatten_dict(kept, sep="/")} if kept else {})


def concat(first: Factors, second: Factors) -> Factors:
    """One adapter of the summed rank: its product is the sum of the two products."""
    ratio = second.scale / first.scale
    return Factors(
        jnp.concatenate([first.a, second.a], axis=-1),
        jnp.concatenate([first.b, second.b * ratio], axis=first.stack),
        first.scale,
        first.stack,
    )


def beside(
    factors: Mapping[str, Factors],
    rank: int,
    key: jax.Array,
    *,
    alpha: float | None = None,
    above: Literal["error", "allow"] = "error",
    up: Literal["zero", "random"] = "zero",
) -> dict[str, Factors]:
    """New factors of another rank at the same paths: down random, up zero, scale alpha / rank.

    A second adapter, such as one that each client keeps; `joined` puts it beside the first. Raises
    ValueError for a rank above a weight's smaller side, unless `above` allows it, as in Select.
    `up="random"` draws both, as there; the product is then not zero.
    """
    values.whole("rank", rank, 1)
    if up not in ("zero", "random"):
        raise ValueError(f'up={up!r}; use "zero" or "random"')
    for p, f in factors.items():
        side = min(math.prod(f.a.shape[f.stack : -1]), math.prod(f.b.shape[f.stack + 1 :]))
        if rank > side and above == "error":
            raise ValueError(f"rank={rank} is above {p}'s smaller side, {side}; use at most that")
    scale = float((rank if alpha is None else alpha) / rank)

    return {p: drawn(key, p, f, rank, scale, up) for p, f in factors.items()}


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
    rows = kept.reshape(-1, *[1] * (f.b.ndim - f.stack - 1))
    return dataclasses.replace(f, a=f.a * kept, b=f.b * rows)


def cut(theta: Theta, rank: jax.Array | int) -> Theta:
    """Theta with the components of all factors from `rank` on set to zero."""
    return theta._replace(factors={p: truncate(f, rank) for p, f in theta.factors.items()})


@jax.custom_batching.sequential_vmap
def thin_svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One after the other under vmap: on a CPU, batched ones may wait for threads for ever."""
    u, sigma, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u, sigma, vt


@jax.custom_batching.sequential_vmap
def orthonormal(matrix: jax.Array) -> jax.Array:
    """Orthonormal columns with the same span [m, r], m >= r; one after the other, as above."""
    return jnp.linalg.qr(matrix)[0]


def from_product(weight: jax.Array, inputs: int, rank: int, scale: float) -> Factors:
    """The best factors of `weight` [in..., out...] of that rank (truncated SVD, Eckart-Young).

    sqrt(sigma / s) goes to each side. `inputs` is how many leading axes are inputs. Components
    beyond the weight's smaller side are zero.
    """
    values.whole("rank", rank, 1)
    rows = math.prod(weight.shape[:inputs])
    u, sigma, vt = thin_svd(weight.reshape(rows, -1))
    root = jnp.sqrt(sigma[:rank] / scale)
    spare = (0, max(rank - len(sigma), 0))
    a = jnp.pad(u[:, :rank] * root, ((0, 0), spare)).reshape(*weight.shape[:inputs], rank)
    b = jnp.pad(root[:, None] * vt[:rank], (spare, (0, 0))).reshape(rank, *weight.shape[inputs:])
    return Factors(a, b, scale)


def principal(base: Mapping[str, jax.Array], theta: Theta) -> tuple[dict[str, jax.Array], Theta]:
    """(base, theta) with the best factors of each weight as its factors, and the base without them.

    W = U S V'; A = U_r sqrt(S_r / s), B = sqrt(S_r / s) V_r'; W <- W - s A B: the model is what it
    was before it had factors (PiSSA's start, and FRLoRA's).
    """
    quantised.refuse({p: base[p] for p in theta.factors}, "a start from its best factors")

    def best(f, weight):
        return from_product(weight.astype(f.a.dtype), f.a.ndim - 1, f.rank, f.scale)

    factors = {p: each_layer(best, f, base[p]) for p, f in theta.factors.items()}
    rest = {p: dataclasses.replace(f, b=-f.b) for p, f in factors.items()}
    return merge(base, Theta({}, rest)), theta._replace(factors=factors)
