"""The files of a run's folder, written so that a kill at any instant leaves a run that can go on.

config.py        the config as it was run; not there if the run was begun from Python
settings.json    what is run, and with which versions: the run has begun once this is there
clients.npz      labels [N, classes]: how many examples of each label each client has
machine.json     chunk, fuse and devices, which a resumed run must share to end in the same bits
metrics.jsonl    one record a round
checkpoints/     see checkpoint.py
clients/         what clients keep, at those checkpoints; see population.py
tensorboard/     the records again
plots/           see report.py
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

OURS = (
    "settings.json",
    "metrics.jsonl",
    "checkpoints",
    "clients",
    "machine.json",
    "config.py",
    "clients.npz",
    "tensorboard",
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
    if found := [name for name in OURS if (folder / name).exists()]:
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
        if labels is not None:
            with open(folder / "clients.npz", "wb") as file:
                np.savez(file, labels=labels)
        if config is not None:
            replace(folder / "config.py", config)
        write_json(folder / "settings.json", settings)


def read_json(path: Path) -> dict:
    """ValueError, naming the file, if it is there but cannot be read; {} if it is not there."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); put a copy of it back") from None


def write_json(path: Path, content: dict) -> None:
    with writing(path):
        replace(path, json.dumps(content, indent=2, default=str) + "\n")


def keep_records(folder: Path, rounds: int) -> list[dict]:
    """The records of the first `rounds` rounds; later ones, and a torn last line, are cut off."""
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)[:rounds] if path.exists() else []
    try:
        records = [json.loads(line) for line in lines]
    except ValueError:
        records = []
    if [r.get("round") for r in records] != list(range(1, rounds + 1)):
        raise ValueError(
            f"{path} does not hold rounds 1 to {rounds}, one a line, after which the checkpoint "
            "was written: the file was changed since; put it back, or start a new run"
        )
    with writing(path):
        replace(path, b"".join(lines))
    return records


def append(folder: Path, records: Sequence[dict]) -> None:
    """Adds records to metrics.jsonl; they are on disk when this returns."""
    path = folder / "metrics.jsonl"
    with writing(path), open(path, "a") as file:
        file.writelines(json.dumps(r) + "\n" for r in records)
        file.flush()
        os.fsync(file.fileno())


def tensorboard(folder: Path, rounds: int) -> Any:
    """A file for TensorBoard, which forgets what was written after the first `rounds` rounds."""
    # Here, as it imports torch where that is installed: two seconds.
    from tensorboardX import proto, record_writer

    (folder / "tensorboard").mkdir(exist_ok=True)
    now = time.time()
    name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
    board = record_writer.RecordWriter(str(folder / "tensorboard" / name))
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


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a failure to write, such as a full disk, into an OSError with path and remedy."""
    try:
        yield
    except OSError as error:
        cause = error.strerror or str(error)
        raise OSError(
            f"{path} could not be written: {cause}; put this right, and then run or resume"
        ) from error


def replace(path: Path, content: str | bytes) -> None:
    """Writes a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    with open(new, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
