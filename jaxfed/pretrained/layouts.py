"""Layouts of weights: layer by layer, as files of Hugging Face and PEFT have them, and stacked.

Encoders stack all layers but the last, decoders all.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import lowrank, values
from jaxfed.algorithm import PyTree

INSIDE = re.compile(r"layer(s|_\d+)/.*kernel$")
Base = Literal["float", "int8", "int4"]


def scanned(weights: Mapping[str, Any]) -> dict[str, Any]:
    """{"layer_<i>/query/kernel": [d, d]} -> {"layers/query/kernel": [depth - 1, d, d]}.

    The last layer and what is in no layer stay as they are.
    """
    number = {path: int(of[1]) for path in weights if (of := re.match(r"layer_(\d+)/", path))}
    last = max(number.values())
    stacks: dict[str, dict[int, Any]] = {}
    for path, i in number.items():
        if i < last:
            stacks.setdefault(path.partition("/")[2], {})[i] = weights[path]
    left = {p: w for p, w in weights.items() if number.get(p, last) == last}
    return left | {
        f"layers/{name}": np.stack([w[i] for i in sorted(w)]) for name, w in stacks.items()
    }


def unrolled(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse, of arrays, quantised ones or factors; those in no stack stay as they are."""
    found: dict[str, Any] = {}
    for path, w in weights.items():
        if not path.startswith("layers/"):
            found[path] = w
            continue
        depth = w.layers if isinstance(w, lowrank.Factors) else w.shape[0]
        name = path.removeprefix("layers/")
        found |= {f"layer_{i}/{name}": _at(w, i) for i in range(depth)}
    return found


def stacked(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Arrays or factors of all layers -> "layers/...", of all layers; ValueError if they differ."""
    number = {path: int(of[1]) for path in weights if (of := re.match(r"layer_(\d+)/", path))}
    depth = max(number.values(), default=-1) + 1
    names = dict.fromkeys(path.partition("/")[2] for path in number)
    found = {path: w for path, w in weights.items() if path not in number}
    for name in names:
        each = [weights.get(f"layer_{i}/{name}") for i in range(depth)]
        if len({str(jax.tree.map(np.shape, w)) for w in each}) > 1:
            raise ValueError(f"{name} differs over layers in place, rank or scale; give all alike")
        found[f"layers/{name}"] = jax.tree.map(lambda *w: jnp.stack(w), *each)
    return {
        path: dataclasses.replace(w, stack=1)
        if path.startswith("layers/") and isinstance(w, lowrank.Factors)
        else w
        for path, w in found.items()
    }


def _at(stack: Any, i: int) -> Any:
    """What layer i has of a stack."""
    if isinstance(stack, lowrank.Factors):
        return dataclasses.replace(stack, a=stack.a[i], b=stack.b[i], stack=stack.stack - 1)
    return jax.tree.map(lambda x: x[i], stack)


def narrowed(path: str, weight: np.ndarray, dtype: Any, base: Base) -> np.ndarray:
    """The weight in that type, unless it is still to be quantised."""
    return weight if base != "float" and INSIDE.match(path) else weight.astype(dtype)


def nested(weights: Mapping[str, Any], base: Base) -> PyTree:
    """Weights {path: array} as a flax model takes them, with kernels inside of layers in `base`.

    The types of others, and of all with "float", stay as they are.
    """
    values.choice("base", base, get_args(Base))
    stored = {
        p: w if base == "float" or not INSIDE.match(p) else lowrank.quantised.quantise(w, base)
        for p, w in weights.items()
    }
    return lowrank.quantised.nested(stored)
