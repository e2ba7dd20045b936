"""The sizes of a model, checked as it is made."""

import inspect
from collections.abc import Sequence
from typing import Literal, get_args, get_origin

import flax.linen as nn
import jax.numpy as jnp

from jaxfed import values

MAY_BE_ZERO = ("types", "pad", "adapter", "prefix")


def check(model: nn.Module) -> None:
    """Raises TypeError or ValueError for a field that is no size, no share or no choice.

    What a field may be follows from its annotation: int, Sequence[int], a Literal, or a float
    (`dropout`, from 0 to below 1); `compute` is a type of floats. Sizes are at least 1, unless the
    table above has them.
    """
    for name, kind in inspect.get_annotations(type(model)).items():
        value = getattr(model, name)
        least = 0 if name in MAY_BE_ZERO else 1
        if get_origin(kind) is Literal:
            values.choice(name, value, get_args(kind))
        elif kind is int or (kind == int | None and value is not None):
            values.whole(name, value, least)
        elif kind == Sequence[int]:
            values.wholes(name, value, least)
        elif name == "dropout" and not 0 <= values.number(name, value) < 1:
            raise ValueError(f"{name}={value}; use a number from 0 to below 1")
        elif name == "compute" and value is not None and not jnp.issubdtype(value, jnp.floating):
            raise ValueError(f"compute={value}; use a type of floats, such as jnp.bfloat16")
