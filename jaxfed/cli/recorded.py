"""What a run has recorded, read from its folder: it may still go on, or be a stranger's."""

import dataclasses
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfed.simulation import by_client, identity, records, run_folder, stored

LARGEST = 1e300  # of a number in a record, so that sums stay finite


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run has recorded so far."""

    folder: Path
    name: str  # its folder's, or more where several runs are compared
    config: str | None
    settings: dict
    records: list[dict]  # one a round
    labels: np.ndarray | None  # [N, classes] how many examples of each label a client has
    clients: dict[str, list] = dataclasses.field(default_factory=dict)
    """The newest evaluation by client, {"client", "examples", measure: [n]}; {} without one."""


def read(directory: str | Path) -> Run:
    """The run in a folder, which may be a stranger's. A last line that a kill cut is left out.

    ValueError if the folder holds no run, or if anything but the last line cannot be read.
    """
    directory = Path(directory)
    metrics, clients = directory / "metrics.jsonl", directory / "clients.npz"
    has_settings = (directory / "settings.json").exists()
    if not has_settings and not metrics.exists():
        raise ValueError(
            f"{directory} is no run's folder: it has neither settings.json nor metrics.jsonl"
        )
    about = run_folder.read_settings(directory) if has_settings else {}
    planned = {n: v for n, v in about.get("experiment", {}).items() if n == "rounds"}
    given = about["settings"] if "settings" in about else _from_python(about)
    config = about.get("config")
    return Run(
        folder=directory,
        name=stored.plain(directory.resolve().name),
        config=config and _brief(config),
        settings={_brief(n): _brief(v) for n, v in given.items() if _fits(n, v)} | planned,
        records=[r for _, r in run_folder.records(metrics)] if metrics.exists() else [],
        labels=_labels(clients) if clients.exists() else None,
        clients=_newest(directory),
    )


def folders(paths: Sequence[Path]) -> list[Path]:
    """The folders of runs among these paths: in place of a sweep's folder, those of its trials.

    Of what is inside a sweep's folder, as `SWEEP/*` gives it, only the trials count. ValueError for
    a sweep.json that cannot be read.
    """
    trials = {place: _trials(place) for path in paths for place in (path, path.parent)}
    opened = {path.parent for path in paths if path in trials[path.parent]}
    found: list[Path] = []
    for path in paths:
        if path.parent not in opened or path in trials[path.parent]:
            found += trials[path] or [path]
    return found


def is_sweep(place: Path) -> bool:
    """True if this is the folder of a sweep that has begun."""
    return bool(_trials(place))


def _trials(place: Path) -> list[Path]:
    """The folders of a sweep's trials that have begun, if this is a sweep's folder."""
    if not (place / "sweep.json").is_file():
        return []
    listed = stored.object_of(place / "sweep.json").get("trials")
    here = {path.name for path in place.iterdir() if (path / "settings.json").exists()}
    return [place / name for name in listed if name in here] if isinstance(listed, dict) else []


def apart(runs: Sequence[Run]) -> list[Run]:
    """The runs, numbered where their folders have one name, as p/run and q/run."""
    names = numbered([run.name for run in runs])
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def numbered(names: Sequence[str]) -> list[str]:
    """The names, all different: of equal ones the second is "NAME (2)", the third "NAME (3)"."""
    found: dict[str, None] = {}
    for name in names:
        label, n = name, 1
        while label in found or (label != name and label in names):
            n += 1
            label = f"{name} ({n})"
        found[label] = None
    return list(found)


def _fits(name: str, value: Any) -> bool:
    """False for rounds that are no whole number: with them, a run's rounds are compared."""
    return name != "rounds" or (isinstance(value, int) and not isinstance(value, bool))


def _newest(folder: Path) -> dict[str, list]:
    """The lines of the last round in clients.jsonl, joined."""
    newest: list[dict] = []
    for _, found in by_client.lines(folder):
        newest = [*(f for f in newest if f["round"] == found["round"]), found]
    names = [n for n in (newest[0] if newest else {}) if n != "round"]
    _check_names(names, folder / by_client.NAME)
    joined: dict[str, list] = {n: [x for f in newest for x in f.get(n, [])] for n in names}
    for name in (n for n in names if n != "client"):
        for x in joined[name]:
            right = x is None or (isinstance(x, int | float) and not isinstance(x, bool))
            if not right or abs(x or 0) > LARGEST:
                raise ValueError(
                    f"{folder / by_client.NAME} is damaged ({name} has {_brief(repr(x))}, no "
                    "number); put a copy of it back"
                )
    return joined


def _check_names(names: Iterable[str], where: object) -> None:
    """Raises ValueError for what cannot be a measure's name, such as the path of another file."""
    if wrong := [name for name in names if not records.is_name(name)]:
        raise ValueError(
            f"{where} is damaged (a measure is called {_brief(repr(wrong[0]))}, which is no name "
            "of a measure); put a copy of it back"
        )


def _from_python(about: dict) -> dict:
    """The settings of a run that no config began: its experiment's, and its hyperparameters."""
    return {
        **{identity.short(n): v for n, v in about.get("hyperparameters", {}).items()},
        **about.get("experiment", {}),
    }


def _brief(value: Any) -> Any:
    """A setting to be shown: numbers as they are, all else as one short line of plain text."""
    if isinstance(value, int | float | None):
        return value
    return textwrap.shorten(stored.plain(str(value)), 100, placeholder="...")


def _labels(path: Path) -> np.ndarray:
    (labels,) = stored.arrays(stored.read(path), ("labels",), path).values()
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or (labels.size and labels.min() < 0):
        raise ValueError(
            f"{path} is damaged (labels are {labels.dtype} {labels.shape}, not counts [clients, "
            "labels]); put a copy of it back"
        )
    return labels


def series(run: Run, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """(rounds [n], values [n]) of the records that hold a number there.

    "personal/accuracy/mean" stands at record["personal"]["accuracy"]["mean"].
    """
    path = tuple(measure.split("/"))
    found = [
        (record["round"], value)
        for record in run.records
        if (value := _at(run, record, path)) is not None
    ]
    rounds, values = zip(*found, strict=True) if found else ((), ())
    return np.array(rounds, int), np.array(values, float)


def _at(run: Run, record: dict, path: tuple[str, ...]) -> float | None:
    """record[path[0]][path[1]]..., or None where the record does not go that far."""
    value: Any = record
    for name in path:
        if not isinstance(value, dict | None):
            raise _damaged(run, record, path, value)
        value = (value or {}).get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > LARGEST:
        raise _damaged(run, record, path, value)
    return value


def _damaged(run: Run, record: dict, path: tuple[str, ...], value: Any) -> ValueError:
    return ValueError(
        f"{_line(run, record)} is damaged ({'/'.join(path)} is "
        f"{_brief(repr(value))}, no number); put a copy of it back"
    )


def _line(run: Run, record: dict) -> str:
    return f"{run.folder / 'metrics.jsonl'}, line {record['round']}"


def megabytes(run: Run, *names: str) -> np.ndarray:
    """[rounds] sent from the first round to each, by all clients together, in 10^6 bytes."""
    names = names or ("up", "down", "broadcast")
    sent = [sum(_at(run, r, (name,)) or 0 for name in names) for r in run.records]
    return np.cumsum(np.array(sent, float)) / 1e6


def measures(run: Run) -> list[str]:
    """The names that the run's evaluations of the test set have, `test_loss` last."""
    found: dict[str, None] = {}
    for record in run.records:
        if "test_loss" in record:
            names = list(record)
            start = names.index("broadcast") + 1 if "broadcast" in names else 0
            mine = [n for n in names[start:] if n not in ("personal", "test_loss")]
            _check_names(mine, _line(run, record))
            found |= dict.fromkeys(mine)
    return [*found, "test_loss"] if any("test_loss" in r for r in run.records) else [*found]


def personal(run: Run) -> list[str]:
    """The measures of clients' own models on their own tests: "personal/accuracy/mean", ..."""
    found: dict[str, None] = {}
    for record in run.records:
        if isinstance(own := record.get("personal"), dict):
            paths = [path for path, _ in run_folder.scalars(own)]
            found |= dict.fromkeys(p for p in paths if all(map(records.is_name, p.split("/"))))
    return [f"personal/{path}" for path in found]


def best(run: Run, measure: str = "accuracy") -> float | None:
    """The best value in any evaluation; None before the first that is a number."""
    values = series(run, measure)[1]
    values = values[np.isfinite(values)].tolist()
    return (min if records.falls(measure) else max)(values, default=None)


def reached(run: Run, goal: float, measure: str = "accuracy") -> tuple[int, float] | None:
    """(round, megabytes) of the first evaluation at `goal` or better; None if there is none."""
    rounds, values = series(run, measure)
    hits = rounds[values <= goal if records.falls(measure) else values >= goal]
    if not hits.size:
        return None
    first = int(hits[0])
    return first, float(megabytes(run)[[r["round"] for r in run.records].index(first)])
