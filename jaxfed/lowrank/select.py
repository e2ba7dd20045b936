"""What is trained: factors at some paths, whole weights at others, the rest frozen."""

import dataclasses
import math
import re
import zlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxfed import trees, values
from jaxfed.algorithm import PyTree
from jaxfed.lowrank import quantised
from jaxfed.lowrank.factors import Factors, Layer, Theta, uniform


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
        for name in ("factors", "full"):
            if getattr(self, name) is not None:
                values.pattern(name, getattr(self, name))
        if self.factors is None and self.full is None:
            raise ValueError('nothing is trained; give factors="..." or full="..."')
        if self.factors is not None and (self.rank is None) == (self.fraction is None):
            raise ValueError(
                f"factors need a rank or a fraction, one of the two; got rank={self.rank} and "
                f"fraction={self.fraction}"
            )
        _check_ranks(self.rank)
        for name, most in (("fraction", 1), ("alpha", math.inf)):
            _check_number(name, getattr(self, name), most)
        for name, known in CHOICES.items():
            values.choice(name, getattr(self, name), known)
        if self.base == "zero" and self.up == "zero":
            raise ValueError(
                'base="zero" with up="zero" is a network of zeros that no gradient leaves; use '
                'up="random"'
            )


CHOICES = {"base": ("keep", "zero"), "up": ("zero", "random"), "above": ("error", "allow")}


def _check_ranks(rank: Any) -> None:
    if isinstance(rank, Mapping) and not rank:
        raise ValueError('rank={} gives no rank; use a number, or {".*": 4}')
    for pattern, r in rank.items() if isinstance(rank, Mapping) else (("", rank),):
        values.pattern("a pattern of rank", pattern)
        if r is None:
            continue
        if isinstance(r, bool) or not isinstance(r, int | np.integer):
            raise TypeError(f"rank={rank!r} has the {type(r).__name__} {r!r}; give whole numbers")
        if r < 1:
            raise ValueError(f"a rank must be at least 1; got {rank!r}")


def _check_number(name: str, value: Any, most: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, float | int | np.number):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a number")
    if not (0 < value <= most and value < math.inf):
        raise ValueError(f"{name}={value} is not in (0, {most}]; use a number that is")


everything = Select(full=".*")
"""Every weight is trained and sent: FedAvg as it was."""


def split(
    params: PyTree, layers: Mapping[str, Layer], select: Select, key: jax.Array
) -> tuple[dict[str, jax.Array], Theta]:
    """(base, theta): the frozen and the trained part of `params`, both flat {path: array}.

    Running statistics (`trees.Running`) are part of theta, whatever is selected. Raises ValueError,
    listing the paths, if a pattern matches nothing or a rank does not fit, or if what is to be
    trained whole, or to begin at zero, is quantised.
    """
    values.kind("select", select, Select, 'a Select, such as lowrank.Select(full=".*")')
    held = traverse_util.flatten_dict(params, sep="/")
    flat = {p: w for p, w in held.items() if not trees.is_running(w)}
    ranks = _ranks(flat, layers, select)
    full = {p: flat[p] for p in _matching(select.full, flat) if p not in ranks}
    kept = {p: w for p, w in held.items() if trees.is_running(w)}
    quantised.refuse(full, "training it whole")
    if select.base == "zero":
        quantised.refuse({p: flat[p] for p in ranks}, "a base of zeros")
    base = {
        p: jnp.zeros_like(w) if p in ranks and select.base == "zero" else w
        for p, w in flat.items()
        if p not in full
    }
    factors = {
        p: _init(
            layers[p],
            _stack(p, flat[p].shape, layers[p]),
            r,
            select,
            jnp.promote_types(flat[p].dtype, jnp.float32),  # what is trained is never narrower
            jax.random.fold_in(key, zlib.crc32(p.encode())),
        )
        for p, r in ranks.items()
    }
    return base, Theta(full | kept, factors)


def _stack(path: str, shape: tuple[int, ...], layer: Layer) -> tuple[int, ...]:
    """The leading axes of a weight of this shape that run over stacked layers."""
    stack = len(shape) - len(layer.shape)
    if shape[stack:] != layer.shape:
        raise ValueError(
            f"{path} {shape} stacks layers of {layer.shape} at another axis than the first; use "
            'variable_axes={"params": 0}, or select other layers'
        )
    return shape[:stack]


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
    if isinstance(select.rank, Mapping):
        ranks = {p: _first_rank(select.rank, p) for p in chosen}
    elif select.rank is not None:
        ranks = dict.fromkeys(chosen, int(select.rank))
    else:
        ranks = dict.fromkeys(chosen, _rank_of_fraction(flat, layers, chosen, select))
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
            return int(rank)
    raise ValueError(f"no rank is given for {path}; the patterns are {', '.join(ranks)}")


def _rank_of_fraction(
    flat: Mapping, layers: Mapping[str, Layer], chosen: list[str], select: Select
) -> int:
    """The largest rank with which at most `fraction` of all parameters is trained."""
    total = sum(w.size for w in flat.values())
    full = [] if select.full is None else _matching(select.full, flat)
    whole = sum(flat[p].size for p in full if p not in chosen)
    per_rank = sum(
        sum(layers[p].sides) * math.prod(_stack(p, flat[p].shape, layers[p])) for p in chosen
    )
    rank = int(((select.fraction or 0.0) * total - whole) / per_rank)
    if rank < 1:
        raise ValueError(
            f"fraction={select.fraction} of {total} parameters leaves no rank after the {whole} "
            f"trained in full; use at least {(whole + per_rank) / total:.4f}"
        )
    return rank


def _init(
    layer: Layer, stack: tuple[int, ...], rank: int, select: Select, dtype, key: jax.Array
) -> Factors:
    """Down factor uniform with variance 1 / (3 fan_in); up factor likewise, or zero.

    The bound 1 / sqrt(fan_in) is what kaiming_uniform(a=sqrt(5)) gives in the authors' code.
    """
    alpha = rank if select.alpha is None else select.alpha
    down, up = jax.random.split(key)
    a = uniform(down, (*stack, *layer.shape[: layer.inputs], rank), layer.sides[0], dtype)
    shape = (*stack, rank, *layer.shape[layer.inputs :])
    b = jnp.zeros(shape, dtype) if select.up == "zero" else uniform(up, shape, rank, dtype)
    return Factors(a, b, float(alpha / rank), len(stack))
