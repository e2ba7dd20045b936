"""Values checked where they are given: one sentence with the value and what to give instead.

So is a package of an extra, where it is first needed.
"""

import importlib
import math
import os
import re
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np


def whole(name: str, value: Any, least: int) -> int:
    """The value as an int; raises TypeError if it is no whole number, ValueError below `least`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a whole number")
    if value < least:
        raise ValueError(f"{name}={value}; use at least {least}")
    return int(value)


def wholes(name: str, value: Any, least: int) -> None:
    """Raises TypeError or ValueError unless these are several whole numbers, each at least this."""
    kind(name, value, Sequence | np.ndarray, "several whole numbers, such as (4, 8)")
    for i, each in enumerate(value):
        whole(f"{name}[{i}]", each, least)


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """The value as a float.

    Raises TypeError if it is no number, ValueError if it is not finite or not from least to most.
    """
    if isinstance(value, bool | np.bool) or not isinstance(value, float | int | np.number):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a number")
    if not (least <= value <= most and math.isfinite(value)):
        ends = [f"from {least:g}"] * math.isfinite(least) + [f"to {most:g}"] * math.isfinite(most)
        raise ValueError(f"{name}={value}; use a finite number {' '.join(ends)}".rstrip())
    return float(value)


def array(name: str, value: Any, dtype: Any = None) -> np.ndarray:
    """The value as an array; raises ValueError if it is ragged or not of that type."""
    try:
        return np.asarray(value, dtype)
    except (ValueError, TypeError) as error:
        cause = str(error).partition(". ")[0]
        raise ValueError(f"{name} makes no array ({cause}); give rows of one length") from None


def distinct(name: str, value: np.ndarray, **options: Any) -> Any:
    """np.unique of the values; raises ValueError if some cannot be compared with others."""
    try:
        return np.unique(value, **options)
    except TypeError:
        kinds = sorted({type(x).__name__ for x in value.tolist()})
        raise ValueError(
            f"{name} are of several types, {' and '.join(kinds)}; give numbers only, or text only"
        ) from None


def choice(name: str, value: Any, known: Collection) -> None:
    """Raises ValueError unless the value is one of those known."""
    if not any(value is one or (type(value) is type(one) and value == one) for one in known):
        raise ValueError(f"{name}={value!r}; use one of {tuple(known)}")


def kind(name: str, value: Any, wanted: Any, remedy: str) -> None:
    """Raises TypeError, with the remedy, unless the value is of the type that is wanted."""
    if not isinstance(value, wanted):
        raise TypeError(f"{name} is a {type(value).__name__}; give {remedy}")


def function(name: str, value: Any, remedy: str) -> None:
    """Raises TypeError, with the remedy, unless the value can be called."""
    if not callable(value):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give {remedy}")


def pattern(name: str, value: Any) -> None:
    """Raises TypeError if the value is no text, ValueError if it is no regular expression."""
    if not isinstance(value, str):
        raise TypeError(
            f'{name}={value!r} is a {type(value).__name__}; give one regular expression, "a|b" '
            "for either"
        )
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(
            f'{name}={value!r} is no regular expression ({error}); for any characters write ".*"'
        ) from None


def package(name: str, extra: str, wanted: str | os.PathLike) -> Any:
    """The package or module of that name; ImportError, with the remedy, where it is missing.

    `extra` of jaxfed installs it, and `wanted` is what needs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = name.partition(".")[0]
        raise ImportError(
            f"{wanted} needs {missing} ({error}): pip install 'jaxfed[{extra}]'"
        ) from error
