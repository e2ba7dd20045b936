"""`jaxfed.results`: the records of runs as one pandas frame."""

import importlib
import os
from pathlib import Path
from typing import Any

from jaxfed.cli import recorded
from jaxfed.simulation import run_folder


def results(*directories: str | os.PathLike) -> Any:
    """A pandas.DataFrame with a row for each recorded round of these runs, which may still go on.

    Columns: "run" (the folder's name), the run's settings, and the record's numbers, named by where
    they stand ("accuracy", "personal/accuracy/p10"); "megabytes" is what was sent so far, by all
    clients together. Where no evaluation was due, its columns are NaN. A setting that has the name
    of a record's number is called "setting/NAME". ImportError, with the remedy, without pandas;
    ValueError for a folder that holds no run.
    """
    if not directories:
        raise ValueError("give the folders of runs: jaxfed.results(DIR, ...)")
    runs = [recorded.read(Path(directory)) for directory in directories]
    rows = [row for run in runs for row in _rows(run)]
    return pandas().DataFrame(rows)


def pandas() -> Any:
    """The package; ImportError, with the remedy, where it is missing."""
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError(
            f"a frame of results needs pandas ({error}); install it with pip install "
            "'jaxfed[results]', or read metrics.jsonl of the run's folder, one record a line"
        ) from error


def _rows(run: recorded.Run) -> list[dict[str, Any]]:
    sent = recorded.megabytes(run)
    records = [
        {"round": record["round"], **dict(run_folder.scalars(record)), "megabytes": float(total)}
        for record, total in zip(run.records, sent, strict=True)
    ]
    names = {name for record in records for name in record}
    settings = {f"setting/{n}" if n in names else n: v for n, v in run.settings.items()}
    return [{"run": run.name, **settings, **record} for record in records]
