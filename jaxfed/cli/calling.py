"""A command's config or run made into an experiment, with the options that it was given."""

import functools
import inspect
import logging
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from jaxfed.cli import errors, launching, options
from jaxfed.cli.launching import Launch
from jaxfed.cli.options import Config
from jaxfed.cli.watching import Watch
from jaxfed.simulation import run_folder, stored
from jaxfed.simulation.experiment import Experiment

log = logging.getLogger(__name__)


def begun(arguments: list[str], command: str) -> tuple[Path, dict]:
    """(folder, settings) of `jaxfed COMMAND DIR`, of a run that a config began."""
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"give the folder of the run: jaxfed {command} DIR")
    path = options.path(arguments[0])
    if why := run_folder.why_not_begun(path):
        raise FileNotFoundError(why)
    saved = run_folder.read_settings(path)
    if not (path / "config.py").exists():
        there = {
            "resume": "go on with it there, with jaxfed.run(..., resume=True)",
            "analyse": "analyse it there, with jaxfed.analysis.probe.of_run(experiment, directory)",
            "rerun": "run it there, with jaxfed.run(experiment, NEW)",
            "export": "read it there, with jaxfed.load(directory, experiment=experiment).params()",
        }
        raise FileNotFoundError(
            f"{path} has no config.py: its run was begun from Python; {there[command]}"
        )
    stored.check(path / "config.py", stored.TEXT)
    where = path / "settings.json"
    needed = {"arguments": (list,), "launch": (dict,), "experiment": (dict,)}
    stored.check_kinds({**dict.fromkeys(needed), **saved}, needed, where)
    stored.check_kinds({"rounds": None, **saved["experiment"]}, {"rounds": (int,)}, where)
    launching.check(saved["launch"], where)
    return path, saved


def read(
    arguments: list[str], command: str, watch: Watch
) -> tuple[Config, Experiment, dict, Launch]:
    """(config, experiment, settings, launch) of `jaxfed COMMAND CONFIG [--name value ...]`."""
    config = config_of(arguments, command, watch)
    return config, *call(config, arguments[1:], command)


def config_of(arguments: list[str], command: str, watch: Watch) -> Config:
    """The config of `jaxfed COMMAND CONFIG [--name value ...]`, with JAX ready for its options."""
    if not arguments or arguments[0].startswith("-"):
        raise ValueError(f"give a config: jaxfed {command} CONFIG [--name value ...]")
    path = options.path(arguments[0])
    if not path.is_file():
        raise FileNotFoundError(f"there is no config {path}")
    config = options.read(path)
    prepare_jax(launching.early(arguments[1:]), watch)
    return config


def about(config: Config, given: str, arguments: list[str], launch: Launch) -> dict[str, Any]:
    """Where a run comes from, for its settings.json: the config as `given`, and its arguments.

    Beside them the packages that are installed, and the commit of the config's git repository.
    """
    return {
        "config": given,
        "directory": str(config.directory),
        "arguments": arguments,
        "launch": launch.remembered(),
        "environment": packages(),
        "commit": commit(config.path.parent),
    }


@functools.cache
def packages() -> dict[str, str]:
    """{name: version} of the packages that are installed, by name."""
    found = {d.metadata["Name"]: d.version for d in metadata.distributions()}
    return dict(sorted(found.items(), key=lambda item: str(item[0]).lower()))


def commit(folder: Path) -> str | None:
    """The commit that is checked out there, with -dirty if files differ; None without git."""
    words = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty"]
    try:
        asked = [*words, "--exclude=*"]
        found = subprocess.run(asked, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None if not found.returncode else None


def prepare_jax(launch: Launch, watch: Watch) -> None:
    launching.prepare_jax(launch)
    watch.quiet = jax.process_index() > 0


def call(config: Config, arguments: list[str], command: str) -> tuple[Experiment, dict, Launch]:
    """(experiment, settings, launch) of a config called with these arguments."""
    with options.at_home(config), errors.reading():
        build, settings, launch = parsed(config, arguments, command)
        log.info("building the experiment")
        experiment = build()
    if not isinstance(experiment, Experiment):
        raise TypeError(
            f"{options.short(config.path)}: experiment() returned a {type(experiment).__name__}; "
            "return an Experiment"
        )
    return experiment, settings, launch


def parsed(config: Config, arguments: list[str], command: str) -> tuple[Callable, dict, Launch]:
    """(what builds the experiment, settings, launch) of a config, with these arguments."""
    function = options.function(options.load(config.path, config.text))
    own, changes = launching.settings_of(config, function)
    docstring = inspect.getdoc(sys.modules[function.__module__]) or ""
    accepted = launching.accepted(config, function, docstring)
    given = options.parse(accepted, arguments, f"jaxfed {command} {options.short(config.path)}")
    settings = {n: getattr(given, n) for n in own}
    changed = {n: x for n, (_, x0) in changes.items() if (x := getattr(given, n)) != x0}
    build = partial(launching.Changes(**changed).built, function, settings)
    return build, {**settings, **changed}, launching.chosen(given)
