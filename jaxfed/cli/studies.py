"""Runs that differ in their seed alone are one group: means, intervals, paired differences."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from jaxfed.cli import recorded
from jaxfed.cli.recorded import Run, best, measures, reached, series
from jaxfed.simulation import records


class Group(NamedTuple):
    """Runs that are the same but for the settings by which they were grouped."""

    name: str
    runs: tuple[Run, ...]
    keys: tuple[tuple, ...]  # of each run: its values of those settings


class Statistic(NamedTuple):
    """Of `size` numbers: mean, standard deviation, and Student's 95 % interval of the mean.

    With one number there is no deviation, and the interval is nan.
    """

    mean: float
    deviation: float
    low: float
    high: float
    size: int


def statistic(values: Sequence[float] | np.ndarray) -> Statistic:
    """The statistic of n > 0 numbers: mean +- t s / sqrt(n), t of n - 1 degrees of freedom.

    Equal numbers have no deviation, not that of their mean's rounding.
    """
    x = np.asarray(values, float)
    n = len(x)
    mean = float(x[0] if np.ptp(x) == 0 else x.mean())
    if n < 2:
        return Statistic(mean, np.nan, np.nan, np.nan, n)
    deviation = float(np.sqrt(np.sum((x - mean) ** 2) / (n - 1)))
    half = float(special.stdtrit(n - 1, 0.975)) * deviation / n**0.5
    return Statistic(mean, deviation, mean - half, mean + half, n)


def grouped(runs: Sequence[Run], by: Sequence[str] = ()) -> list[Group]:
    """The runs in groups that agree in every setting but those in `by`; without any, one a run.

    A group is named by the settings in which groups differ. ValueError if no run has a setting of
    that name.
    """
    runs = recorded.apart(runs)
    if not by:
        return [Group(n, (run,), ((),)) for n, run in zip(legend(runs), runs, strict=True)]
    by = [name.replace("-", "_") for name in by]
    known = dict.fromkeys(name for run in runs for name in run.settings)
    if unknown := [name for name in by if name not in known]:
        raise ValueError(
            f"no run has a setting {unknown[0]!r} to group by; they have {', '.join(known)}"
        )
    together: dict[str, list[Run]] = {}
    for run in runs:
        rest = {n: v for n, v in _settings(run).items() if n not in by}
        together.setdefault(repr(sorted(rest.items())), []).append(run)
    firsts = [found[0] for found in together.values()]
    return [
        Group(name, tuple(found), tuple(tuple(run.settings.get(n) for n in by) for run in found))
        for name, found in zip(legend(firsts, without=by), together.values(), strict=True)
    ]


def _settings(run: Run) -> dict[str, Any]:
    return {"config": run.config, **run.settings}


def legend(runs: Sequence[Run], without: Sequence[str] = ()) -> list[str]:
    """A label for each run: the settings in which the runs differ, or its folder's name."""
    settings = [{n: v for n, v in _settings(run).items() if n not in without} for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    differ = [n for n in names if len({repr(one.get(n)) for one in settings}) > 1]
    labels = [
        ", ".join(f"{n}={one[n]}" for n in differ if one.get(n) is not None) for one in settings
    ]
    if without and len(runs) == 1:
        method = settings[0].get("method", runs[0].config)
        return [runs[0].name if method is None else str(method)]
    return recorded.numbered(
        [
            (label if labels.count(label) == 1 else f"{label} ({run.name})") if label else run.name
            for label, run in zip(labels, runs, strict=True)
        ]
    )


def main_measure(runs: Sequence[Run], asked: str | None = None) -> str:
    """The measure by which runs are compared: the one that is asked for, which some run must have.

    By default it is accuracy where there is one, else their first own.
    """
    found = dict.fromkeys(name for run in runs for name in measures(run))
    if asked is not None:
        found |= dict.fromkeys(name for run in runs for name in recorded.personal(run))
        if asked not in found:
            raise ValueError(
                f"--measure {asked}: no run has it; they have {', '.join(found) or 'none yet'}"
            )
        return asked
    if "accuracy" in found or not found:
        return "accuracy"
    return next(iter(found))


def of_own_models(measure: str) -> str:
    """The mean over clients of what a measure of the common model is of."""
    return f"personal/{'loss' if measure == 'test_loss' else measure}/mean"


def in_words(measure: str) -> str:
    """What a measure is of, as titles name it: "perplexity" for test_perplexity."""
    return records.named(measure).removeprefix("test_").replace("_", " ")


def title(measure: str) -> str:
    """A measure as titles begin: "Test accuracy", "Accuracy of clients' own models (mean)"."""
    name = in_words(measure)
    if not measure.startswith("personal/"):
        return f"Test {name}"
    return f"{name.capitalize()} of clients' own models ({measure.rpartition('/')[2]})"


def is_share(measure: str, runs: Sequence[Run]) -> bool:
    """True if a measure is a share, to be written in percent: more is better, up to 1."""
    values = [abs(x) for run in runs for x in series(run, measure)[1] if np.isfinite(x)]
    return not records.falls(measure) and bool(max(values, default=0) <= 1)


def common(each: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """(rounds [n], values [runs, n]) at the rounds that all of (rounds, values) have."""
    counts = Counter(int(t) for rounds, _ in each for t in rounds)
    shared = np.array(sorted(t for t, n in counts.items() if n == len(each)), int)
    return shared, np.stack([values[np.isin(rounds, shared)] for rounds, values in each])


def goal_of(runs: Sequence[Run], measure: str) -> float | None:
    """A level to compare runs at: 95 % of the best, or 1 / 0.95 of it where less is better."""
    found = [value for run in runs if (value := best(run, measure)) is not None]
    if not found:
        return None
    return min(found) / 0.95 if records.falls(measure) else 0.95 * max(found)


def last(run: Run, measure: str) -> float | None:
    """The value in the newest evaluation; None without one."""
    values = series(run, measure)[1]
    return float(values[-1]) if values.size else None


def over_runs(values: Sequence[float | None]) -> Statistic | None:
    """The statistic of those that are numbers; None without any."""
    found = [value for value in values if value is not None and np.isfinite(value)]
    return statistic(found) if found else None


def to_goal(group: Group, goal: float, measure: str) -> tuple[Statistic | None, Statistic | None]:
    """(rounds, megabytes) to the goal, over the runs that reach it."""
    found = [hit for run in group.runs if (hit := reached(run, goal, measure)) is not None]
    return over_runs([hit[0] for hit in found]), over_runs([hit[1] for hit in found])


def differences(groups: Sequence[Group], measure: str) -> tuple[str, dict[str, Statistic]]:
    """(the best group, {other group: its last value minus the best's, paired by key}).

    A pair is a run of each with equal values of the settings that the runs were grouped by; of
    several with equal values, the first of each are a pair, then the second.
    """
    ends = [_ends(group, measure) for group in groups]
    means = [over_runs(list(end.values())) for end in ends]
    scores = [s.mean if s else np.nan for s in means]
    if np.isnan(scores).all():
        return "", {}
    top = int(np.nanargmin(scores) if records.falls(measure) else np.nanargmax(scores))
    found = {}
    for group, end in zip(groups, ends, strict=True):
        pairs = [
            mine - theirs
            for key, mine in end.items()
            if mine is not None and (theirs := ends[top].get(key)) is not None
        ]
        if group is not groups[top] and (paired := over_runs(pairs)) is not None:
            found[group.name] = paired
    return groups[top].name, found


def _ends(group: Group, measure: str) -> dict[tuple, float | None]:
    """{(key, how many before have it): the last value} of a group's runs."""
    before: Counter[tuple] = Counter()
    found = {}
    for key, run in zip(group.keys, group.runs, strict=True):
        found[key, before[key]] = last(run, measure)
        before[key] += 1
    return found
