"""Frozen kernels in int8 or int4, which a layer multiplies by as they are stored.

    W[i, o] ~ scale[g, o] * code[i, o],    |W - scale * code| <= scale / 2

Codes are symmetric whole numbers, 127 or 7 at most, and a scale is the largest |W| of its inputs
divided by that. In int8 an output has one scale; in int4 one for each group g of at most 64 inputs,
and two codes share a byte. What is trained beside such a kernel stays as it is: gradients reach the
factors and the activations, and nothing writes to the kernel.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, TypeGuard

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxfed import trees
from jaxfed.algorithm import PyTree

MOST = {"int8": 127, "int4": 7}  # the largest code
GROUP = 64  # inputs that share a scale in int4, at most


@partial(
    jax.tree_util.register_dataclass, data_fields=("codes", "scale"), meta_fields=("kind", "inputs")
)
@dataclasses.dataclass(frozen=True)
class Quantised:
    """A kernel [..., in, out], or a stack of such, as codes and scales.

    In int4 a byte holds the codes of rows i and i + ceil(in / 2), each with 8 added.
    """

    codes: Any  # int8 [..., in, out] or uint8 [..., ceil(in / 2), out]
    scale: Any  # float32 [..., groups, out]
    kind: Literal["int8", "int4"]
    inputs: int

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the kernel."""
        return (*self.codes.shape[:-2], self.inputs, self.codes.shape[-1])

    @property
    def size(self) -> int:
        """How many weights the kernel has."""
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> np.dtype:
        """That of its scales, and of the kernel that they make."""
        return np.dtype(self.scale.dtype)


def quantise(weight: Any, kind: Literal["int8", "int4"]) -> Quantised:
    """A kernel [..., in, out] in that kind, on the host.

    A group of int4 is the largest divisor of `in` up to 64.
    """
    weight = np.asarray(weight, np.float32)
    *stack, inputs, outputs = weight.shape
    group = inputs
    if kind == "int4":
        group = next(g for g in range(min(GROUP, inputs), 0, -1) if inputs % g == 0)
    parts = weight.reshape(*stack, inputs // group, group, outputs)
    scale = np.abs(parts).max(axis=-2) / np.float32(MOST[kind])  # [..., groups, out]
    steps = parts / np.where(scale > 0, scale, 1)[..., None, :]
    codes = np.rint(steps).astype(np.int8).reshape(weight.shape)
    if kind == "int4":
        half = -(-inputs // 2)
        low, high = (codes + 8).astype(np.uint8)[..., :half, :], (codes + 8)[..., half:, :]
        above = np.zeros_like(low)
        above[..., : inputs - half, :] = high
        codes = low | above << 4
    return Quantised(codes, scale, kind, inputs)


def dequantise(q: Quantised) -> jax.Array:
    """The kernel float32 [..., in, out] that the codes and scales stand for."""
    codes, groups = _whole(q).astype(q.dtype), q.scale.shape[-2]
    parts = codes.reshape(*codes.shape[:-2], groups, q.inputs // groups, codes.shape[-1])
    return (parts * q.scale[..., None, :]).reshape(codes.shape)


def _whole(q: Quantised) -> jax.Array:
    """The codes [..., in, out], each in a byte of its own."""
    if q.kind == "int8":
        return q.codes
    both = jnp.concatenate([q.codes & 15, q.codes >> 4], axis=-2)
    return both[..., : q.inputs, :].astype(jnp.int8) - 8


def called(module: nn.Module, q: Quantised, x: jax.Array) -> jax.Array:
    """The outputs of a dense layer with this kernel, in the types in which the layer multiplies.

    The gradient unpacks the kernel again, so that no float copy of it lies between the two passes.
    ValueError for another layer.
    """
    if not isinstance(module, nn.Dense):
        name = f"{'/'.join(module.path)} is a {type(module).__name__}"
        raise ValueError(f"{name}, and only nn.Dense multiplies {q.kind}; keep its weight in float")
    wide = module.dtype or jnp.promote_types(x.dtype, q.dtype)
    dot = module.dot_general or jax.lax.dot_general

    @jax.checkpoint
    def product(x: jax.Array, q: Quantised) -> jax.Array:
        alone = q.scale.shape[-2] == 1
        kernel = _whole(q) if alone else dequantise(q)
        axes = (((x.ndim - 1,), (0,)), ((), ()))
        y = dot(x.astype(wide), kernel.astype(wide), axes, precision=module.precision)
        return (y * q.scale[0]).astype(y.dtype) if alone else y

    y = product(x, q)
    bias = module.variables["params"].get("bias")
    return y if bias is None else y + bias.astype(wide)


# ---------------------------------------------------------------------- trees of weights


def is_quantised(x: Any) -> TypeGuard[Quantised]:
    """True for a kernel that is not stored in floats."""
    return isinstance(x, Quantised)


def nested(weights: Mapping[str, Any]) -> PyTree:
    """The weights {path: array} in the dicts that a flax model has, stored as they are."""
    return traverse_util.unflatten_dict(weights, sep="/")


def floats(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights {path: array}, all in floats."""
    return {p: dequantise(w) if is_quantised(w) else w for p, w in weights.items()}


def shapes(weights: Mapping[str, Any]) -> dict[str, Any]:
    """The weights {path: array}, with the shapes of floats in the place of quantised ones."""
    return {
        p: jax.ShapeDtypeStruct(w.shape, w.dtype) if is_quantised(w) else w
        for p, w in weights.items()
    }


def size(weights: Mapping[str, Any]) -> int:
    """How many weights {path: array} there are, two of them in a byte or not."""
    return sum(w.size if is_quantised(w) else trees.size(w) for w in weights.values())


def beside(path: str, q: Quantised) -> dict[str, jax.Array]:
    """Codes and scales as parameters in the place of a kernel, so that loops over layers cut them.

    `at` puts them together again.
    """
    return {f"{path}_codes": q.codes, f"{path}_scale": q.scale}


def at(module: nn.Module, q: Quantised) -> Quantised:
    """The kernel of the layer that is being called; q may be of a stack."""
    own = module.variables["params"]
    return dataclasses.replace(q, codes=own["kernel_codes"], scale=own["kernel_scale"])


def refuse(weights: Mapping[str, Any], what: str) -> None:
    """Raises ValueError if a weight {path: array} is quantised, and so not for `what` to change."""
    for path, w in weights.items():
        if is_quantised(w):
            raise ValueError(
                f"{path} is stored in {w.kind}, which {what} cannot change; read the weights with "
                'base="float", use another method, or keep merges as a list '
                "(combine.accumulate_list)"
            )
