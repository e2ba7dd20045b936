"""The command line: jaxfed run | sweep | resume | report | describe | analyse | export."""

import dataclasses
import inspect
import logging
import os
import platform
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from jaxfed import trees
from jaxfed.analysis import probe, tables
from jaxfed.cli import (
    calling,
    check,
    describe,
    errors,
    export,
    following,
    launching,
    options,
    plots,
    report,
    rerun,
    sweep,
    watching,
    zoo,
)
from jaxfed.cli.launching import Launch
from jaxfed.cli.watching import Watch
from jaxfed.simulation import costs, lock, stored, targets, tuning
from jaxfed.simulation.prepare import Origin, prepare

log = logging.getLogger(__name__)

USAGE = """jaxfed: federated learning with low-rank updates, clients as an array axis

  jaxfed run CONFIG [--name value ...]       run a config; --help lists its settings
  jaxfed sweep CONFIG [--name value ...]     run all combinations of settings with several values
  jaxfed resume DIR [--name value ...]       go on with a run that was stopped
  jaxfed rerun DIR [--out NEW]               the same run again, from its folder alone
  jaxfed report DIR [DIR ...] [--group seed] table and plots of one run, or of several together
  jaxfed describe CONFIG [--name value ...]  parameters, bytes, FLOPs and memory, without training;
                                             with --for h100:8 or --for tpu:v5e:2x2 on such devices
  jaxfed analyse DIR [--name value ...]      Hessian spectra, likeness of clients, ranks of updates
  jaxfed check NAME | FILE.py:FUNCTION       what holds for an algorithm; status 1 if it is broken
  jaxfed zoo [NAME]                          the table of the methods, or one with its docstring
  jaxfed export DIR --npz F | --hf FOLDER | --peft FOLDER   the model, for other programs

`jaxfed COMMAND --help` lists a command's options; `jaxfed --version` the versions.

A wrong input ends in one sentence; JAXFED_TRACEBACK=1 shows where it was raised.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; a wrong input ends in one sentence and status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {
        "run": _run,
        "sweep": sweep.command,
        "resume": _resume,
        "report": report.command,
        "describe": _describe,
        "analyse": _analyse,
        "export": export.command,
        "check": check.command,
        "zoo": zoo.command,
        "rerun": rerun.command,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] == "--version":
        packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("jaxfed", "jax"))
        print(f"{packages}, Python {platform.python_version()}")
        return
    warnings.showwarning = lambda message, *_, **__: print(
        f"warning: {_plain(str(message))}", file=sys.stderr
    )
    try:
        if arguments[0] not in commands:
            raise ValueError(f"no command {arguments[0]!r}; there are {', '.join(commands)}")
        if arguments[1:] in (["-h"], ["--help"]):
            _help(arguments[0])
        with watching.watching() as watch:
            commands[arguments[0]](arguments[1:], watch)
    except KeyboardInterrupt:
        _end("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if errors.is_of_another_process(error):
            _end_at_once(
                "another process of this run has ended or cannot be reached; see its messages, and "
                "then resume the run with all of them"
            )
        if os.environ.get("JAXFED_TRACEBACK") or not (sentence := errors.sentence(error)):
            raise
        _end(sentence, 2)


def _help(command: str) -> None:
    """Prints the options that a command has with any config or run, and ends."""
    if command in (texts := {"check": check.HELP, "zoo": zoo.HELP}):
        print(texts[command])
        raise SystemExit(0)
    settings = f"`jaxfed {command} CONFIG --help` lists the config's settings as well.\n\nArgs:\n"
    target = f"With --for {targets.EXAMPLES}, a round is compiled for devices that are not here. "
    further = {"rounds": (int | None, None), "allow": (tuple[str, ...], ())}
    options_of: dict[str, tuple[str, type]] = {
        "run": (" CONFIG", launching.with_launch(launching.CHANGES, {}, settings)),
        "sweep": (" CONFIG", launching.with_launch(launching.CHANGES, {}, settings)),
        "describe": (" CONFIG", launching.with_launch(launching.CHANGES, {}, target + settings)),
        "resume": (" DIR", launching.with_launch(further, {}, RESUME)),
        "report": ("", report.Report),
        "analyse": (" DIR", probe.Probe),
        "export": (" DIR", export.Export),
        "rerun": (" DIR", rerun.Rerun),
    }
    what, accepted = options_of[command]
    options.parse(accepted, ["--help"], f"jaxfed {command}{what}")


def _end(sentence: str, status: int) -> None:
    print(f"jaxfed: {_plain(sentence)}", file=sys.stderr)
    raise SystemExit(status)


def _end_at_once(sentence: str) -> None:
    """Ends the process without JAX's wait of a minute for the other processes, which aborts it."""
    lock.release_all()
    print(f"jaxfed: {sentence}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(2)


def _plain(text: str) -> str:
    return "\n".join(map(stored.plain, text.split("\n")))


# ---------------------------------------------------------------------- commands


def _run(arguments: list[str], watch: Watch) -> None:
    config, experiment, settings, launch = calling.read(arguments, "run", watch)
    about = calling.about(config, arguments[0], arguments[1:], launch)
    out = launch.folder(config.path)
    origin = Origin(config.text, settings, about)
    following.go(experiment, launch, out, watch, origin=origin)


def _resume(arguments: list[str], watch: Watch) -> None:
    path, saved = calling.begun(arguments, "resume")
    rounds = saved["experiment"]["rounds"]
    fields = {"rounds": (int, rounds), "allow": (tuple[str, ...], ())}
    accepted = launching.with_launch(fields, saved["launch"], RESUME, without=("out", "name"))
    parsed = options.parse(accepted, arguments[1:], f"jaxfed resume {path}")
    launch = launching.chosen(parsed)
    calling.prepare_jax(launch, watch)
    config = options.stored(path, saved)
    experiment, settings, _ = calling.call(config, saved["arguments"], "run")
    if parsed.rounds != experiment.rounds:
        warnings.warn(
            f"the run now ends after round {parsed.rounds}; schedules in its config still count "
            f"on {experiment.rounds}",
            stacklevel=1,
        )
        experiment = dataclasses.replace(experiment, rounds=parsed.rounds)
    origin = Origin(config.text, settings)
    following.go(experiment, launch, path, watch, origin=origin, resume=True, allow=parsed.allow)


RESUME = """Goes on with a run that was stopped, to the same end, in every bit.

Args:
    rounds: more than before extends the run; schedules in the config stay as they were.
    allow: names of what may differ from the run as it was started: a setting, config, data,
        algorithm, versions.
"""


def _describe(arguments: list[str], watch: Watch) -> None:
    name, arguments = options.taken("for", arguments)
    where = None if name is None else targets.target(name)
    _, experiment, _, launch = calling.read(arguments, "describe", watch)
    if where is not None and launch.host.devices is not None:
        raise ValueError(f"--for {name} says how many devices there are; leave --devices out")
    devices = launch.host.devices if where is None else 1
    host = dataclasses.replace(launch.host, devices=devices, chunk=1, fuse=1)
    prepared = prepare(experiment, host, compiling=False)
    server, wire = prepared.state.server, costs.mean_wire(prepared)
    most = -(-experiment.cohort // len((where or prepared.machine).devices))
    asked = launch.host.chunk
    cost = costs.compute(prepared)
    parts = {
        "the server": trees.nbytes(server),
        "what clients keep": prepared.population.held,
        "training examples": trees.nbytes(experiment.data.train.examples),
    }
    lines = [
        describe.weights(server.base, server.theta),
        "",
        describe.parameters(server.base, server.theta, wire),
        describe.traffic(wire, experiment.rounds, experiment.cohort, costs.merges(prepared)),
        describe.compute(cost, experiment.rounds, experiment.cohort),
        describe.population(experiment.data.train, experiment.cohort),
        describe.held(parts),
    ]
    if where is None:
        chunks = sorted({1, most}) if asked == "auto" else [asked]
        lines.append(describe.working({n: costs.memory(prepared, n) for n in chunks}))
    else:
        log.info("compiling a round for %s", name)
        chunks = tuning.chunk_candidates(most) if asked == "auto" else [asked]
        tried = costs.elsewhere(prepared, where, chunks, cost.client.turns)
        lines.append(describe.elsewhere(where, tried))
    watch.clear()
    print("\n".join(lines))


@dataclasses.dataclass(frozen=True)
class Analyse(probe.Probe):
    """What is measured, how closely, and where its plots go."""

    to: Path | None = None


Analyse.__doc__ = (
    f"{inspect.getdoc(probe.Probe)}\n    to: where the plots go; by default the run's plots folder."
)


def _analyse(arguments: list[str], watch: Watch) -> None:
    path, saved = calling.begun(arguments, "analyse")
    asked = options.parse(Analyse, arguments[1:], f"jaxfed analyse {path}")
    calling.prepare_jax(Launch(cpu_devices=saved["launch"].get("cpu_devices")), watch)
    experiment, _, _ = calling.call(options.stored(path, saved), saved["arguments"], "run")
    found = probe.of_run(experiment, path, asked)
    watch.clear()
    print(tables.tables(found))
    for picture in tables.draw(found, asked.to or plots.place(path)):
        print(picture)
