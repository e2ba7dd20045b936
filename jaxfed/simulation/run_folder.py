"""The files of a run's folder, written so that a kill at any instant leaves a run that can go on.

config.py        the config as it was run; not there if the run was begun from Python
settings.json    what is run, and with which versions: the run has begun once this is there
clients.npz      labels [N, classes]: how many examples of each label each client has
host.json        chunk, fuse, convolutions and devices: what ends in the same bits shares them
metrics.jsonl    one record a round
clients.jsonl    each evaluation by client: {"round", "client": [...], "examples": [...], ...}
checkpoints/     see checkpoint.py
clients/         what clients keep, at those checkpoints; see population.py
clients.parquet  the same as one table, once the run has ended, where pyarrow is installed
tensorboard/     the records again, where tensorboardX is installed
wandb.json       the id of the run in W&B, which keeps its own files in wandb/
plots/           see report.py
"""

import io
import itertools
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfed.simulation import by_client, stored
from jaxfed.simulation.stored import replace, writing

SETTINGS: dict[str, tuple] = {
    "versions": (dict,),
    "config": (str, type(None)),
    "directory": (str, type(None)),
    "arguments": (list,),
    "settings": (dict,),
    "launch": (dict,),
    "environment": (dict,),
    "commit": (str, type(None)),
    "experiment": (dict,),
    "hyperparameters": (dict,),
    "checksums": (dict,),
    "changes": (list,),
}
HOST: dict[str, tuple] = {
    **dict.fromkeys(("chunk", "fuse", "devices", "processes"), (int,)),
    **dict.fromkeys(("device", "jax", "population", "convolutions", "low_rank"), (str,)),
}
WORDS = {
    "population": ("device", "host", "mapped"),
    "convolutions": ("default", "patches", "winograd", "xla"),
    "low_rank": ("products", "kernel"),
}
OURS = (
    "settings.json",
    "metrics.jsonl",
    "clients.jsonl",
    "checkpoints",
    "clients",
    "host.json",
    "config.py",
    "clients.npz",
    "clients.parquet",
    "tensorboard",
    "wandb.json",
    "wandb",
    "plots",
)


def why_not_new(folder: Path) -> str:
    """Why no run can begin in this folder, in one sentence; "" if one can."""
    if (folder / "settings.json").exists():
        return (
            f"{folder} holds a run already; go on with `jaxfed resume {folder}`, or choose another "
            "folder"
        )
    if folder.exists() and not folder.is_dir():
        return f"{folder} is a file; choose another folder for the run"
    found = [name for name in OURS if os.path.lexists(folder / name)]
    # host.json is written first: a kill between it and settings.json leaves these.
    unbegun = "host.json" in found and {*found} <= {"host.json", "config.py", "clients.npz"}
    if found and not unbegun:
        return (
            f"{folder} has {', '.join(found)}, but no settings.json: no run can begin there before "
            "they are moved away; or choose another folder"
        )
    return ""


def why_not_begun(folder: Path) -> str:
    """Why there is nothing to resume in this folder, in one sentence; "" if there is."""
    if not (folder / "settings.json").exists():
        return (
            f"{folder} has no settings.json: it is no run's folder, or its run was stopped before "
            "it began; start it with `jaxfed run`"
        )
    return ""


def begin(
    folder: Path, settings: dict, *, config: str | None = None, labels: np.ndarray | None = None
) -> None:
    """Writes what is known of a run before its first round, settings.json last."""
    with writing(folder):
        if not (folder / "settings.json").exists():  # what a kill left of a run before it began
            for name in ("config.py", "clients.npz"):
                (folder / name).unlink(missing_ok=True)
        if labels is not None:
            buffer = io.BytesIO()
            np.savez(buffer, labels=labels)
            replace(folder / "clients.npz", buffer.getvalue())
        if config is not None:
            replace(folder / "config.py", config)
        write_json(folder / "settings.json", settings)


def read_settings(folder: Path) -> dict:
    """What settings.json holds; ValueError, naming it, if that cannot be a run's settings."""
    path = folder / "settings.json"
    found = stored.object_of(path)
    stored.check_kinds(found, SETTINGS, path)
    experiment = found.get("experiment", {})
    stored.check_kinds(experiment, {"rounds": (int,)}, f"{path}, experiment")
    if experiment.get("rounds", 1) < 1:
        raise ValueError(f"{path} is damaged (its run has no rounds); put a copy of it back")
    words = dict(enumerate(found.get("arguments", [])))
    stored.check_kinds(words, dict.fromkeys(words, (str,)), f"{path}, arguments")
    return found


def resumed_settings(folder: Path) -> dict:
    """As read_settings, of a run to go on with; ValueError if they name no experiment."""
    found = read_settings(folder)
    if "experiment" not in found:
        raise ValueError(
            f"{folder / 'settings.json'} is damaged (it has no experiment); put a copy of it back"
        )
    return found


def read_host(folder: Path) -> dict:
    """What host.json holds, {} if it is not there; ValueError, naming it, if it is damaged.

    Runs from before there was a choice have its default.
    """
    path = folder / "host.json"
    if not path.exists():
        return {}
    found = stored.object_of(path)
    stored.check_kinds(found, HOST, path)
    for name, value in found.items():
        low = HOST.get(name) == (int,) and value < 1
        if low or value not in WORDS.get(name, (value,)):
            raise ValueError(f"{path} is damaged ({name} is {value!r}); put a copy of it back")
    return {"convolutions": "default", "low_rank": "products", **found}


def write_json(path: Path, content: dict) -> None:
    with writing(path):
        replace(path, json.dumps(content, indent=2, default=str) + "\n")


def records(path: Path) -> Iterator[tuple[bytes, dict]]:
    """(line, record) of each round in metrics.jsonl; a last line that a kill cut is left out.

    ValueError, naming the line, if it is damaged: line t is an object whose "round" is t.
    """
    for t, line, record in stored.objects(path):
        where = f"{path}, line {t}"
        stored.check_kinds({"round": None, **record}, {"round": (int,)}, where)
        if record["round"] != t:
            raise ValueError(
                f"{where} is damaged (it holds round {record['round']}); put a copy of the file "
                "back"
            )
        yield line, record


def keep_records(folder: Path, rounds: int) -> list[dict]:
    """The records of the first `rounds` rounds; later ones, and a torn last line, are cut off.

    And in the same way what clients.jsonl has beyond these rounds.
    """
    by_client.keep(folder, rounds)
    path = folder / "metrics.jsonl"
    kept = list(itertools.islice(records(path), rounds)) if rounds and path.exists() else []
    if len(kept) < rounds:
        raise ValueError(
            f"{path} does not hold rounds 1 to {rounds}, one a line, after which the checkpoint "
            "was written: the file was changed since; put it back, or start a new run"
        )
    for _, record in kept:
        where = f"{path}, round {record['round']}"
        sent = {name: record.get(name) for name in ("down", "up", "broadcast")}
        stored.check_kinds(sent, dict.fromkeys(sent, (int, float)), where)
    content = b"".join(line.removesuffix(b"\n") + b"\n" for line, _ in kept)
    if path.exists() and stored.read(path) != content:
        with writing(path):
            replace(path, content)
    return [record for _, record in kept]


def why_lost(folder: Path, every: int) -> str:
    """Why a run that has no checkpoint cannot begin again, in one sentence; "" if it can.

    It can if it was stopped before one was complete; `every` is how many rounds lie between two.
    """
    place, metrics = folder / "checkpoints", folder / "metrics.jsonl"
    if place.exists() and not place.is_dir():
        return f"{place} is a file, where the run's checkpoints were; bring back a copy of them"
    if not metrics.exists() or (
        place.is_dir() and any(p.name.isdecimal() for p in place.iterdir())
    ):
        return ""
    rounds = sum(1 for _ in stored.lines(metrics))
    if not rounds or (place.is_dir() and (not every or rounds <= 2 * every)):
        return ""
    return (
        f"{place} {'has no checkpoint' if place.is_dir() else 'is gone'}, though {metrics} has "
        f"{rounds} rounds; bring back a copy of it, or move metrics.jsonl away to run them again"
    )


def append(folder: Path, records: Sequence[dict]) -> None:
    """Adds records to metrics.jsonl; they are on disk when this returns."""
    path = folder / "metrics.jsonl"
    with writing(path), open(path, "a") as file:
        file.writelines(json.dumps(finite(r), allow_nan=False) + "\n" for r in records)
        file.flush()
        os.fsync(file.fileno())


def finite(value: Any) -> Any:
    """The value with None for each NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: finite(x) for name, x in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def tensorboard(folder: Path, rounds: int) -> Any:
    """A file for TensorBoard, which forgets what was written after the first `rounds` rounds."""
    # Here, as it imports torch where that is installed: two seconds.
    from tensorboardX import proto, record_writer

    place = folder / "tensorboard"
    stored.check_no_link(place, "remove it, and then run or resume")
    place.mkdir(exist_ok=True)
    now = time.time()
    name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
    board = record_writer.RecordWriter(str(place / name))
    session = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
    for event in (
        proto.event_pb2.Event(wall_time=now, file_version="brain.Event:2"),
        proto.event_pb2.Event(wall_time=now, step=rounds + 1, session_log=session),
    ):
        board.write(event.SerializeToString())
    board.flush()
    return board


def show(board: Any, records: Sequence[dict]) -> None:
    """Adds the numbers of the records to TensorBoard's file."""
    from tensorboardX import proto

    for record in records:
        values = [
            proto.summary_pb2.Summary.Value(tag=name, simple_value=value)
            for name, value in scalars(record)
        ]
        event = proto.event_pb2.Event(
            wall_time=time.time(),
            step=record["round"],
            summary=proto.summary_pb2.Summary(value=values),
        )
        board.write(event.SerializeToString())
    board.flush()


def scalars(record: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a record, named by where they stand: ("personal/accuracy/p10", 0.8)."""
    for name, value in record.items():
        if isinstance(value, dict):
            yield from scalars(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "round":
            yield prefix + name, value
