"""The command line: jaxfed run | resume | report | describe."""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import json
import os
import pathlib
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal

import jax
import tyro
from tqdm import tqdm

from jaxfed import describe, report
from jaxfed.run import Experiment, Host, Simulation

USAGE = """jaxfed: federated learning with low-rank updates, clients as an array axis

  jaxfed run CONFIG [--name value ...]       run a config; --help lists its settings
  jaxfed resume DIR [--name value ...]       go on with a run that was stopped
  jaxfed report DIR [DIR ...] [--to DIR]     table and plots of one run, or of several together
  jaxfed describe CONFIG [--name value ...]  parameters, bytes, clients and memory, without training
"""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How and where to run; nothing here changes the result beyond float rounding.

    Args:
        out: the run's folder; by default runs/CONFIG-DATE-TIME.
        devices: how many devices to use; by default all.
        cpu_devices: on a CPU, how many devices it is split into; by default one a core.
        chunk: clients vmapped at once on a device; auto measures.
        fuse: rounds in one call; auto measures.
        stream: prepare each cohort's examples on the host; by default only if they do not fit.
        checkpoint_every: rounds between checkpoints; 0 is at the end only.
        nonfinite: what to do with a client that returns NaN or infinity.
        merges: who pays for a merge: all clients at once, or each when next drawn.
        coordinator: address of process 0, host:port, for several processes without a launcher.
        processes: how many processes there are.
        process: which of them this is, from 0.
    """

    out: pathlib.Path | None = None
    devices: int | None = None
    cpu_devices: int | None = None
    chunk: int | Literal["auto"] = "auto"
    fuse: int | Literal["auto"] = "auto"
    stream: bool | None = None
    checkpoint_every: int = 50
    nonfinite: Literal["stop", "skip"] = "stop"
    merges: Literal["eager", "lazy"] = "eager"
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def host(self) -> Host:
        names = {f.name for f in dataclasses.fields(Host)}
        return Host(**{n: v for n, v in dataclasses.asdict(self).items() if n in names})


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; a wrong input ends in one sentence and status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable] = {
        "run": _run,
        "resume": _resume,
        "report": _report,
        "describe": _describe,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] not in commands:
        _refuse(f"no command {arguments[0]!r}; there are {', '.join(commands)}")
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        commands[arguments[0]](arguments[1:])
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        if os.environ.get("JAXFED_TRACEBACK"):
            raise
        _refuse(str(error))


def _refuse(sentence: str) -> None:
    print(f"jaxfed: {sentence}", file=sys.stderr)
    raise SystemExit(2)


# ---------------------------------------------------------------------- commands


def _run(arguments: list[str]) -> None:
    path, experiment, settings, launch = _read(arguments, "run")
    folder = launch.out or pathlib.Path("runs") / f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    if (folder / "settings.json").exists():
        raise FileExistsError(
            f"{folder} holds a run already; go on with `jaxfed resume {folder}`, or give another "
            "--out"
        )
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "config.py")
    about = {"config": str(path), "settings": settings, "launch": _as_json(launch)}
    simulation = Simulation(experiment, launch.host(), folder, resume=False, about=about)
    _go(simulation, folder)


def _resume(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("give the folder of the run: jaxfed resume DIR")
    folder = pathlib.Path(arguments[0])
    settings = folder / "settings.json"
    if not settings.exists():
        raise FileNotFoundError(
            f"{folder} has no settings.json: it is no run's folder, or its run was stopped before it "
            "began; start it again with `jaxfed run`"
        )
    saved = json.loads(settings.read_text())
    remembered = Launch(**saved["launch"])
    launch = _parse(Launch, arguments[1:], f"jaxfed resume {folder}", default=remembered)
    _prepare_jax(launch)
    function = _function(_load(folder / "config.py"), folder / "config.py")
    _go(Simulation(function(**saved["settings"]), launch.host(), folder, resume=True), folder)


def _report(arguments: list[str]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Report:
        """Table and plots of one run, or of several together.

        Args:
            runs: the runs' folders.
            to: where the plots go; by default the plots folder of the (first) run.
        """

        runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
        to: pathlib.Path | None = None

    asked = _parse(Report, arguments, "jaxfed report")
    if not asked.runs:
        raise ValueError("give the folders of runs: jaxfed report DIR [DIR ...]")
    runs = [report.read(r) for r in asked.runs]
    print(report.table(runs))
    for picture in report.draw(runs, asked.to or asked.runs[0] / "plots"):
        print(picture)


def _describe(arguments: list[str]) -> None:
    _, experiment, _, launch = _read(arguments, "describe")
    host = dataclasses.replace(launch.host(), chunk=1 if launch.chunk == "auto" else launch.chunk)
    simulation = Simulation(experiment, dataclasses.replace(host, fuse=1), None, resume=False)
    server = simulation.server
    print(describe.weights(server.base, server.theta))
    print()
    print(_summary(simulation))
    needs = simulation.memory()
    print("memory   " + ", ".join(f"{describe.in_bytes(v)} {n}" for n, v in needs.items()))


# ---------------------------------------------------------------------- a run, watched


def _go(simulation: Simulation, folder: pathlib.Path) -> None:
    first = jax.process_index() == 0
    if first:
        print(_summary(simulation))
        print(f"folder   {folder}")
        if simulation.done:
            print(f"resumed  after round {simulation.done}")
    _watch(simulation, quiet=not first)
    if not first:
        return
    run = report.read(folder)
    report.draw([run], folder / "plots")
    print(report.table([run]))
    print(f"plots    {folder / 'plots'}")


def _watch(simulation: Simulation, quiet: bool) -> None:
    """Runs to the end, with a progress bar on a terminal and plain lines elsewhere."""
    rounds, megabytes = simulation.experiment.rounds, simulation.sent / 1e6
    bar = tqdm(
        total=rounds,
        initial=simulation.done,
        unit="round",
        disable=quiet or not sys.stderr.isatty(),
        dynamic_ncols=True,
    )
    shown: dict[str, Any] = {}
    with bar:
        for record in simulation.records():
            megabytes += (record["down"] + record["up"] + record["broadcast"]) / 1e6
            shown |= {n: f"{record[n]:.4f}" for n in ("loss", "accuracy") if n in record}
            shown["sent"] = f"{megabytes:,.1f} MB"
            bar.set_postfix(shown, refresh=False)
            bar.update()
            if bar.disable and not quiet and "accuracy" in record:
                print(
                    f"round {record['round']}/{rounds}  "
                    + "  ".join(f"{n} {v}" for n, v in shown.items())
                    + f"  {1 / record['seconds']:.3g} rounds/s",
                    flush=True,
                )


def _summary(simulation: Simulation) -> str:
    e, server = simulation.experiment, simulation.server
    machine = simulation.machine
    return "\n".join(
        [
            describe.parameters(server.base, server.theta, simulation.wire),
            describe.population(e.data.train, e.cohort),
            f"machine  {len(machine.devices)} x {machine.devices[0].device_kind}, {machine.chunk} "
            f"clients at once on each, {simulation.fuse} rounds in a call",
        ]
    )


# ---------------------------------------------------------------------- configs and options


def _read(
    arguments: list[str], command: str
) -> tuple[pathlib.Path, Experiment, dict[str, Any], Launch]:
    """(config, experiment, settings, launch) of `jaxfed COMMAND CONFIG [--name value ...]`."""
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"give a config: jaxfed {command} CONFIG [--name value ...]")
    path = pathlib.Path(arguments[0])
    if not path.is_file():
        raise FileNotFoundError(f"there is no config {path}")
    _prepare_jax(_early(arguments[1:]))
    function = _function(_load(path), path)
    options = _options(function, path)
    parsed = _parse(options, arguments[1:], f"jaxfed {command} {path}")
    names = {f.name for f in dataclasses.fields(Launch)}
    values = {f.name: getattr(parsed, f.name) for f in dataclasses.fields(options)}
    settings = {n: v for n, v in values.items() if n not in names}
    launch = Launch(**{n: v for n, v in values.items() if n in names})
    return path, function(**settings), settings, launch


def _early(arguments: list[str]) -> Launch:
    """The options that JAX must know before a config is loaded."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--cpu-devices", "--cpu_devices", type=int)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    try:
        known, _ = parser.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    return Launch(**vars(known))


def _prepare_jax(launch: Launch) -> None:
    """Joins the other processes, if there are any, and splits the CPU into devices."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = cores if launch.cpu_devices is None else launch.cpu_devices
    if not count or count < 1:
        raise ValueError(f"cpu_devices={count}; use at least 1")
    jax.config.update("jax_num_cpu_devices", count)
    if launch.coordinator is not None:
        if launch.processes is None or launch.process is None:
            raise ValueError("--coordinator also needs --processes and --process")
        jax.distributed.initialize(launch.coordinator, launch.processes, launch.process)
        return
    with contextlib.suppress(ValueError):  # no launcher that JAX knows: this process is alone
        jax.distributed.initialize()


def _load(path: pathlib.Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"jaxfed_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; a config ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that annotations can be resolved
    spec.loader.exec_module(module)
    return module


def _function(module: ModuleType, path: pathlib.Path) -> Callable[..., Experiment]:
    function = getattr(module, "experiment", None)
    if not callable(function):
        raise ValueError(f"{path} has no function `experiment`; see configs/quickstart.py")
    return function


def _options(function: Callable, path: pathlib.Path) -> type:
    """A dataclass of the config's settings and the options of Launch, for the command line."""
    fields: list[Any] = []
    types = inspect.get_annotations(function, eval_str=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is inspect.Parameter.empty or name not in types:
            raise ValueError(f"{path}: the setting {name} needs a type and a default")
        fields.append((name, types[name], dataclasses.field(default=parameter.default)))
    launch = dataclasses.fields(Launch)
    if clash := {f[0] for f in fields} & {f.name for f in launch}:
        raise ValueError(f"{path}: the settings {sorted(clash)} are options of jaxfed; rename them")
    fields += [(f.name, f.type, dataclasses.field(default=f.default)) for f in launch]
    made = dataclasses.make_dataclass("Options", fields, frozen=True)
    made.__doc__ = _with_launch(inspect.getdoc(sys.modules[function.__module__]) or "", function)
    return made


def _with_launch(head: str, function: Callable) -> str:
    """The config's docstring and both lists of settings, as one Args section."""
    lists = [(inspect.getdoc(f) or "").partition("Args:\n")[2] for f in (function, Launch)]
    return head + "\n\nArgs:\n" + "\n".join(lists)


def _parse(options: Any, arguments: list[str], program: str, default: Any = None) -> Any:
    """The options as given; a wrong one ends in one sentence that lists what exists."""
    known = {f.name.replace("_", "-") for f in dataclasses.fields(options)}
    for word in arguments:
        name = word.removeprefix("--").partition("=")[0].replace("_", "-")
        name = name.removeprefix("no-") if name not in known else name
        if word.startswith("--") and name not in {*known, "help"}:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean --{near[0]}? " if near else ""
            listed = " ".join(f"--{n}" for n in sorted(known))
            raise ValueError(f"{program} has no option --{name}; {hint}there are {listed}")
    more = {} if default is None else {"default": default}
    if {"--help", "-h"} & set(arguments):
        return tyro.cli(options, args=arguments, prog=program, **more)
    try:
        return tyro.cli(options, args=arguments, prog=program, console_outputs=False, **more)
    except SystemExit:
        raise ValueError(_wrong_value(options, arguments, program)) from None


def _wrong_value(options: Any, arguments: list[str], program: str) -> str:
    """Which of the given options is not of its type, in one sentence."""
    types = {f.name.replace("_", "-"): f.type for f in dataclasses.fields(options)}
    starts = [i for i, word in enumerate(arguments) if word.startswith("--")]
    for begin, end in zip(starts, [*starts[1:], len(arguments)], strict=True):
        given = arguments[begin:end]
        try:
            tyro.cli(options, args=given, console_outputs=False)
        except SystemExit:
            name, _, value = given[0].removeprefix("--").partition("=")
            wanted = types.get(name.replace("_", "-"), "another value")
            wanted = wanted.__name__ if isinstance(wanted, type) else wanted
            return (
                f"{program}: --{name} wants {wanted}, not {' '.join([value, *given[1:]]).strip()!r}"
            )
    return f"{program}: cannot read {' '.join(arguments)!r}; see --help"


def _as_json(launch: Launch) -> dict[str, Any]:
    values = dataclasses.asdict(launch)
    return {n: str(v) if isinstance(v, pathlib.Path) else v for n, v in values.items()}
