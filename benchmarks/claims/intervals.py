"""Means over seeds with their 95 % intervals, and tables in Markdown."""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special


class Interval(NamedTuple):
    mean: float
    low: float
    high: float


def student(by_seed: Sequence[float] | np.ndarray) -> Interval:
    """The mean of numbers [seeds] with Student's 95 % interval, which is nan for one seed."""
    by_seed = np.asarray(by_seed, float)
    mean = float(by_seed.mean())
    if len(by_seed) < 2:
        return Interval(mean, np.nan, np.nan)
    half = special.stdtrit(len(by_seed) - 1, 0.975) * by_seed.std(ddof=1) / len(by_seed) ** 0.5
    return Interval(mean, float(mean - half), float(mean + half))


def bootstrap(by_seed: np.ndarray) -> Interval:
    """The mean of numbers [seeds]; 95 % of the means of 10,000 resamples of whole seeds."""
    by_seed = np.asarray(by_seed, float)
    draws = np.random.default_rng(0).integers(len(by_seed), size=(10_000, len(by_seed)))
    low, high = np.percentile(by_seed[draws].mean(1), [2.5, 97.5])
    return Interval(float(by_seed.mean()), float(low), float(high))


def points(found: Interval, digits: int = 1) -> str:
    """An interval of shares in percentage points: +1.2 [-0.3, 2.7]."""
    mean, low, high = (f"{100 * x:+.{digits}f}" for x in found)
    return f"{mean} [{low}, {high}]"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation of shares, in percent."""
    deviation = f" ± {100 * statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.{digits}f}{deviation}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
