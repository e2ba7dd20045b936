"""Where a run is launched: the options that every command shares, and JAX made ready.

The command line's help reads this module, so JAX is imported where it is used.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxfed.cli import options
from jaxfed.simulation import run_folder, stored
from jaxfed.simulation.host import Host


@dataclasses.dataclass(frozen=True)
class Launch:
    """Where a run is, and on what; with `host`, nothing that changes its result.

    Args:
        out: the run's folder, new or empty; by default runs/CONFIG-DATE-TIME.
        name: the run's folder is runs/NAME; one of out and name.
        cpu_devices: on a CPU, how many devices it is split into; by default one a core.
        coordinator: address of process 0, host:port, for several processes without a launcher.
        processes: how many processes there are.
        process: which of them this is, from 0.
    """

    host: Host = dataclasses.field(default_factory=Host)
    out: Path | None = None
    name: str | None = None
    cpu_devices: int | None = None
    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None

    def folder(self, config: Path) -> Path:
        """The run's folder, which is made if its name follows from the config's."""
        if self.name is None:
            return self.out or new_folder(config.stem)
        if self.out is not None:
            raise ValueError("--out and --name both name the run's folder; give one")
        if not re.fullmatch(r"[\w.,=+-]*\w", self.name):
            raise ValueError(f"--name {self.name!r}: use letters, digits and . , = + - alone")
        return Path("runs") / self.name

    def remembered(self) -> dict[str, Any]:
        """Whatever a resumed run takes from here; it is given its processes again."""
        import jax

        here = jax.local_device_count() if jax.default_backend() == "cpu" else self.cpus()
        return {**dataclasses.asdict(self.host), "cpu_devices": here}

    def cpus(self) -> int:
        """How many devices a CPU is split into."""
        if self.cpu_devices is not None:
            return self.cpu_devices
        allowed = getattr(os, "sched_getaffinity", None)  # of this process, where the system says
        return len(allowed(0)) if allowed else os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Changes:
    """What an option can change of any config's experiment.

    Args:
        rounds: how many rounds to run.
        evaluate_every: rounds between evaluations; 0 is never.
        split_seed: the config's `seed`, by which it deals the data, while --seed decides the first
            weights, who is drawn and in which order examples come.
        on: evaluate on the test set, or on a validation set in its place: the data's own, or else
            a tenth of each client's training examples, which it then does not train on.
    """

    rounds: int | None = None
    evaluate_every: int | None = None
    split_seed: int | None = None
    on: Literal["test", "validation"] = "test"

    def built(self, function: Callable, settings: Mapping[str, Any]) -> Any:
        """The experiment that a config's function makes of its settings, with these changes."""
        from jaxfed.simulation.experiment import Experiment

        if self.split_seed is None:
            made = function(**settings)
        elif "seed" in settings:
            made = function(**{**settings, "seed": self.split_seed})
        else:
            raise ValueError("--split-seed needs a config that has a setting `seed`")
        if not isinstance(made, Experiment):
            return made
        if self.on == "validation":
            made = dataclasses.replace(made, data=made.data.validated())
        named: dict[str, Any] = {"rounds": self.rounds, "evaluate_every": self.evaluate_every}
        if self.split_seed is not None:
            named["seed"] = settings["seed"]
        return dataclasses.replace(made, **{n: v for n, v in named.items() if v is not None})


CHANGES = {f.name: (f.type, f.default) for f in dataclasses.fields(Changes)}
HOST = dataclasses.fields(Host)
OWN = tuple(f for f in dataclasses.fields(Launch) if f.name != "host")
NAMES = tuple(f.name for f in (*OWN, *HOST))


CPUS = 1024  # devices that a CPU is split into, at most


def check(launch: Mapping[str, Any], where: object) -> None:
    """Raises ValueError, naming the file, if these are not what a run was launched with."""
    stored.check_kinds(launch, {"cpu_devices": (int, type(None))}, f"{where}, launch")
    try:
        Host(**{f.name: launch[f.name] for f in HOST if f.name in launch})
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where} is damaged (launch: {error}); put a copy of it back") from None


def with_launch(
    settings: Mapping[str, tuple[Any, Any]],
    defaults: Mapping[str, Any],
    text: str,
    without: Sequence[str] = (),
) -> type:
    """A dataclass of the settings and the options of Launch and Host, for the command line.

    `defaults` replace their own; `text` is a docstring that ends in an Args section.
    """
    launch = {
        f.name: (f.type, defaults.get(f.name, f.default))
        for f in (*OWN, *HOST)
        if f.name not in without
    }
    fields = {**settings, **launch}
    made = dataclasses.make_dataclass(
        "Options",
        [(n, kind, dataclasses.field(default=default)) for n, (kind, default) in fields.items()],
        frozen=True,
    )
    made.__doc__ = "\n".join([text.rstrip(), *map(options.args, (Launch, Host))])
    return made


def settings_of(config: options.Config, function: Callable) -> tuple[dict, dict]:
    """({name: (type, default)} of a config's settings, and of the changes beside them)."""
    own = options.settings(function, options.short(config.path), reserved=NAMES)
    return own, {n: kind for n, kind in CHANGES.items() if n not in own}


def accepted(config: options.Config, function: Callable, docstring: str, more: str = "") -> type:
    """A dataclass of all options with this config, whose docstring is the help's text."""
    own, changes = settings_of(config, function)
    lines = [docstring, "", more, "Args:", *map(options.args, (Changes, function))]
    return with_launch({**own, **changes}, {}, "\n".join(lines))


def chosen(parsed: Any) -> Launch:
    """The Launch among options as parsed."""
    host = Host(**{f.name: getattr(parsed, f.name) for f in HOST})
    return Launch(host, **{f.name: getattr(parsed, f.name) for f in OWN if hasattr(parsed, f.name)})


def new_folder(stem: str) -> Path:
    """runs/CONFIG-DATE-TIME, made by process 0; with -2, -3, ... if others started this second."""
    import jax

    from jaxfed.simulation import processes

    if jax.process_index():
        return Path(processes.from_first(""))
    name = Path("runs") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"
    with run_folder.writing(name.parent):
        name.parent.mkdir(parents=True, exist_ok=True)
    for i in itertools.count(2):
        with contextlib.suppress(FileExistsError):
            name.mkdir()
            break
        name = name.with_name(f"{name.name.removesuffix(f'-{i - 1}')}-{i}")
    return Path(processes.from_first(str(name)))


def early(arguments: list[str]) -> Launch:
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


def prepare_jax(launch: Launch) -> None:
    """Joins the other processes, if there are any, and splits the CPU into devices.

    Compiled programs are kept for later runs, in a folder of the user.
    """
    import jax

    keep_programs()
    split_cpu(launch)
    late = contextlib.suppress(RuntimeError)
    if launch.coordinator is None:
        if launch.processes is not None or launch.process is not None:
            raise ValueError(
                "--processes and --process need --coordinator, the address of process 0"
            )
        with late, contextlib.suppress(ValueError):  # no launcher that JAX knows: alone
            jax.distributed.initialize(local_device_ids=local_gpus(os.environ))
        return
    if not re.fullmatch(r".+:\d+", launch.coordinator):
        raise ValueError(f"--coordinator is {launch.coordinator!r}; give host:port")
    if launch.processes is None or launch.process is None:
        raise ValueError("--coordinator also needs --processes and --process")
    if not 0 <= launch.process < launch.processes:
        raise ValueError(
            f"process={launch.process} of {launch.processes}; use 0 to {launch.processes - 1}"
        )
    jax.distributed.initialize(
        launch.coordinator,
        launch.processes,
        launch.process,
        local_device_ids=local_gpus(os.environ),
    )


def split_cpu(launch: Launch) -> None:
    """Splits the CPU into devices; where JAX is in use already, they are what they are."""
    import jax

    if not 1 <= launch.cpus() <= CPUS:
        raise ValueError(f"cpu_devices={launch.cpus()}; use 1 to {CPUS}")
    late = contextlib.suppress(RuntimeError)
    with late if launch.cpu_devices is None else contextlib.nullcontext():
        jax.config.update("jax_num_cpu_devices", launch.cpus())


KEPT = 2**31  # bytes of compiled programs; those that were not used for longest go first


def keep_programs() -> None:
    """Sets JAX's cache of compiled programs, unless the user has set one or turned it off."""
    import jax

    config: Any = jax.config
    if config.jax_compilation_cache_dir is not None:
        return
    try:
        folder = programs(os.environ, sys.platform)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no place to write, or no home: nothing is kept
        return
    config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_COMPILATION_CACHE_MAX_SIZE" not in os.environ:
        config.update("jax_compilation_cache_max_size", KEPT)


def programs(environment: Mapping[str, str], system: str) -> Path:
    """The folder for compiled programs in the user's cache; each computer has its own.

    Programs for one CPU may not run on another, and computers may share a user's files.
    """
    from jaxfed.data import cache

    return cache.user_folder(environment, system) / "compiled" / (platform.node() or "here")


def local_gpus(environment: Mapping[str, str]) -> list[int] | None:
    """Which of the GPUs that a process of SLURM sees are its own; [] is all, None leaves it to JAX.

    JAX alone gives every process one GPU, so that one process a node would leave the others idle.
    Here the processes of a node share its GPUs evenly. With `--gpus-per-task`, or where SLURM shows
    each process fewer GPUs than the node has processes, a process sees only its own.
    """
    if "SLURM_LOCALID" not in environment or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    processes = _on_this_node(environment)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    number = len(visible.split(",")) if visible else processes
    if processes == 1 or "SLURM_GPUS_PER_TASK" in environment or number < processes:
        return []
    each, local = number // processes, int(environment["SLURM_LOCALID"])
    return list(range(local * each, (local + 1) * each))


def _on_this_node(environment: Mapping[str, str]) -> int:
    """The processes of SLURM's step on this node: SLURM writes 4, or 4(x2),3 for three nodes."""
    names = "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_NTASKS_PER_NODE"
    text = next((environment[n] for n in names if n in environment), "1")
    of_nodes = [
        int(processes)
        for processes, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
        for _ in range(int(nodes or 1))
    ]
    return of_nodes[min(int(environment.get("SLURM_NODEID", 0)), len(of_nodes) - 1)]
