"""clients.jsonl of a run's folder: each evaluation of clients' own models, by client.

A line is {"round": t, "client": [n], "examples": [n], "loss": [n], ...}; of many clients there are
several lines a round. Clients are numbers, or the names of their users. The file grows with every
evaluation and has no bound; a line has one.
"""

import importlib.util
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfed.simulation import stored

NAME = "clients.jsonl"
PARQUET = "clients.parquet"
MOST = 50_000  # clients in a line


def append(
    folder: Path, t: int, each: Mapping[str, np.ndarray], names: Sequence[Any] | None
) -> None:
    """Adds what the evaluation after round t measured, with 7 digits; `names` are all clients'."""
    path, ids = folder / NAME, each["client"].tolist()
    shown = ids if names is None else [_name(names[k]) for k in ids]
    numbers = {n: [_short(x) for x in v.tolist()] for n, v in each.items() if n != "client"}
    _outdate(folder)
    with stored.writing(path), open(path, "a") as file:
        for i in range(0, len(ids), MOST):
            part = {n: v[i : i + MOST] for n, v in {"client": shown, **numbers}.items()}
            file.writelines(_short_lines(t, part))


def _outdate(folder: Path) -> None:
    """Removes clients.parquet, which the run writes again at its end."""
    with stored.writing(folder / PARQUET):
        (folder / PARQUET).unlink(missing_ok=True)


def _short_lines(t: int, part: Mapping[str, list]) -> Iterator[str]:
    """These clients in one line, or in more if that were too long to be read."""
    line, n = json.dumps({"round": t, **part}, allow_nan=False) + "\n", len(part["client"])
    if len(line) <= stored.LINE or n == 1:
        yield line
        return
    for half in (slice(n // 2), slice(n // 2, None)):
        yield from _short_lines(t, {name: x[half] for name, x in part.items()})


def _name(name: Any) -> str | int:
    return name if isinstance(name, int | str) and not isinstance(name, bool) else str(name)


def _short(x: float) -> float | int | None:
    if isinstance(x, int):
        return x
    return float(f"{x:.7g}") if math.isfinite(x) else None


def lines(folder: Path) -> Iterator[tuple[bytes, dict]]:
    """(line, content) of the file, if it is there; a last line that a kill cut is left out.

    ValueError, naming the line, if it is damaged: lists of one length, rounds ascending.
    """
    path, before = folder / NAME, 0
    for number, line, found in stored.objects(path, None) if path.exists() else ():
        where = f"{path}, line {number}"
        stored.check_kinds({"round": None, "client": None, **found}, {"round": (int,)}, where)
        columns = {n: v for n, v in found.items() if n != "round"}
        stored.check_kinds(columns, dict.fromkeys(columns, (list,)), where)
        if len({len(v) for v in columns.values()}) > 1 or found["round"] < before:
            raise ValueError(
                f"{where} is damaged (its lists differ in length, or its round comes before the "
                "last); put a copy of the file back"
            )
        before = found["round"]
        yield line, found


def write_parquet(folder: Path) -> None:
    """Writes clients.parquet, {"round", "client", ...} with a row for each client and evaluation.

    A measure that an evaluation lacks, as before a change of the config, is empty there. If there
    are such evaluations, and pyarrow is installed; a file that is there is up to date.
    """
    if not (folder / NAME).exists() or (folder / PARQUET).exists():
        return
    if importlib.util.find_spec("pyarrow") is None:
        return
    import pyarrow as pa
    from pyarrow import parquet

    names = dict.fromkeys(name for _, line in lines(folder) for name in line)
    named = any(isinstance(c, str) for _, line in lines(folder) for c in line["client"])
    kinds = {"client": pa.string() if named else pa.int64(), "round": pa.int64()}
    kinds["examples"] = pa.int64()
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in names])
    buffer, writer = io.BytesIO(), None
    for _, line in lines(folder):
        n = len(line["client"])
        client = list(map(str, line["client"])) if named else line["client"]
        columns = {**line, "client": client, "round": [line["round"]] * n}
        whole = {name: columns.get(name, [None] * n) for name in names}
        writer = writer or parquet.ParquetWriter(buffer, schema)
        writer.write_table(pa.table(whole, schema))
    if writer is not None:
        writer.close()
        with stored.writing(folder / PARQUET):
            stored.replace(folder / PARQUET, buffer.getvalue())


def keep(folder: Path, rounds: int) -> None:
    """Cuts off the evaluations after the first `rounds` rounds, and a torn last line."""
    path, end, whole = folder / NAME, 0, True
    stored.check_no_link(path, "put a copy of the run's own back")
    for line, found in lines(folder):
        if found["round"] <= rounds:
            end, whole = end + len(line), line.endswith(b"\n")
    if path.exists() and not (whole and path.stat().st_size == end):
        _outdate(folder)
        with stored.writing(path), open(path, "r+b") as file:
            file.truncate(end)
            file.seek(end)
            file.write(b"" if whole else b"\n")
