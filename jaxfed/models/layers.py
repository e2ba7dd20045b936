"""Layers' parts that text models share: activations, and weights kept in a narrow type."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

ACTIVATIONS = {
    # PyTorch's form. jax.nn.gelu uses erfc, which made a local step 2 % slower on a CPU.
    "gelu": lambda x: 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5)),
    "gelu_tanh": nn.gelu,
    "relu": nn.relu,
    "silu": nn.silu,
}


def stored_as(dtype: DTypeLike | None) -> dict:
    """Options of a dense layer that stores its weights, and multiplies its inputs, in `dtype`.

    It accumulates in float32, so a low-rank term added to its output is not rounded to `dtype`.
    """
    if dtype is None:
        return {}
    sums = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
    return {"dtype": dtype, "param_dtype": dtype, "dot_general": sums}
