"""`jaxfed sweep`: a trial for each combination of the settings that are given several values.

A trial is a run, in a folder of its own inside the sweep's. The sweep's sweep.json lists them, and
is there before the first begins: a sweep that was killed goes on by the same command.
"""

import contextlib
import dataclasses
import json
import math
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxfed.cli import (
    calling,
    errors,
    following,
    halving,
    options,
    product,
    recorded,
    studies,
    tables,
)
from jaxfed.cli.launching import Launch
from jaxfed.cli.options import Config
from jaxfed.cli.product import Trial
from jaxfed.cli.watching import Watch
from jaxfed.data.federated import Size
from jaxfed.simulation import lock, run_folder, signals, stored
from jaxfed.simulation.host import Host
from jaxfed.simulation.prepare import Origin, prepare
from jaxfed.simulation.programs import Programs

SWEEP: dict[str, tuple] = {"text": (str,), "trials": (dict,)}  # of sweep.json
ENDED = "ended.json"  # {folder: True for a trial that came to its end, False if it diverged}


def command(arguments: list[str], watch: Watch) -> None:
    """Runs the trials that are not finished; prints a line for each, and a table of them all.

    With `--tune NAME`, first a trial for each value of that setting is scored on a validation set,
    for each combination of the others but the seed; then trials with the best run for all seeds.
    With `--successive-halving [ETA]`, trials that fall behind end early; see halving.py.
    """
    config = calling.config_of(arguments, "sweep", watch)
    if jax.process_count() > 1:
        raise ValueError(
            f"a sweep runs in one process, and this is one of {jax.process_count()}; start a sweep "
            "in each of them alone, in folders of their own"
        )
    given = product.given(arguments[1:])
    tuned = given.pop("tune", None)
    eta = product.eta(given.pop("successive_halving", None), tuned)
    with options.at_home(config), errors.reading():
        grid, tuning = product.for_tuning(given, tuned)
        out, trials = product.trials(config, given)
        if tuning:
            folder, rated = product.trials(config, {**grid, "out": ["--out", str(out / "tune")]})
    with _held(out):
        _check(out, config, trials)
        if tuning:
            with _held(folder):
                _run(folder, config, rated, arguments[0], watch)
            best = _best(rated, tuning)
            trials = [t for t in trials if t.settings[tuning] == best[_rest(t, tuning)]]
        _run(out, config, trials, arguments[0], watch, eta)
    groups = studies.grouped([recorded.read(trial.folder) for trial in trials])
    print(tables.text(tables.table(groups)))


def _run(
    out: Path, config: Config, trials: list[Trial], given: str, watch: Watch, eta: int | None = None
) -> None:
    """Runs those of the trials that are not finished, and with `eta` drops some at each rung."""
    here = _check(out, config, trials)
    left = [trial for trial in trials if not _has_ended(trial)]
    shared, lengths = _sharing(config, left if eta is None else trials)
    rungs = [] if eta is None else _rungs(trials, lengths, eta)
    run_folder.write_json(out / "sweep.json", {"text": config.text, "trials": here})
    watch.clear()
    print(f"folder   {out}")
    print(f"trials   {len(trials)}, {len(trials) - len(left)} of them finished", flush=True)
    going = trials
    for rung in (*rungs, None):
        for trial in going:
            if not _has_ended(trial) and not _has_reached(trial, rung):
                fate = _go(trial, config, given, watch, shared[_kind(trial)], rung)
                if fate is not None:
                    content = {**_ended(out), trial.folder.name: fate}
                    run_folder.write_json(out / ENDED, content)
        if rung is not None and eta is not None:
            going = _kept(going, rung, eta)


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


def _kept(trials: Sequence[Trial], rung: int, eta: int) -> list[Trial]:
    """Those of the trials that go on after a rung."""
    ended = _ended(trials[0].folder.parent)
    lost = [t.folder for t in trials if ended.get(t.folder.name) is False]
    scores = halving.scores(trials, rung, lost)
    kept = halving.kept(scores, eta)
    for trial in trials:
        if (name := halving.setting(trial)) not in kept:
            print(f"dropped  {trial.folder.name}, {abs(scores[name]):.4f} at round {rung}")
    return [trial for trial in trials if halving.setting(trial) in kept]


# ---------------------------------------------------------------------- what is tuned


def _best(trials: Sequence[Trial], name: str) -> dict[str, Any]:
    """{the other settings: the value of `name` with the best last score}."""
    scores: dict[str, dict[Any, float]] = {}
    for trial in trials:
        scored = scores.setdefault(_rest(trial, name), {})
        scored[trial.settings[name]] = _score(trial)
    for rest, scored in scores.items():
        if max(scored.values()) == -math.inf:
            raise ValueError(
                f"--tune {name}: every trial of {', '.join(map(str, scored))} diverged, with "
                f"{rest}; give other values"
            )
    best = {rest: max(scored, key=lambda v: scored[v]) for rest, scored in scores.items()}
    for trial in trials:
        value, tried = trial.settings[name], scores[_rest(trial, name)]
        if value == best[_rest(trial, name)]:
            print(f"chosen   {trial.folder.name}, of {', '.join(map(str, tried))}", flush=True)
            if isinstance(value, int | float) and value in (min(tried), max(tried)):
                warnings.warn(
                    f"{name}={value} is the best at an end of what was tried; a value beyond it "
                    "may be better",
                    stacklevel=1,
                )
    return best


def _rest(trial: Trial, name: str) -> str:
    """Equal for trials that differ in this setting and in the seed alone."""
    return repr({n: v for n, v in trial.settings.items() if n not in (name, "seed", "on")})


def _score(trial: Trial) -> float:
    """The last accuracy, or else the negative test loss; lowest for a trial that diverged."""
    run = recorded.read(trial.folder)
    accuracy, loss = (recorded.series(run, n)[1] for n in ("accuracy", "test_loss"))
    if not _ended(trial.folder.parent)[trial.folder.name]:
        return -math.inf
    if not loss.size and not accuracy.size:
        raise ValueError("--tune needs an evaluation at least after the last round; none was made")
    last = accuracy[-1] if accuracy.size else -loss[-1]
    return float(last) if math.isfinite(last) else -math.inf


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


# ---------------------------------------------------------------------- one trial


class Shared(NamedTuple):
    """What trials share that differ in numbers only: programs, and a Host without "auto"."""

    programs: Programs
    host: list[Host]  # none before the first trial


def _sharing(
    config: Config, trials: Sequence[Trial]
) -> tuple[dict[str, Shared], set[tuple[int, int]]]:
    """({kind: what trials of that kind share}, their rounds and evaluate_every).

    Each of them could be built then.
    """
    sizes: dict[str, Size] = {}
    lengths = set()
    for trial in trials:  # what is wrong with the last is an error before the first
        experiment, _, _ = calling.call(config, trial.arguments, "sweep")
        sizes[_kind(trial)] = experiment.data.size.or_more(sizes.get(_kind(trial)))
        lengths.add((experiment.rounds, experiment.evaluate_every))
    return {kind: Shared(Programs(size), []) for kind, size in sizes.items()}, lengths


def _kind(trial: Trial) -> str:
    """Equal for trials that may share programs: they differ in the seed and in real numbers."""
    rest = {n: v for n, v in trial.settings.items() if n != "seed" and not isinstance(v, float)}
    return repr(rest)


def _host(launch: Launch, shared: Shared) -> Host:
    """How a trial is run: on one device unless several are asked for, with nothing measured twice.

    On a CPU this device has all cores.
    """
    asked = dataclasses.replace(launch.host, devices=launch.host.devices or 1)
    for done in shared.host:
        form = ("chunk", "fuse", "convolutions")
        again = {n: getattr(done, n) for n in form if getattr(asked, n) == "auto"}
        return dataclasses.replace(asked, **again)
    return asked


def _go(
    trial: Trial, config: Config, given: str, watch: Watch, shared: Shared, rung: int | None
) -> bool | None:
    """Runs a trial, or goes on with it, up to a rung: None then.

    True if it came to its end; False, with a warning, if it diverges.
    """
    experiment, settings, launch = calling.call(config, trial.arguments, "sweep")
    if rung is not None:
        ends = halving.until(rung, experiment.stop_when)
        experiment = dataclasses.replace(experiment, stop_when=ends)
    host = _host(launch, shared)
    launched = dataclasses.replace(launch, host=host)
    about = calling.about(config, given, trial.arguments, launched)
    prepared = prepare(
        experiment,
        host,
        trial.folder,
        resume=not run_folder.why_not_begun(trial.folder),
        origin=Origin(config.text, settings, about),
        programs=shared.programs,
    )
    chunk = prepared.machine.chunk or experiment.cohort
    form = prepared.form._replace(chunk=chunk)
    shared.host.append(dataclasses.replace(host, **form._asdict()))
    watch.rounds_begin()
    done, diverged = [prepared.state.done], False
    try:
        following.follow(prepared, watch.noted, done, bar=True, lines=False)
        if watch.noted:
            raise signals.stopped_by(watch.noted[0])
    except FloatingPointError as error:
        diverged = True
        warnings.warn(f"{trial.folder.name} ends early: {error}", stacklevel=1)
    except (KeyboardInterrupt, SystemExit) as stop:
        status = stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT
        print(
            f"jaxfed: stopped in {trial.folder.name} after round {done[-1]}; the same command goes "
            f"on, with --out {trial.folder.parent}",
            file=sys.stderr,
        )
        raise SystemExit(int(status or 0)) from None
    watch.rounds_end()
    watch.quiet = False
    run = recorded.read(trial.folder)
    paused = rung is not None and len(run.records) >= rung and not diverged
    word = "reached " if paused else "finished"
    print(f"{word} {run.name}, round {len(run.records)}", *_scores(run), sep="  ", flush=True)
    return None if paused else not diverged


def _scores(run: recorded.Run) -> list[str]:
    """The last accuracy and loss of a run: ["accuracy 0.9512", "loss 0.1201"]."""
    last = {n: recorded.series(run, n)[1][-1:] for n in ("accuracy", "loss")}
    return [f"{n} {v[0]:.4f}" for n, v in last.items() if v.size]
