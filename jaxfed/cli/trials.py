"""The trials of a sweep as they run: one after another, or several at once in lockstep."""

import contextlib
import dataclasses
import math
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from jaxfed.cli import calling, following, halving, recorded, scoring
from jaxfed.cli.launching import Launch
from jaxfed.cli.options import Config
from jaxfed.cli.product import Trial
from jaxfed.cli.watching import Watch
from jaxfed.data.federated import Size
from jaxfed.simulation import (
    abreast,
    engine,
    evaluate,
    lockstep,
    pooling,
    run_folder,
    signals,
    together,
)
from jaxfed.simulation.host import Host
from jaxfed.simulation.prepare import Origin, Prepared, compile_all, prepare
from jaxfed.simulation.programs import Programs


class Shared(NamedTuple):
    """What trials share that differ in numbers only: programs, and a Host without "auto"."""

    programs: Programs
    host: list[Host]  # none before the first trial


class Spread(NamedTuple):
    """How trials lie on devices."""

    devices: int
    abreast: int | None  # of a device's trials, so many are computed at once; None: all


class How(NamedTuple):
    """How the trials of a sweep are run."""

    config: Config
    given: str  # the config, as it was given
    watch: Watch
    at_once: int
    eta: int | None  # of successive halving
    measure: str | None = None  # by which trials are compared; see scoring.py


class Built(NamedTuple):
    """What is known of trials once each of them was built."""

    shared: dict[str, Shared]  # {kind: what trials of that kind share}
    lengths: set[tuple[int, int]]  # their rounds and evaluate_every
    own: bool  # whether clients of one deploy models of their own


def built(how: How, trials: Sequence[Trial]) -> Built:
    """What the trials share, once each of them could be built."""
    sizes: dict[str, Size] = {}
    lengths, own = set(), {}
    if trials and how.at_once > 1:
        _check_at_once(calling.parsed(how.config, trials[0].arguments, "sweep")[2].host)
    for trial in trials:  # what is wrong with the last is an error before the first
        experiment, _, _ = calling.call(how.config, trial.arguments, "sweep")
        sizes[kind(trial)] = experiment.data.size.or_more(sizes.get(kind(trial)))
        lengths.add((experiment.rounds, experiment.evaluate_every))
        if kind(trial) not in own:
            own[kind(trial)] = evaluate.deploys_own(experiment.algorithm)
    shared = {kind: Shared(Programs(size), []) for kind, size in sizes.items()}
    return Built(shared, lengths, any(own.values()))


def kind(trial: Trial) -> str:
    """Equal for trials that may share programs: they differ in the seed and in real numbers."""
    rest = {n: v for n, v in trial.settings.items() if n != "seed" and not isinstance(v, float)}
    return repr(rest)


def groups(trials: Sequence[Trial], at_once: int) -> list[list[Trial]]:
    """The trials in groups of one kind, of at most so many and about equally many."""
    kinds: dict[str, list[int]] = {}
    for i, trial in enumerate(trials):
        kinds.setdefault(kind(trial), []).append(i)
    parts = [
        part.tolist()
        for same in kinds.values()
        for part in np.array_split(same, math.ceil(len(same) / at_once))
    ]
    return [[trials[i] for i in part] for part in sorted(parts)]


def go(
    group: Sequence[Trial], shared: Shared, how: How, rung: int | None
) -> Iterator[tuple[Trial, bool | None]]:
    """Runs the trials of a group, or goes on with them; yields each with its fate at its end.

    True if it came to its end; False, with a warning, if it diverged; None if it paused at the
    rung, a round. Those that cannot go on with the first, as they are at another round, follow it.
    """
    if len(group) > 1 and not shared.host:
        _measure(group[0], shared, how)
    spread = _spread(group, shared, how)
    alone = len(group) == 1
    members = pooling.shared(_prepared(t, shared, how, rung, spread, alone=alone) for t in group)
    with contextlib.ExitStack() as undo:
        for p in members:
            undo.callback(p.close)
        parts, trials = _parts(members, spread)
        undo.pop_all()
    for i in (i for part in parts[1:] for i in part):
        members[i].close()
    members = [members[i] for i in parts[0]]
    if trials is None and len(group) > 1:
        compile_all(members[0])
    how.watch.rounds_begin()
    done = [members[0].state.done]
    running = (
        _alone(members[0], how.watch.noted, done)
        if trials is None
        else _at_once(members, trials, how.watch.noted, done)
    )
    try:
        for i, error in running:
            trial = group[parts[0][i]]
            yield trial, _fate(trial, error, rung)
    except (KeyboardInterrupt, SystemExit) as stop:
        status = stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT
        name, out = group[parts[0][0]].folder.name, group[0].folder.parent
        others = f" and {len(members) - 1} more" if len(members) > 1 else ""
        print(
            f"jaxfed: stopped in {name}{others} after round {max(done)}; the same command goes on, "
            f"with --out {out}",
            file=sys.stderr,
        )
        raise SystemExit(int(status or 0)) from None
    how.watch.rounds_end()
    how.watch.quiet = False
    for part in parts[1:]:
        yield from go([group[i] for i in part], shared, how, rung)


def _spread(group: Sequence[Trial], shared: Shared, how: How) -> Spread:
    """How the trials of a group lie on devices, all of which one command asked for."""
    asked = calling.parsed(how.config, group[0].arguments, "sweep")[2].host
    devices = 1 if asked.devices is None else asked.devices
    return Spread(devices, _abreast(asked, shared, math.ceil(len(group) / devices)))


def _prepared(
    trial: Trial, shared: Shared, how: How, rung: int | None, spread: Spread, *, alone: bool
) -> Prepared:
    """The run of a trial, which has one device unless it is alone."""
    experiment, settings, launch = calling.call(how.config, trial.arguments, "sweep")
    if rung is not None:
        ends = halving.until(rung, experiment.stop_when)
        experiment = dataclasses.replace(experiment, stop_when=ends)
    host = _host(launch, shared, spread.devices if alone else 1, spread.abreast or 1)
    launched = dataclasses.replace(launch, host=host)
    about = calling.about(how.config, how.given, trial.arguments, launched)
    p = prepare(
        experiment,
        host,
        trial.folder,
        resume=not run_folder.why_not_begun(trial.folder),
        origin=Origin(how.config.text, settings, about),
        programs=shared.programs,
        compiling=alone,
    )
    if not shared.host:
        shared.host.append(_as_measured(p, host))
    return p


def _measure(trial: Trial, shared: Shared, how: How) -> None:
    """Finds what is "auto" for a trial alone on a device; its folder is left as it is."""
    experiment, _, launch = calling.call(how.config, trial.arguments, "sweep")
    host = _host(launch, shared, 1, 1)
    p = prepare(experiment, host, programs=shared.programs, compiling=False)
    shared.host.append(_as_measured(p, host))
    p.close()


def _as_measured(p: Prepared, host: Host) -> Host:
    """The host with what was found in the place of "auto"."""
    form = p.form._replace(chunk=p.machine.chunk or p.experiment.cohort)
    return dataclasses.replace(host, **form._asdict())


def _host(launch: Launch, shared: Shared, devices: int, sharing: int) -> Host:
    """How a trial is run: on one device unless several are asked for, with nothing measured twice.

    On a CPU this device has all cores. Trials that are computed at once share the clients at once.
    """
    asked = dataclasses.replace(launch.host, devices=devices)
    for done in shared.host:
        form = {n: getattr(done, n) for n in ("chunk", "fuse", "convolutions")}
        form["chunk"] //= sharing
        again = {n: v for n, v in form.items() if getattr(asked, n) == "auto"}
        return dataclasses.replace(asked, **again)
    return asked


def _abreast(asked: Host, shared: Shared, trials: int) -> int | None:
    """How many of a device's trials it computes at once; None: all, with the chunk asked for.

    One after another on a CPU, whose caches a trial fills; elsewhere so many that with a client of
    each there are no more clients at once than were best in one trial.
    """
    if asked.chunk != "auto" or not shared.host:
        return None
    cpu = engine.machine(1).devices[0].platform == "cpu"
    return 1 if cpu else abreast.group(trials, int(shared.host[0].chunk))


def _check_at_once(host: Host) -> None:
    """ValueError for what does not go with several trials at once."""
    if host.stream or host.population in ("host", "mapped"):
        word = "--stream" if host.stream else f"--population {host.population}"
        raise ValueError(
            f"{word} moves what a round needs to the device, for one trial; leave it or --at-once "
            "out"
        )


def _parts(
    members: Sequence[Prepared], spread: Spread
) -> tuple[list[list[int]], together.Together | None]:
    """(the runs in parts that can go on at once, the first of them as trials if they are several).

    Warns of what can only run one after another.
    """
    if len(members) == 1:
        return [[0]], None
    now, *later = together.sets(members)
    if why := next(filter(None, map(together.why_not, members)), ""):
        warnings.warn(f"trials run one after another: {why}", stacklevel=1)
    while len(now) > 1:
        try:
            runs = [members[i] for i in now]
            trials = together.together(runs, engine.machine(spread.devices), spread.abreast)
        except (NotImplementedError, ValueError) as error:
            warnings.warn(f"trials run one after another: {error}", stacklevel=1)
            return [*([i] for i in now), *later], None
        if trials is not None:
            return [now, *later], trials
        half = len(now) // 2
        warnings.warn(
            f"{len(now)} trials at once need more memory than is free; at most {len(now) - half} "
            "go at once",
            stacklevel=1,
        )
        now, later = now[:-half], [now[-half:], *later]
    return [now, *later], None


# ---------------------------------------------------------------------- followed to their ends


def _alone(
    p: Prepared, noted: list[int], done: list[int]
) -> Iterator[tuple[int, FloatingPointError | None]]:
    """Runs one trial to its end: (0, why it diverged, if it did); appends its rounds to `done`."""
    error = None
    try:
        following.follow(p, noted, done, bar=True, lines=False)
    except FloatingPointError as diverged:
        error = diverged
    if noted:
        raise signals.stopped_by(noted[0])
    yield 0, error


def _at_once(
    members: Sequence[Prepared], trials: together.Together, noted: list[int], done: list[int]
) -> Iterator[tuple[int, FloatingPointError | None]]:
    """Runs several to their ends: (which, why it diverged, if it did) of each at its end."""
    left = len(members) * (members[0].experiment.rounds - done[0])
    with contextlib.closing(lockstep.run_blocks(members, trials, noted)) as work:
        for turn in following.follow_turns(work, left, done):
            yield turn.trial, turn.error
    if noted:
        raise signals.stopped_by(noted[0])


def _fate(trial: Trial, error: FloatingPointError | None, rung: int | None) -> bool | None:
    """What becomes of a trial whose rounds are over, which it prints; see `go`."""
    if error is not None:
        warnings.warn(f"{trial.folder.name} ends early: {error}", stacklevel=1)
    run = recorded.read(trial.folder)
    paused = rung is not None and len(run.records) >= rung and error is None
    word = "reached " if paused else "finished"
    print(f"{word} {run.name}, round {len(run.records)}", *_scores(run), sep="  ", flush=True)
    return None if paused else error is None


def _scores(run: recorded.Run) -> list[str]:
    """A run's last numbers: ["accuracy 0.9512", "own 0.9633", "loss 0.1201"]."""
    shown = {"accuracy": "accuracy", "own": scoring.OWN[0], "loss": "loss"}
    last = {n: recorded.series(run, measure)[1][-1:] for n, measure in shown.items()}
    return [f"{n} {v[0]:.4f}" for n, v in last.items() if v.size]
