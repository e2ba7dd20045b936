"""The command line in processes of its own, and what their runs left behind."""

import contextlib
import json
import math
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np

from jaxfed.simulation import checkpoint
from jaxfed.simulation.population import rows as stores

SMALL = Path(__file__).with_name("small.py")
WITHOUT_TORCH = Path(__file__).with_name("without_torch")


def environment(cache: Path) -> dict[str, str]:
    """JAX compiles as for users, since bits are compared, and keeps it in the `cache`.

    tensorboardX would import torch where it is installed, which takes two seconds.
    """
    folders = [str(WITHOUT_TORCH), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "PYTHONPATH": os.pathsep.join(folders),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "0",
    }


def start(*arguments: object, cache: Path) -> subprocess.Popen:
    """`jaxfed ARGUMENTS`; what was compiled once stands in the `cache` for the next."""
    command = "from jaxfed.cli import main; main.main()"
    return subprocess.Popen(
        [sys.executable, "-c", command, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment(cache)},
    )


def finished(process: subprocess.Popen, status: int = 0) -> str:
    """What the process printed, once it has ended with this status."""
    printed, _ = process.communicate(timeout=240)
    if process.returncode != status:
        raise RuntimeError(f"ended with {process.returncode}, not {status}:\n{printed}")
    return printed


def without_progress(printed: str) -> str:
    """What was printed, but for the lines of progress that a slow machine prints."""
    return re.sub(r"^ +\d+ s  .*\n", "", printed, flags=re.MULTILINE)


def records(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without `seconds`, which no two runs share."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{n: v for n, v in json.loads(line).items() if n != "seconds"} for line in lines]


def state(folder: Path) -> tuple[int, dict[str, bytes]]:
    """(round, {path or client: bits}) of a run's newest checkpoint, with nothing left out."""
    with contextlib.closing(checkpoint.open_folder(folder / "checkpoints")) as opened:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # orbax: no sharding was saved
            record, leaves = opened._read(opened.rounds[-1])
        found = {path: x.tobytes() for path, x in leaves.items()}
        return opened.rounds[-1], found | kept(folder, leaves, opened.rounds[-1], record["extra"])


def kept(folder: Path, leaves: dict, t: int, extra: dict) -> dict[str, bytes]:
    """{client: bits} of what clients that were drawn keep."""
    clients = len(leaves["['owed']"])
    states = [x for path, x in leaves.items() if path.startswith("['states']")]
    nbytes = sum(math.prod(x.shape[1:]) * x.itemsize for x in states)
    if not nbytes:
        return {}
    with contextlib.closing(stores.File(folder / "clients", clients, nbytes)) as rows:
        ids = rows.restore(t, extra["clients"])
        return {f"client {k}": row.tobytes() for k, row in zip(ids, rows.read(ids), strict=True)}


def recorded_folder(
    place, rounds=20, every=5, labels=None, rate=0.1, megabyte=1.0, personal=True, **settings
):
    """A run's folder in which accuracy after round t is 1 - (1 - rate)^t."""
    place.mkdir(parents=True)
    about = {"config": "digits", "settings": {"rounds": rounds, **settings}}
    (place / "settings.json").write_text(json.dumps(about))
    with open(place / "metrics.jsonl", "w") as metrics:
        for t in range(1, rounds + 1):
            record = {"round": t, "loss": 1 / t, "seconds": 0.5 if t > 1 else 9.0, "clients": 4}
            record |= {"up": 1e6 * megabyte, "down": 2e6 * megabyte, "broadcast": 0}
            if every and t % every == 0:
                accuracy = 1 - (1 - rate) ** t
                spread = {"mean": accuracy, "p10": accuracy - 0.1, "p50": accuracy, "p90": 1.0}
                record |= {"accuracy": accuracy, "test_loss": 1.0}
                record |= {"personal": {"accuracy": spread}} if personal else {}
            metrics.write(json.dumps(record) + "\n")
    if labels is not None:
        np.savez(place / "clients.npz", labels=labels)
    return place
