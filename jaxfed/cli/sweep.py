"""`jaxfed sweep`: a trial for each combination of the settings that are given several values.

A trial is a run, in a folder of its own inside the sweep's. The sweep's sweep.json lists them, and
is there before the first begins: a sweep that was killed goes on by the same command.
"""

import contextlib
import dataclasses
import itertools
import json
import re
import signal
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin

import jax

from jaxfed.cli import calling, errors, following, options, recorded, studies, tables
from jaxfed.cli.launching import Launch
from jaxfed.cli.options import Config
from jaxfed.cli.watching import Watch
from jaxfed.data.federated import Size
from jaxfed.simulation import checkpoint, lock, run_folder, signals, stored
from jaxfed.simulation.experiment import Host
from jaxfed.simulation.prepare import Origin, prepare
from jaxfed.simulation.programs import Programs

SWEEP: dict[str, tuple] = {"text": (str,), "trials": (dict,)}  # of sweep.json


class Trial(NamedTuple):
    """One run of a sweep."""

    folder: Path  # named after what differs: DIR/seed=0,learning_rate=0.01
    arguments: list[str]  # `jaxfed run CONFIG ARGUMENTS` is the same run
    settings: dict[str, Any]


def command(arguments: list[str], watch: Watch) -> None:
    """Runs the trials that are not finished; prints a line for each, and a table of them all."""
    config = calling.config_of(arguments, "sweep", watch)
    if jax.process_count() > 1:
        raise ValueError(
            f"a sweep runs in one process, and this is one of {jax.process_count()}; start a sweep "
            "in each of them alone, in folders of their own"
        )
    with options.at_home(config), errors.reading():
        out, trials = _trials(config, arguments[1:])
    with _held(out):
        left = [trial for trial in trials if not _is_finished(trial.folder)]
        shared = _sharing(config, left)
        _begin(out, config, trials)
        watch.clear()
        print(f"folder   {out}")
        print(f"trials   {len(trials)}, {len(trials) - len(left)} of them finished", flush=True)
        for trial in left:
            _go(trial, config, arguments[0], watch, shared[_kind(trial)])
    groups = studies.grouped([recorded.read(trial.folder) for trial in trials])
    print(tables.text(tables.table(groups)))


# ---------------------------------------------------------------------- which trials there are


def _trials(config: Config, arguments: list[str]) -> tuple[Path, list[Trial]]:
    """(the sweep's folder, a trial for each combination of the values that settings are given)."""
    function = options.function(options.load(config.path, config.text))
    path = options.short(config.path)
    kinds = {n: kind for n, (kind, _) in options.settings(function, path, reserved=()).items()}
    given = _given(arguments)
    axes = {n: words for n, words in given.items() if n in kinds and _is_axis(kinds[n], words)}
    made: list[tuple[list[str], dict]] = []
    out: Path | None = None
    for values in itertools.product(*(words[1:] for words in axes.values())):
        chosen = {n: _words(kinds[n], words[0], value) for (n, words), value in
                  zip(axes.items(), values, strict=True)}  # fmt: skip
        words = {**given, **chosen}
        _, settings, launch = calling.parsed(config, _flat(words), "sweep")
        out = launch.out
        words.pop("out", None)
        if again := [n for other in made if other[1] == settings for n in axes]:
            raise ValueError(f"two trials have the same {', '.join(again)}; give each value once")
        made.append((_flat(words), settings))
    if not axes:
        raise ValueError(
            "no setting has several values; give some, such as --seed 0 1 2, or use `jaxfed run`"
        )
    out = out or following.new_folder(config.path.stem)
    folders = [_folder(out, axes, settings) for _, settings in made]
    return out, [
        Trial(folder, [*words, "--out", str(folder)], settings)
        for folder, (words, settings) in zip(folders, made, strict=True)
    ]


def _given(arguments: list[str]) -> dict[str, list[str]]:
    """{name: [--name, value, ...]} of the options; ValueError if one is given twice."""
    found: dict[str, list[str]] = {}
    name = ""
    for word in arguments:
        if word.startswith("--"):
            option, equals, value = word.partition("=")
            name = option[2:].replace("-", "_")
            if name in found:
                raise ValueError(f"{option} is given twice; give its values after one {option}")
            found[name] = [option, value] if equals else [option]
        else:
            found.setdefault(name, []).append(word)
    return found


def _flat(words: Mapping[str, list[str]]) -> list[str]:
    return list(itertools.chain.from_iterable(words.values()))


def _is_axis(kind: Any, words: Sequence[str]) -> bool:
    """True if several values were given, for a setting that takes one."""
    return len(words) > 2 and not any(get_origin(k) is tuple for k in (kind, *get_args(kind)))


def _words(kind: Any, option: str, value: str) -> list[str]:
    """An option with one value, as `jaxfed run` takes it."""
    if kind is bool and value in ("True", "False"):
        return [option if value == "True" else f"--no-{option[2:]}"]
    return [option, value]


def _folder(out: Path, names: Collection[str], settings: Mapping[str, Any]) -> Path:
    """DIR/seed=0,learning_rate=0.01: what a trial differs in, in characters of every system."""
    name = ",".join(f"{n}={settings[n]}" for n in names)
    return out / re.sub(r"[^\w.,=+-]", "_", name)


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


def _begin(out: Path, config: Config, trials: Sequence[Trial]) -> None:
    """Writes sweep.json; FileExistsError if there is another sweep's. One may get more values."""
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
    run_folder.write_json(path, {"text": config.text, "trials": here})


def _is_finished(folder: Path) -> bool:
    """True if the trial's last round is saved."""
    if run_folder.why_not_begun(folder) or not (folder / "checkpoints").is_dir():
        return False
    rounds = run_folder.resumed_settings(folder)["experiment"].get("rounds")
    with contextlib.closing(checkpoint.look_into(folder / "checkpoints")) as kept:
        return rounds in kept.rounds


# ---------------------------------------------------------------------- one trial


class Shared(NamedTuple):
    """What trials share that differ in numbers only: programs, and a Host without "auto"."""

    programs: Programs
    host: list[Host]  # none before the first trial


def _sharing(config: Config, trials: Sequence[Trial]) -> dict[str, Shared]:
    """{kind: what trials of that kind share}, once each of them could be built."""
    sizes: dict[str, Size] = {}
    for trial in trials:  # what is wrong with the last is an error before the first
        experiment, _, _ = calling.call(config, trial.arguments, "sweep")
        sizes[_kind(trial)] = experiment.data.size.or_more(sizes.get(_kind(trial)))
    return {kind: Shared(Programs(size), []) for kind, size in sizes.items()}


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
        again = {n: getattr(done, n) for n in ("chunk", "fuse") if getattr(asked, n) == "auto"}
        return dataclasses.replace(asked, **again)
    return asked


def _go(trial: Trial, config: Config, given: str, watch: Watch, shared: Shared) -> None:
    """Runs a trial, or goes on with it. If it diverges, that is its result, and a warning."""
    experiment, settings, launch = calling.call(config, trial.arguments, "sweep")
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
    shared.host.append(dataclasses.replace(host, chunk=chunk, fuse=prepared.fuse))
    watch.rounds_begin()
    done = [prepared.state.done]
    try:
        following.follow(prepared, watch.noted, done, bar=True, lines=False)
        if watch.noted:
            raise signals.stopped_by(watch.noted[0])
    except FloatingPointError as error:
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
    print(f"finished {run.name}, round {len(run.records)}", *_scores(run), sep="  ", flush=True)


def _scores(run: recorded.Run) -> list[str]:
    """The last accuracy and loss of a run: ["accuracy 0.9512", "loss 0.1201"]."""
    last = {n: recorded.series(run, n)[1][-1:] for n in ("accuracy", "loss")}
    return [f"{n} {v[0]:.4f}" for n, v in last.items() if v.size]
