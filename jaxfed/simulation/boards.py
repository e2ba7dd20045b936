"""Where records are shown beside metrics.jsonl: TensorBoard's file, and Weights & Biases.

TensorBoard's is written where tensorboardX is installed (`pip install 'jaxfed[boards]'`).
"""

import importlib
import importlib.util
import os
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxfed.simulation import run_folder, stored


class Board(NamedTuple):
    """One place that shows records, open until `close`."""

    show: Callable[[Sequence[dict]], None]
    close: Callable[[], None]


def check(log: str, folder: Path | None) -> None:
    """Raises ValueError if records could not be shown where `log` asks for."""
    if log != "wandb":
        return
    if folder is None:
        raise ValueError("log='wandb' needs a run's folder; give run(..., directory)")
    _wandb()


def opened(folder: Path, rounds: int, log: str) -> list[Board]:
    """The boards of a run that goes on after its first `rounds` rounds."""
    boards = [tensorboard(folder, rounds)] if importlib.util.find_spec("tensorboardX") else []
    return [*boards, wandb(folder)] if log == "wandb" else boards


def tensorboard(folder: Path, rounds: int) -> Board:
    """A file for TensorBoard."""
    with run_folder.writing(folder / "tensorboard"):
        file = run_folder.tensorboard(folder, rounds)
    return Board(partial(_on_disk, folder, file), file.close)


def _on_disk(folder: Path, file: Any, records: Sequence[dict]) -> None:
    with run_folder.writing(folder / "tensorboard"):
        run_folder.show(file, records)


def wandb(folder: Path) -> Board:
    """A run of W&B with the settings and hyperparameters of settings.json.

    wandb.json has its id, with which a resumed run goes on. Rounds that W&B has already are left as
    they are there: the resumed run's are equal. The project is WANDB_PROJECT, or else "jaxfed".
    """
    path = folder / "wandb.json"
    if not path.exists():
        run_folder.write_json(path, {"id": secrets.token_hex(8)})
    saved = stored.object_of(path)
    stored.check_kinds({"id": None, **saved}, {"id": (str,)}, path)
    about = run_folder.read_settings(folder)
    sections = ("hyperparameters", "experiment", "settings")
    run = _wandb().init(
        project=os.environ.get("WANDB_PROJECT", "jaxfed"),
        name=folder.resolve().name,
        id=saved["id"],
        resume="allow",
        dir=str(folder),
        config={n: v for section in sections for n, v in about.get(section, {}).items()},
    )

    def show(records: Sequence[dict]) -> None:
        for record in records:
            run.log(dict(run_folder.scalars(record)), step=record["round"])

    return Board(show, run.finish)


def _wandb() -> Any:
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise ValueError(
            f"log='wandb' needs the package wandb ({error}); install it with pip install "
            "'jaxfed[wandb]', or leave log out"
        ) from error
