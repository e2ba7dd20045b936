"""Successive halving: which settings of a sweep go on, and how far.

Of n settings, the best of every eta go on at each rung, by the mean over their seeds of the newest
score that is no later than the rung. Rungs are evaluations: with R rounds and the smallest J with
eta^J >= n, those of rounds R / eta^J, ..., R / eta, rounded up. Jamieson and Talwalkar,
arXiv 1502.07943, Algorithm 1, with budgets that grow instead of being equal.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxfed.cli import recorded, scoring
from jaxfed.cli.product import Trial


def rungs(settings: int, rounds: int, every: int, eta: int) -> list[int]:
    """The rounds of the evaluations at which settings are dropped, ascending, before the last.

    >>> rungs(9, 90, 10, 3)
    [10, 30]
    """
    halvings = 0
    while eta**halvings < settings:
        halvings += 1
    found = {-(-rounds // (eta**j * every)) * every for j in range(1, halvings + 1)}
    return sorted(t for t in found if t < rounds)


def kept(scores: Mapping[str, float], eta: int) -> list[str]:
    """The settings with the best n / eta scores, rounded up; of equal ones the first.

    >>> kept({"a": 0.1, "b": 0.9, "c": 0.5}, 2)
    ['b', 'c']
    """
    best = sorted(scores, key=lambda name: -scores[name])[: -(-len(scores) // eta)]
    return [name for name in scores if name in best]


def setting(trial: Trial) -> str:
    """Equal for trials that differ in the seed alone."""
    return repr({n: v for n, v in trial.settings.items() if n != "seed"})


def scores(
    trials: Sequence[Trial],
    rung: int,
    diverged: Sequence[Path],
    by: Sequence[str],
) -> dict[str, float]:
    """{setting: mean over seeds of the score at a rung, by these measures; see scoring.py}."""
    found: dict[str, list[float]] = {}
    for trial in trials:
        lost = trial.folder in diverged
        value = -math.inf if lost else scoring.score(recorded.read(trial.folder), by, rung)
        found.setdefault(setting(trial), []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def until(
    rung: int, stop_when: Callable[[Sequence[dict]], bool] | None
) -> Callable[[Sequence[dict]], bool]:
    """A `stop_when` that is also true at a rung."""

    def ends(records: Sequence[dict]) -> bool:
        return len(records) >= rung or (stop_when is not None and bool(stop_when(records)))

    return ends
