"""The command line: jaxfed run | resume | report | describe."""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import io
import itertools
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import tyro
from tqdm import tqdm

from jaxfed import describe, folder, ledger, report
from jaxfed.experiment import Experiment, Host
from jaxfed.run import Simulation

USAGE = """jaxfed: federated learning with low-rank updates, clients as an array axis

  jaxfed run CONFIG [--name value ...]       run a config; --help lists its settings
  jaxfed resume DIR [--name value ...]       go on with a run that was stopped
  jaxfed report DIR [DIR ...] [--to DIR]     table and plots of one run, or of several together
  jaxfed describe CONFIG [--name value ...]  parameters, bytes, clients and memory, without training

A wrong input ends in one sentence; JAXFED_TRACEBACK=1 shows where it was raised.
"""


@dataclasses.dataclass(frozen=True)
class Launch:
    """How and where to run; nothing here changes the result beyond float rounding.

    Args:
        out: the run's folder, new or empty; by default runs/CONFIG-DATE-TIME.
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

    out: Path | None = None
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
        return Host(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Host)})

    def remembered(self) -> dict[str, Any]:
        """What a resumed run takes from here; its processes it is told anew."""
        host = {f.name: getattr(self, f.name) for f in dataclasses.fields(Host)}
        here = jax.local_device_count() if jax.default_backend() == "cpu" else self.cpus()
        return {**host, "cpu_devices": here}

    def cpus(self) -> int:
        """How many devices a CPU is split into."""
        if self.cpu_devices is not None:
            return self.cpu_devices
        allowed = getattr(os, "sched_getaffinity", None)  # of this process, where the system says
        return len(allowed(0)) if allowed else os.cpu_count() or 1


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script; a wrong input ends in one sentence and status 2."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"run": _run, "resume": _resume, "report": _report, "describe": _describe}
    if not arguments or arguments[0] in ("-h", "--help") or arguments[1:] in (["-h"], ["--help"]):
        print(USAGE)
        return
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
    try:
        if arguments[0] not in commands:
            raise ValueError(f"no command {arguments[0]!r}; there are {', '.join(commands)}")
        commands[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        _end("interrupted", 128 + signal.SIGINT)
    except Exception as error:
        if os.environ.get("JAXFED_TRACEBACK") or not _is_sentence(error):
            raise
        _end(_sentence(error), 2)


def _end(sentence: str, status: int) -> None:
    print(f"jaxfed: {sentence}", file=sys.stderr)
    raise SystemExit(status)


def _is_sentence(error: Exception) -> bool:
    """Whether a user can act on the message alone: the system's, the config's own, or raised here.

    Anything else, such as what JAX has to say about a new algorithm, needs its traceback.
    """
    if isinstance(error, OSError | SyntaxError):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(last.filename).is_relative_to(Path(__file__).parent)
    raised = ours and (last.line or "").startswith("raise ")
    known = isinstance(error, ValueError | TypeError | FloatingPointError)
    return known and (raised or last.filename in _configs())


def _sentence(error: Exception) -> str:
    """The message, and the line of the config that led to it."""
    if isinstance(error, SyntaxError):
        line = f"{_short(error.filename)}, line {error.lineno}"
        return f"{line}: {error.msg}: {(error.text or '').strip()}"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _configs():
            return f"{error} ({_short(frame.filename)}, line {frame.lineno})"
    return str(error)


def _short(path: Any) -> str:
    """The path from here, if that is shorter."""
    return min(str(path), os.path.relpath(path), key=len)


# ---------------------------------------------------------------------- commands


def _run(arguments: list[str]) -> None:
    path, experiment, settings, launch = _read(arguments, "run")
    out = launch.out or Path("runs") / f"{path.stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    about = {
        "config": str(path),
        "arguments": arguments[1:],
        "settings": settings,
        "launch": launch.remembered(),
    }
    text = path.read_text()
    _go(Simulation(experiment, launch.host(), out, about=about, config=text), out)


def _resume(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("give the folder of the run: jaxfed resume DIR")
    path = Path(arguments[0])
    if why := folder.why_not_begun(path):
        raise FileNotFoundError(why)
    saved, config = folder.read_json(path / "settings.json"), path / "config.py"
    if not config.exists():
        raise FileNotFoundError(
            f"{path} has no config.py: its run was begun from Python; go on with it there, with "
            "jaxfed.run(..., resume=True)"
        )
    rounds = saved["experiment"]["rounds"]
    options = _with_launch({"rounds": (int, rounds)}, saved["launch"], RESUME, without=("out",))
    parsed = _parse(options, arguments[1:], f"jaxfed resume {path}")
    launch = _launch(parsed)
    _prepare_jax(launch)
    experiment, _, _ = _call(config, saved["arguments"], "run")
    if parsed.rounds != experiment.rounds:
        warnings.warn(
            f"the run now ends after round {parsed.rounds}; schedules in its config still count "
            f"on {experiment.rounds}",
            stacklevel=1,
        )
        experiment = dataclasses.replace(experiment, rounds=parsed.rounds)
    _go(Simulation(experiment, launch.host(), path, resume=True), path)


RESUME = """Goes on with a run that was stopped, to the same end, in every bit.

Args:
    rounds: more than before extends the run; schedules in the config stay as they were.
"""


def _report(arguments: list[str]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Report:
        """Table and plots of one run, or of several together.

        Args:
            runs: the runs' folders.
            to: where the plots go; by default the plots folder of the (first) run.
        """

        runs: tyro.conf.Positional[tuple[Path, ...]]
        to: Path | None = None

    asked = _parse(Report, arguments, "jaxfed report")
    if not asked.runs:
        raise ValueError("give the folders of runs: jaxfed report DIR [DIR ...]")
    runs = [report.read(r) for r in asked.runs]
    print(report.table(runs))
    for picture in report.draw(runs, asked.to or asked.runs[0] / "plots"):
        print(picture)


def _describe(arguments: list[str]) -> None:
    _, experiment, _, launch = _read(arguments, "describe")
    host = dataclasses.replace(launch.host(), chunk=1, fuse=1)
    simulation = Simulation(experiment, host, None)
    server, wire = simulation.server, simulation.wire
    print(describe.weights(server.base, server.theta))
    print()
    print(describe.parameters(server.base, server.theta, wire))
    print(describe.traffic(wire, experiment.rounds, experiment.cohort))
    print(describe.population(experiment.data.train, experiment.cohort))
    parts = {
        "the server": server,
        "what clients keep": simulation.states,
        "training examples": experiment.data.train.examples,
    }
    print(describe.held({n: ledger.nbytes(tree) for n, tree in parts.items()}))
    most = -(-experiment.cohort // len(simulation.machine.devices))
    chunks = sorted({1, most}) if launch.chunk == "auto" else [launch.chunk]
    print(describe.working({n: simulation.memory(n) for n in chunks}))


# ---------------------------------------------------------------------- a run, watched


def _go(simulation: Simulation, path: Path) -> None:
    first = jax.process_index() == 0
    if first:
        print(_summary(simulation))
        print(f"folder   {path}", flush=True)
    try:
        _watch(simulation, quiet=not first)
    except (KeyboardInterrupt, SystemExit) as stop:
        status = stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT
        _end(
            f"stopped after round {simulation.done}; `jaxfed resume {path}` goes on from round "
            f"{simulation.saved}",
            int(status or 0),
        )
    if not first:
        return
    run = report.read(path)
    report.draw([run], path / "plots")
    print(report.table([run]))
    print(f"plots    {path / 'plots'}")


def _watch(simulation: Simulation, quiet: bool) -> None:
    """Runs to the end, with a progress bar on a terminal and plain lines elsewhere."""
    rounds, sent = simulation.experiment.rounds, simulation.sent
    shown: dict[str, str] = {}
    terminal, printed = sys.stderr.isatty(), time.monotonic()
    with tqdm(
        total=rounds,
        initial=simulation.done,
        unit=" rounds",
        disable=quiet or not terminal,
        dynamic_ncols=True,
    ) as bar:
        for record in simulation.records():
            sent += record["down"] + record["up"] + record["broadcast"]
            shown |= {n: f"{record[n]:.4f}" for n in ("accuracy", "loss") if n in record}
            bar.set_postfix(shown | {"sent": f"{sent / 1e6:,.1f} MB"}, refresh=False)
            bar.update()
            due = "accuracy" in record or record["round"] == rounds
            if quiet or terminal or not (due or time.monotonic() > printed + 10):
                continue
            printed = time.monotonic()
            print(
                f"round {record['round']}/{rounds}",
                *(f"{n} {v}" for n, v in shown.items()),
                f"sent {sent / 1e6:,.1f} MB",
                f"{1 / record['seconds']:.3g} rounds/s",
                sep="  ",
                flush=True,
            )


def _summary(simulation: Simulation) -> str:
    e, server = simulation.experiment, simulation.server
    machine = simulation.machine
    lines = [
        describe.parameters(server.base, server.theta, simulation.wire),
        describe.population(e.data.train, e.cohort),
        f"machine  {len(machine.devices)} x {machine.devices[0].device_kind}, "
        f"{describe.at_once(machine.chunk)} on each, {simulation.fuse} rounds in a call",
    ]
    if simulation.done:
        lines.append(f"resumed  after round {simulation.done}")
    return "\n".join(lines)


# ---------------------------------------------------------------------- configs and options


def _read(arguments: list[str], command: str) -> tuple[Path, Experiment, dict[str, Any], Launch]:
    """(config, experiment, settings, launch) of `jaxfed COMMAND CONFIG [--name value ...]`."""
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"give a config: jaxfed {command} CONFIG [--name value ...]")
    path = Path(arguments[0])
    if not path.is_file():
        raise FileNotFoundError(f"there is no config {path}")
    _prepare_jax(_early(arguments[1:]))
    return path, *_call(path, arguments[1:], command)


def _call(
    path: Path, arguments: list[str], command: str
) -> tuple[Experiment, dict[str, Any], Launch]:
    """(experiment, settings, launch) of a config called with these arguments."""
    function = _function(_load(path), path)
    fields = _settings(function, path)
    docstring = inspect.getdoc(sys.modules[function.__module__]) or ""
    text = docstring + "\n\nArgs:\n" + _args(function)
    parsed = _parse(_with_launch(fields, {}, text), arguments, f"jaxfed {command} {path}")
    settings = {n: getattr(parsed, n) for n in fields}
    experiment = function(**settings)
    if not isinstance(experiment, Experiment):
        raise TypeError(
            f"{path}: experiment() returned a {type(experiment).__name__}; return an Experiment"
        )
    return experiment, settings, _launch(parsed)


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
    if launch.cpus() < 1:
        raise ValueError(f"cpu_devices={launch.cpus()}; use at least 1")
    # In a process that has used JAX already, its devices are what they are.
    late = contextlib.suppress(RuntimeError)
    with late if launch.cpu_devices is None else contextlib.nullcontext():
        jax.config.update("jax_num_cpu_devices", launch.cpus())
    if launch.coordinator is None:
        if launch.processes is not None or launch.process is not None:
            raise ValueError(
                "--processes and --process need --coordinator, the address of process 0"
            )
        with late, contextlib.suppress(ValueError):  # no launcher that JAX knows: alone
            jax.distributed.initialize()
        return
    if launch.processes is None or launch.process is None:
        raise ValueError("--coordinator also needs --processes and --process")
    if not 0 <= launch.process < launch.processes:
        raise ValueError(
            f"process={launch.process} of {launch.processes}; use 0 to {launch.processes - 1}"
        )
    jax.distributed.initialize(launch.coordinator, launch.processes, launch.process)


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{CONFIG}{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; a config ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # so that annotations can be resolved
    spec.loader.exec_module(module)
    return module


CONFIG = "jaxfed_config_"


def _configs() -> set[str]:
    """The configs that were loaded, as tracebacks name them."""
    return {str(m.__file__) for name, m in sys.modules.items() if name.startswith(CONFIG)}


def _function(module: ModuleType, path: Path) -> Callable[..., Experiment]:
    function = getattr(module, "experiment", None)
    if not callable(function):
        raise ValueError(f"{path} has no function `experiment`; see configs/quickstart.py")
    return function


def _settings(function: Callable, path: Path) -> dict[str, tuple[Any, Any]]:
    """{name: (type, default)} of a config's settings."""
    types = inspect.get_annotations(function, eval_str=True)
    parameters = inspect.signature(function).parameters
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty or name not in types:
            raise ValueError(f"{path}: the setting {name} needs a type and a default")
    if clash := set(parameters) & {f.name for f in dataclasses.fields(Launch)}:
        raise ValueError(f"{path}: the settings {sorted(clash)} are options of jaxfed; rename them")
    return {n: (types[n], parameter.default) for n, parameter in parameters.items()}


def _with_launch(
    settings: Mapping[str, tuple[Any, Any]],
    defaults: Mapping[str, Any],
    text: str,
    without: Sequence[str] = (),
) -> type:
    """A dataclass of the settings and the options of Launch, for the command line.

    `defaults` replace Launch's own; `text` is a docstring that ends in an Args section.
    """
    launch = {
        f.name: (f.type, defaults.get(f.name, f.default))
        for f in dataclasses.fields(Launch)
        if f.name not in without
    }
    fields = {**settings, **launch}
    made = dataclasses.make_dataclass(
        "Options",
        [(n, kind, dataclasses.field(default=default)) for n, (kind, default) in fields.items()],
        frozen=True,
    )
    made.__doc__ = text.rstrip() + "\n" + _args(Launch)
    return made


def _args(documented: Any) -> str:
    """The lines of the Args section of a docstring."""
    return (inspect.getdoc(documented) or "").partition("Args:\n")[2]


def _launch(parsed: Any) -> Launch:
    names = [f.name for f in dataclasses.fields(Launch) if hasattr(parsed, f.name)]
    return Launch(**{n: getattr(parsed, n) for n in names})


def _parse(options: Any, arguments: list[str], program: str) -> Any:
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
    if {"--help", "-h"} & set(arguments):
        return tyro.cli(options, args=arguments, prog=program)
    parsed = _quietly(options, arguments)
    if parsed is None:
        raise ValueError(_wrong_value(options, arguments, program))
    return parsed


def _quietly(options: Any, arguments: list[str]) -> Any:
    """The options as given, or None if tyro cannot read them."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        return tyro.cli(options, args=arguments, console_outputs=False)
    return None


def _wrong_value(options: Any, arguments: list[str], program: str) -> str:
    """Which of the given options is not of its type, in one sentence."""
    types = {f.name.replace("_", "-"): f.type for f in dataclasses.fields(options)}
    starts = [i for i, word in enumerate(arguments) if word.startswith("--")]
    for begin, end in itertools.pairwise([*starts, len(arguments)]):
        given = arguments[begin:end]
        if _quietly(options, given) is not None:
            continue
        name, _, value = given[0].removeprefix("--").partition("=")
        value = " ".join([value, *given[1:]]).strip()
        wanted = types.get(name.replace("_", "-"), "another value")
        if wanted is bool:
            return f"{program}: --{name} takes no value; give --{name} or --no-{name}"
        wanted = wanted.__name__ if isinstance(wanted, type) else wanted
        return f"{program}: --{name} wants {wanted}, not {value!r}"
    return f"{program}: cannot read {' '.join(arguments)!r}; see --help"
