"""Whole models in Hugging Face's format: the inverse of `read`, `read_decoder` and `read_vit`."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxfed import trees
from jaxfed.algorithm import PyTree
from jaxfed.pretrained import decoders, files, layouts, vit
from jaxfed.pretrained import folder as folders
from jaxfed.pretrained.families import tensor_name

BESIDE = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "preprocessor_config.json",
)
WEIGHTS = "model.safetensors"


def write_model(folder: str | Path, checkpoint: str | Path, params: PyTree) -> None:
    """Writes the checkpoint with these weights in place of its own, as a new folder.

    `params` are all of the model's, merged, as flax takes them. The folder gets model.safetensors
    in float32, config.json, of a classifier with as many labels as the head has, and the
    checkpoint's tokenizer or preparation of images. `read`, `read_decoder` or `read_vit` takes it,
    and so does from_pretrained of AutoModelForSequenceClassification, AutoModelForCausalLM or
    AutoModelForImageClassification. FileExistsError if the folder exists and is not empty;
    ValueError if the weights are not those of such a model.
    """
    folder = Path(folder).expanduser()
    check_free(folder)
    package = files.safetensors(folder)
    flat = trees.by_path(params)
    if decoders.is_decoder(checkpoint):
        made, tensors = _decoder(checkpoint, flat)
    elif vit.is_vit(checkpoint):
        made, tensors = _vit(checkpoint, layouts.unrolled(flat))
    else:
        made, tensors = _encoder(checkpoint, layouts.unrolled(flat))
    folder.mkdir(parents=True, exist_ok=True)
    for name in BESIDE:
        if (source := Path(checkpoint).expanduser() / name).is_file():
            shutil.copyfile(source, folder / name)
    (folder / "config.json").write_text(json.dumps(made, indent=2) + "\n")
    tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    package.numpy.save_file(tensors, folder / f"{WEIGHTS}.new", metadata={"format": "pt"})
    os.replace(folder / f"{WEIGHTS}.new", folder / WEIGHTS)  # last: with it the folder is whole


def _encoder(
    checkpoint: str | Path, weights: Mapping[str, Any]
) -> tuple[dict, dict[str, np.ndarray]]:
    """(configuration, tensors) of an encoder with these weights, layer by layer."""
    check_weights(checkpoint, weights)
    family, config = folders.configuration(Path(checkpoint))
    tensors = {tensor_name(family, path): _as_theirs(path, w) for path, w in weights.items()}
    made = _configuration(config, f"{family.model}ForSequenceClassification", weights)
    return made, tensors


def _vit(checkpoint: str | Path, weights: Mapping[str, Any]) -> tuple[dict, dict[str, np.ndarray]]:
    """(configuration, tensors) of a vision transformer with these weights, layer by layer."""
    config = vit.configuration(checkpoint)
    shapes = vit.shapes_of(vit.vit(config, _classes(weights)), config)
    _check_alike(checkpoint, shapes, weights)
    tensors = {vit.tensor_name(path): vit.as_theirs(path, w) for path, w in weights.items()}
    return _configuration(config, vit.MODEL, weights), tensors


def _decoder(
    checkpoint: str | Path, weights: Mapping[str, Any]
) -> tuple[dict, dict[str, np.ndarray]]:
    """(configuration, tensors) of a decoder with these stacked weights."""
    kind, config = decoders.configuration(Path(checkpoint).expanduser())
    model, _ = decoders.read_decoder(checkpoint)
    _check_alike(checkpoint, folders.shapes_of(model), weights)
    tensors = {
        decoders.name(kind, path): _as_theirs(path, w)
        for path, w in layouts.unrolled(weights).items()
    }
    left = {n: v for n, v in config.items() if n != "torch_dtype"}
    return {**left, "dtype": "float32"}, decoders.together(kind, tensors)


def check_free(folder: Path) -> None:
    """Raises FileExistsError unless a new folder can be written here."""
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; choose a new folder")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose a new folder")


def check_weights(checkpoint: str | Path, weights: Mapping[str, Any]) -> None:
    """Raises ValueError unless these are the weights {path: array} of an encoder of this kind."""
    family, config = folders.configuration(Path(checkpoint))
    model = folders.encoder(family, config, _classes(weights))
    _check_alike(checkpoint, folders.shapes_of(model), weights)


def _classes(weights: Mapping[str, Any]) -> int:
    return len(weights["head/bias"]) if "head/bias" in weights else 1


def _check_alike(
    checkpoint: str | Path, shapes: Mapping[str, Any], weights: Mapping[str, Any]
) -> None:
    for path in dict.fromkeys([*shapes, *weights]):
        there, here = (tree[path].shape if path in tree else None for tree in (shapes, weights))
        if there != here:
            raise ValueError(
                f"the weights are not of a model like {checkpoint}: {path} is "
                f"{here or 'not there'}, and there {there or 'not there'}; give its own checkpoint"
            )


def _configuration(config: dict, architecture: str, weights: Mapping[str, Any]) -> dict:
    """The checkpoint's configuration for a classifier; names of labels stay if they are as many."""
    classes = _classes(weights)
    left = {n: v for n, v in config.items() if n not in ("torch_dtype", "dtype", "num_labels")}
    if len(config.get("id2label") or ()) != classes:
        left["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes)}
        left["label2id"] = {name: int(i) for i, name in left["id2label"].items()}
    return {**left, "architectures": [architecture], "dtype": "float32"}


def _as_theirs(path: str, weight: Any) -> np.ndarray:
    """Their kernels are [out, in]."""
    array = np.asarray(weight, np.float32)
    return array.T if path.endswith("kernel") else array
