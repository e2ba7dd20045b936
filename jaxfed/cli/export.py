"""`jaxfed export`: the model of a run in files that other programs read."""

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxfed import lowrank, pretrained, trees
from jaxfed.cli import calling, loading, options
from jaxfed.cli.asked import Export
from jaxfed.cli.launching import Launch
from jaxfed.cli.watching import Watch
from jaxfed.simulation import stored
from jaxfed.simulation.loaded import Loaded

WEIGHTS = tuple(
    f"{name}{end}"
    for name in ("model.safetensors", "pytorch_model.bin")
    for end in ("", ".index.json")
)


def command(arguments: list[str], watch: Watch) -> None:
    """Carries out `jaxfed export DIR --npz F | --hf FOLDER | --peft FOLDER`."""
    path, saved = calling.begun(arguments, "export")
    asked = options.parse(Export, arguments[1:], f"jaxfed export {path}")
    forms = {"npz": asked.npz, "hf": asked.hf, "peft": asked.peft}
    targets = {form: target for form, target in forms.items() if target is not None}
    if not targets:
        raise ValueError(f"give the form: jaxfed export {path} --npz F | --hf FOLDER | --peft F")
    options.check_apart(targets)
    for target in targets.values():
        if os.path.lexists(target):
            raise FileExistsError(f"{target} exists; choose a new path, or move it away")
    wants = asked.hf is not None or asked.peft is not None
    checkpoint = checkpoint_of(saved, path, asked.checkpoint) if wants else None
    calling.prepare_jax(Launch(), watch)
    found = loading.load(path, asked.round)
    base, theta = found.deployed(asked.client)
    if not isinstance(theta, lowrank.Theta):
        raise TypeError(f"theta is a {type(theta).__name__}; only a lowrank.Theta is exported")
    if asked.npz is not None:
        write_npz(asked.npz, trees.by_path(lowrank.merged(base, theta)))
    if asked.hf is not None and checkpoint is not None:
        pretrained.write_model(asked.hf, checkpoint, lowrank.merged(base, theta))
    if asked.peft is not None and checkpoint is not None:
        with stored.writing(asked.peft, "choose another folder"):
            asked.peft.parent.mkdir(parents=True, exist_ok=True)
        pretrained.write_adapters(
            asked.peft.parent, checkpoint.absolute(), base, {asked.peft.name: theta}
        )
    watch.clear()
    print(_summary(found, asked.client))
    for target in targets.values():
        print(target)


def _summary(found: Loaded, client: str | None) -> str:
    whose = "the common model" if client is None else f"the model of client {client}"
    return f"{whose} after round {found.round} of {found.directory}"


def write_npz(path: Path, weights: Mapping[str, Any]) -> None:
    """Writes the arrays by their names, whole or not at all; narrow floats as float32."""
    arrays: dict[str, Any] = {
        name: np.asarray(w, np.float32) if w.dtype == jnp.bfloat16 else np.asarray(w)
        for name, w in weights.items()
    }
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    stored.save(path, buffer.getvalue())


def checkpoint_of(saved: Mapping[str, Any], path: Path, asked: Path | None) -> Path:
    """The pretrained folder that a run started from; ValueError if it cannot be known.

    `saved` is settings.json of the run: the folder is one of its settings.
    """
    if asked is not None:
        return asked
    home = Path(str(saved.get("directory", "")))
    values = [v for v in saved.get("settings", {}).values() if isinstance(v, str) and v]
    found = (folder for value in values if (folder := _pretrained(home, value)) is not None)
    if (first := next(found, None)) is not None:
        return first
    raise ValueError(
        f"no setting of {path} is a pretrained folder with model.safetensors; if the run started "
        "from one, give it with --checkpoint FOLDER, else use --npz"
    )


def _pretrained(home: Path, value: str) -> Path | None:
    """The folder that a setting names, if it holds a model's tensors, whole or in parts.

    A setting may be any text, such as a prompt that no path can be.
    """
    try:
        folder = home / Path(value).expanduser()
        here = any((folder / name).is_file() for name in WEIGHTS)
    except (OSError, RuntimeError, ValueError):
        return None
    return folder if here else None
