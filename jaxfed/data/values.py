"""Values checked where they are given: one sentence with the value and what to give instead."""

import math
from typing import Any

import numpy as np


def whole(name: str, value: Any, least: int) -> int:
    """The value as an int; raises TypeError if it is no whole number, ValueError below `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a whole number")
    if value < least:
        raise ValueError(f"{name}={value}; use at least {least}")
    return int(value)


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """The value as a float; raises TypeError if it is no number, ValueError if it is not finite or

    not from `least` to `most`.
    """
    if isinstance(value, bool | np.bool) or not isinstance(value, float | int | np.number):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a number")
    if not (least <= value <= most and math.isfinite(value)):
        ends = [f"from {least:g}"] * math.isfinite(least) + [f"to {most:g}"] * math.isfinite(most)
        raise ValueError(f"{name}={value}; use a finite number {' '.join(ends)}".rstrip())
    return float(value)
