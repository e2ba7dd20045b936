"""The files of a Hugging Face folder: config.json, and tensors whole or in parts."""

import importlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxfed import values
from jaxfed.pretrained import torch_files


def find(folder: Path, name: str) -> Path:
    """The path of a folder's file; raises ValueError, with what is there, if it is not."""
    folder = folder.expanduser()
    if not (path := folder / name).is_file():
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "nothing"
        raise ValueError(f"{folder} has no {name}; it has {there}")
    return path


def unreadable(path: Path, error: Exception) -> ValueError:
    """An error for a file that is damaged."""
    return ValueError(f"{path} cannot be read ({error}); download it again")


def json_object(path: Path) -> dict[str, Any]:
    """The object in a file of JSON; raises ValueError if it holds none."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise unreadable(path, error) from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not an object; download it again")
    return found


def safetensors(path: Path) -> Any:
    """The package, for the file at `path`; ImportError, with the remedy, where it is missing."""
    package = values.package("safetensors", "text", path)
    importlib.import_module("safetensors.numpy")
    return package


def load(path: Path) -> dict[str, np.ndarray]:
    """{name: tensor} of a safetensors file."""
    package = safetensors(path)
    try:
        return package.numpy.load_file(path)
    except (package.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise unreadable(path, error) from None


def load_all(folder: Path) -> dict[str, np.ndarray]:
    """{name: tensor} of model.safetensors or pytorch_model.bin, or of the parts of an index.

    Of several, an index counts first, and safetensors.
    """
    folder = folder.expanduser()
    for name, read in (("model.safetensors", load), ("pytorch_model.bin", torch_files.load)):
        if (folder / f"{name}.index.json").is_file():
            parts = [read(find(folder, part)) for part in _parts(folder / f"{name}.index.json")]
            return {name: tensor for part in parts for name, tensor in part.items()}
        if (folder / name).is_file():
            return read(folder / name)
    return load(find(folder, "model.safetensors"))  # which is not there


def _parts(index: Path) -> list[str]:
    """The names of the files that an index lists."""
    listed = json_object(index).get("weight_map")
    if not isinstance(listed, dict):
        raise ValueError(f"{index} has no weight_map; download it again")
    for name in listed.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index} names the part {name!r}, which is no file beside it")
    return sorted(set(listed.values()))


def check_numbers(
    path: Path, config: Mapping[str, Any], names: Iterable[str], *, zero: Collection[str], real: str
) -> None:
    """Raises ValueError for a setting that is no whole number from 1 on.

    Those in `zero` start at 0; `real`, which does as well, need not be whole.
    """
    for name in names:
        least = 0 if name in zero or name == real else 1
        number = int | float if name == real else int
        right = isinstance(config[name], number) and not isinstance(config[name], bool)
        if not right or not config[name] >= least:
            raise ValueError(f"{path} has {name}={config[name]!r}; give a number from {least} on")
