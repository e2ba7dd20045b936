"""`jaxfed sweep`: a trial for each combination of the settings that are given several values.

A trial is a run, in a folder of its own inside the sweep's. The sweep's sweep.json lists them, and
is there before the first begins: a sweep that was killed goes on by the same command.
"""

import contextlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxfed.cli import (
    calling,
    errors,
    halving,
    options,
    product,
    recorded,
    scoring,
    studies,
    tables,
    trials,
)
from jaxfed.cli.options import Config
from jaxfed.cli.product import Trial, Tuning
from jaxfed.cli.trials import How
from jaxfed.cli.watching import Watch
from jaxfed.simulation import lock, run_folder, stored

OWN = "own_models"  # whether clients of a trial deploy models of their own
SWEEP: dict[str, tuple] = {"text": (str,), "trials": (dict,), OWN: (bool, type(None))}  # sweep.json
ENDED = "ended.json"  # {folder: True for a trial that came to its end, False if it diverged}


def command(arguments: list[str], watch: Watch) -> None:
    """Runs the trials that are not finished; prints a line for each, and a table of them all.

    With `--tune NAME ...`, first a trial for each value of that setting is scored on a validation
    set, for each combination of the others but the seed, after all rounds or `--tune-rounds`; then
    trials with the best run for all seeds.
    With `--successive-halving [ETA]`, trials that fall behind end early; see halving.py.
    `--measure NAME` is what both compare by; see scoring.py. With `--at-once N`, N trials run in
    lockstep; see trials.py.
    """
    config = calling.config_of(arguments, "sweep", watch)
    if jax.process_count() > 1:
        raise ValueError(
            f"a sweep runs in one process, and this is one of {jax.process_count()}; start a sweep "
            "in each of them alone, in folders of their own"
        )
    given = product.given(arguments[1:])
    eta = product.eta(given.pop("successive_halving", None), "tune" in given)
    at_once = product.at_once(given.pop("at_once", None))
    measure = scoring.measure(given.pop("measure", None))
    with options.at_home(config), errors.reading():
        tuning = product.for_tuning(given)
        out, found = product.trials(config, given)
        if tuning:
            place = {"out": ["--out", str(out / "tune")]}
            folder, rated = product.trials(config, {**tuning.given, **place})
    how = How(config, arguments[0], watch, at_once, eta, measure)
    with _held(out):
        _check(out, config, found)
        if tuning:
            with _held(folder):
                best = _tuned(folder, rated, tuning, how._replace(eta=None))
            found = [t for t in found if _has(t, best[_rest(t, tuning)])]
        _run(out, found, how)
    groups = studies.grouped([recorded.read(trial.folder) for trial in found])
    print(tables.text(tables.table(groups, measure=measure)))


def _run(out: Path, found: list[Trial], how: How, listed: Sequence[Trial] = ()) -> None:
    """Runs those of the trials that are not finished, and with `eta` drops some at each rung.

    The folder's list of trials has those that are `listed`; by default these.
    """
    here = _check(out, how.config, listed or found)
    left = [trial for trial in found if not _has_ended(trial)]
    built = trials.built(how, left if how.eta is None else found)
    rungs = [] if how.eta is None else _rungs(found, built.lengths, how.eta)
    content = {"text": how.config.text, "trials": here, OWN: built.own or _deploys_own(out)}
    run_folder.write_json(out / "sweep.json", content)
    how.watch.clear()
    print(f"folder   {out}")
    print(f"trials   {len(found)}, {len(found) - len(left)} of them finished", flush=True)
    going = found
    for rung in (*rungs, None):
        due = [t for t in going if not _has_ended(t) and not _has_reached(t, rung)]
        for group in trials.groups(due, how.at_once):
            for trial, fate in trials.go(group, built.shared[trials.kind(group[0])], how, rung):
                if fate is not None:
                    content = {**_ended(out), trial.folder.name: fate}
                    run_folder.write_json(out / ENDED, content)
                    if how.measure:  # one that no run has is an error after the first
                        scoring.score(recorded.read(trial.folder), (how.measure,))
        if rung is not None and how.eta is not None:
            going = _kept(going, rung, how.eta, _scored_by(out, how))


def _rungs(trials: Sequence[Trial], lengths: set[tuple[int, int]], eta: int) -> list[int]:
    """The rounds at which trials are dropped; `lengths` are their (rounds, evaluate_every)."""
    if len(lengths) > 1:
        raise ValueError(
            "--successive-halving compares at the same evaluations: give one number for rounds and "
            "evaluations of all trials"
        )
    ((rounds, every),) = lengths
    if not every:
        raise ValueError("--successive-halving needs evaluations; give --evaluate-every 1 or more")
    return halving.rungs(len({halving.setting(t) for t in trials}), rounds, every, eta)


def _kept(trials: Sequence[Trial], rung: int, eta: int, by: Sequence[str]) -> list[Trial]:
    """Those of the trials that go on after a rung."""
    ended = _ended(trials[0].folder.parent)
    lost = [t.folder for t in trials if ended.get(t.folder.name) is False]
    scores = halving.scores(trials, rung, lost, by)
    kept = halving.kept(scores, eta)
    for trial in trials:
        if (name := halving.setting(trial)) not in kept:
            print(f"dropped  {trial.folder.name}, {abs(scores[name]):.4f} at round {rung}")
    return [trial for trial in trials if halving.setting(trial) in kept]


# ---------------------------------------------------------------------- what is tuned


def _tuned(out: Path, grid: Sequence[Trial], tuning: Tuning, how: How) -> dict[str, dict[str, Any]]:
    """{the other settings: {name: its best value}}, after the trials of the grid that tell.

    One name is tuned after another, beside the best values of those before it; those after it are
    at the middle of their values.
    """
    each: dict[str, dict[str, Any]] = {}
    for trial in grid:
        each.setdefault(_rest(trial, tuning), {n: _middle(grid, n) for n in tuning.names})
    for name in tuning.names:
        fixed = {rest: {n: v for n, v in at.items() if n != name} for rest, at in each.items()}
        tried = [trial for trial in grid if _has(trial, fixed[_rest(trial, tuning)])]
        _run(out, tried, how, grid)
        for rest, value in _best(tried, name, tuning, _scored_by(out, how)).items():
            each[rest] = {**each[rest], name: value}
    return each


def _middle(grid: Sequence[Trial], name: str) -> Any:
    values = list(dict.fromkeys(trial.settings[name] for trial in grid))
    return values[(len(values) - 1) // 2]


def _best(trials: Sequence[Trial], name: str, tuning: Tuning, by: Sequence[str]) -> dict[str, Any]:
    """{the settings but those tuned: the value of `name` with the best last score by measures}."""
    scores: dict[str, dict[Any, float]] = {}
    for trial in trials:
        scored = scores.setdefault(_rest(trial, tuning), {})
        scored[trial.settings[name]] = _score(trial, by)
    for rest, scored in scores.items():
        if max(scored.values()) == -math.inf:
            raise ValueError(
                f"--tune {name}: every trial of {', '.join(map(str, scored))} diverged, with "
                f"{rest}; give other values"
            )
    best = {rest: max(scored, key=lambda v: scored[v]) for rest, scored in scores.items()}
    for trial in trials:
        value, tried = trial.settings[name], scores[_rest(trial, tuning)]
        if value == best[_rest(trial, tuning)]:
            print(f"chosen   {trial.folder.name}, of {', '.join(map(str, tried))}", flush=True)
            if isinstance(value, int | float) and value in (min(tried), max(tried)):
                warnings.warn(
                    f"{trial.folder.name}: {name} is the best at an end of what was tried; a value "
                    "beyond it may be better",
                    stacklevel=1,
                )
    return best


def _has(trial: Trial, values: Mapping[str, Any]) -> bool:
    return all(trial.settings[n] == value for n, value in values.items())


def _rest(trial: Trial, tuning: Tuning) -> str:
    """Equal for a trial that chooses and those that it chooses for."""
    apart = (*tuning.names, *tuning.apart)
    return repr({n: v for n, v in trial.settings.items() if n not in apart})


def _score(trial: Trial, by: Sequence[str]) -> float:
    """The last score by these measures; lowest for a trial that diverged."""
    run = recorded.read(trial.folder)
    if not _ended(trial.folder.parent)[trial.folder.name]:
        return -math.inf
    if not recorded.series(run, "test_loss")[0].size:
        raise ValueError("--tune needs an evaluation at least after the last round; none was made")
    return scoring.score(run, by)


def _scored_by(out: Path, how: How) -> tuple[str, ...]:
    """The measures by which the trials of this folder are compared."""
    return scoring.measures(how.measure, _deploys_own(out))


def _deploys_own(out: Path) -> bool:
    """Whether clients of a trial there deploy models of their own; False for a new folder."""
    path = out / "sweep.json"
    return path.exists() and bool(stored.object_of(path).get(OWN))


# ---------------------------------------------------------------------- the sweep's folder


@contextlib.contextmanager
def _held(out: Path) -> Iterator[None]:
    """While no other program runs a sweep in this folder; FileExistsError if one does."""
    if (out / "settings.json").exists():
        raise FileExistsError(run_folder.why_not_new(out))
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; choose another folder for the sweep")
    with run_folder.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    held = lock.take(out)
    try:
        yield
    finally:
        held.release()


def _check(out: Path, config: Config, trials: Sequence[Trial]) -> dict[str, dict]:
    """{folder: settings} of the trials; FileExistsError if another sweep is there.

    A sweep may be given more values.
    """
    path = out / "sweep.json"
    here = {t.folder.name: json.loads(json.dumps(t.settings, default=str)) for t in trials}
    if len(here) < len(trials):
        raise ValueError("two trials would share a folder; give values that differ in their names")
    if path.exists():
        before = stored.object_of(path)
        stored.check_kinds({**dict.fromkeys(SWEEP), **before}, SWEEP, path)
        if before["text"] != config.text:
            raise FileExistsError(
                f"{out} holds a sweep of another config, or of this one before it was edited; "
                "choose another folder"
            )
        others = [n for n, v in before["trials"].items() if here.get(n) != v]
        if others:
            raise FileExistsError(
                f"{out} holds another sweep: its trial {others[0]!r} has other settings, or is "
                "none of these; give the command that began it, or choose another folder"
            )
    return here


def _ended(out: Path) -> dict[str, bool]:
    """{folder: whether it came to its end} of the trials that have ended.

    A kill before this is written costs a look at a run that is finished.
    """
    return stored.object_of(out / ENDED) if (out / ENDED).exists() else {}


def _has_ended(trial: Trial) -> bool:
    """True if the trial came to its end, was stopped by `stop_when`, or diverged."""
    ended = trial.folder.name in _ended(trial.folder.parent)
    return ended and not run_folder.why_not_begun(trial.folder)


def _has_reached(trial: Trial, rung: int | None) -> bool:
    """True if the trial has recorded the rounds up to a rung."""
    if rung is None or run_folder.why_not_begun(trial.folder):
        return False
    return len(recorded.read(trial.folder).records) >= rung
