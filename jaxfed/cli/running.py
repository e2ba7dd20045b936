"""`jaxfed run` and `jaxfed resume`."""

import dataclasses
import warnings

from jaxfed.cli import asked, calling, following, launching, options
from jaxfed.cli.watching import Watch
from jaxfed.simulation.prepare import Origin


def run(arguments: list[str], watch: Watch) -> None:
    """Carries out `jaxfed run CONFIG`."""
    config, experiment, settings, launch = calling.read(arguments, "run", watch)
    about = calling.about(config, arguments[0], arguments[1:], launch)
    out = launch.folder(config.path)
    origin = Origin(config.text, settings, about)
    following.go(experiment, launch, out, watch, origin=origin)


def resume(arguments: list[str], watch: Watch) -> None:
    """Carries out `jaxfed resume DIR`."""
    path, saved = calling.begun(arguments, "resume")
    rounds = saved["experiment"]["rounds"]
    fields = {"rounds": (int, rounds), "allow": (tuple[str, ...], ())}
    accepted = launching.with_launch(fields, saved["launch"], asked.RESUME, without=("out", "name"))
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
