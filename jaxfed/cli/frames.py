"""`jaxfed.results`: the records of runs as one pandas frame."""

import importlib
import os
from pathlib import Path
from typing import Any

from jaxfed import values
from jaxfed.cli import recorded
from jaxfed.simulation import by_client, run_folder


def results(*directories: str | os.PathLike, clients: bool = False) -> Any:
    """A pandas.DataFrame with a row for each recorded round of these runs, which may still go on.

    A sweep's folder stands for its trials. With `clients`, a row for each client that has test
    examples of its own, at each evaluation: "client" is its number or the name of its user,
    "examples" how many it has.

    Columns: "run" (the folder's name), the run's settings, and the record's numbers, named by where
    they stand ("accuracy", "personal/accuracy/p10"); "megabytes" is what was sent so far, by all
    clients together. Where no evaluation was due, its columns are NaN. A setting that has the name
    of a record's number is called "setting/NAME". ImportError, with the remedy, without pandas;
    ValueError for a folder that holds no run.
    """
    if not directories:
        raise ValueError("give the folders of runs: jaxfed.results(DIR, ...)")
    values.kind("clients", clients, bool, "True or False")
    places = recorded.folders([Path(directory) for directory in directories])
    runs = zip(places, recorded.apart([recorded.read(p) for p in places]), strict=True)
    make = _by_client if clients else lambda place, run: _rows(run)
    rows = [row for place, run in runs for row in make(place, run)]
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
    return [{"run": run.name, **_settings(run, names), **record} for record in records]


def _settings(run: recorded.Run, names: set[str]) -> dict[str, Any]:
    return {f"setting/{n}" if n in names else n: v for n, v in run.settings.items()}


def _by_client(place: Path, run: recorded.Run) -> list[dict[str, Any]]:
    lines = [found for _, found in by_client.lines(place)]
    known = _settings(run, {name for line in lines for name in line})
    return [
        {"run": run.name, **known, "round": line["round"], **dict(zip(columns, row, strict=True))}
        for line in lines
        for columns in [[n for n in line if n != "round"]]
        for row in zip(*(line[n] for n in columns), strict=True)
    ]
