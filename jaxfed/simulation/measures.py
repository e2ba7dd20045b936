"""What an evaluation measures, by name: the task's measures, and a user's own of the server."""

import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from jaxfed import values
from jaxfed.algorithm import check_names
from jaxfed.simulation import records


def check(summary: Callable, sums: dict) -> set[str]:
    """The names of the task's measures. Raises ValueError if one is reserved, or there is no loss.

    `sums` have shapes [pieces, ...].
    """
    zeros = {n: np.zeros(s.shape[1:]) for n, s in sums.items()}
    with np.errstate(all="ignore"):
        names = set(summary(zeros, 1))
    if "loss" not in names:
        raise ValueError(
            f"the task's evaluation gives {sorted(names)}; let `evaluate` return the sum of the "
            'losses too, as "loss"'
        )
    _check_names(names - {"accuracy", "loss"})
    return names


def _check_names(names: set[str]) -> None:
    """Raises ValueError if a name is reserved, or no name."""
    check_names(names)
    if wrong := sorted(name for name in names if not records.is_name(name)):
        raise ValueError(
            f"a measure is called {wrong[0]!r}, and reports make it part of a file's name; rename "
            "it: a letter or digit, then up to 99 letters, digits, spaces and _ . + -"
        )


def of_server(
    measures: Callable | None, server: Any, done: int, others: Collection[str] = ()
) -> dict[str, float]:
    """{name: number} that a user's function of server and round gives, or {} without one.

    Raises TypeError or ValueError for anything else, and for a name that is reserved or one of the
    `others`.
    """
    if measures is None:
        return {}
    given = measures(server, done)
    values.kind("what server_measures returns", given, Mapping, "numbers by name, {'rank': 4.0}")
    found = {}
    for name, value in given.items():
        numeric = isinstance(value, numbers.Real) or hasattr(value, "dtype")
        if not (isinstance(name, str) and numeric) or np.shape(value) or not np.isrealobj(value):
            raise TypeError(
                f"server_measures gives {name!r}: {type(value).__name__} {np.shape(value)}; give "
                "each measure a name and one number"
            )
        found[name] = float(value)
    _check_names(set(found))
    if twice := sorted(set(found) & set(others)):
        raise ValueError(f"server_measures gives {twice[0]!r}, which records have; rename it")
    return found
