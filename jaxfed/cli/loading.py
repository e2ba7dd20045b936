"""`jaxfed.load`: a run from its folder, with the experiment that its config makes."""

import os
from pathlib import Path

from jaxfed.simulation import loaded, run_folder
from jaxfed.simulation.experiment import Experiment


def load(
    directory: str | os.PathLike,
    round: int | None = None,  # noqa: A002 (the word of the records)
    *,
    experiment: Experiment | None = None,
) -> loaded.Loaded:
    """The run in this folder: its records, settings, and model; nothing there is changed.

    `round` is one that has a checkpoint, by default the newest; 0 is before the first. The
    experiment is the one that the run was started with; by default the run's own config.py makes
    it, which is code and is executed. Raises ValueError for a round without checkpoint, or another
    experiment, and FileNotFoundError if the folder holds no run. The run may still be going on.
    """
    directory = Path(directory)
    if experiment is None and (directory / "config.py").exists():
        # Here, as the command line takes a while to import.
        from jaxfed.cli import calling, options

        settings = run_folder.read_settings(directory)
        config = options.stored(directory, settings)
        experiment, _, _ = calling.call(config, settings.get("arguments", []), "load")
    return loaded.loaded(directory, experiment, round)
