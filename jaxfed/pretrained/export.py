"""Whole models in Hugging Face's format: the inverse of `pretrained.read`."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from jaxfed import trees
from jaxfed.algorithm import PyTree
from jaxfed.pretrained import folder as folders
from jaxfed.pretrained import layouts
from jaxfed.pretrained.families import Family, tensor_name

TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
WEIGHTS = "model.safetensors"


def write_model(folder: str | Path, checkpoint: str | Path, params: PyTree) -> None:
    """Writes the checkpoint with these weights in place of its own, as a new folder.

    `params` are all of the model's, merged, as flax takes them. The folder gets model.safetensors
    in float32, config.json with as many labels as the head has, and the checkpoint's tokenizer;
    `read` and AutoModelForSequenceClassification.from_pretrained take it. FileExistsError if the
    folder exists and is not empty; ValueError if the weights are not those of such a model.
    """
    folder = Path(folder).expanduser()
    check_free(folder)
    family, config = folders.configuration(Path(checkpoint))
    weights = layouts.unrolled(trees.by_path(params))
    check_weights(checkpoint, weights)
    classes = len(weights["head/bias"])
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        if (source := Path(checkpoint).expanduser() / name).is_file():
            shutil.copyfile(source, folder / name)
    made = _configuration(family, config, classes)
    (folder / "config.json").write_text(json.dumps(made, indent=2) + "\n")
    tensors = {tensor_name(family, path): _as_theirs(path, w) for path, w in weights.items()}
    safetensors.numpy.save_file(tensors, folder / f"{WEIGHTS}.new", metadata={"format": "pt"})
    os.replace(folder / f"{WEIGHTS}.new", folder / WEIGHTS)  # last: with it the folder is whole


def check_free(folder: Path) -> None:
    """Raises FileExistsError unless a new folder can be written here."""
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; choose a new folder")
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file; choose a new folder")


def check_weights(checkpoint: str | Path, weights: Mapping[str, Any]) -> None:
    """Raises ValueError unless these are the weights {path: array} of a model of this kind."""
    family, config = folders.configuration(Path(checkpoint))
    classes = len(weights["head/bias"]) if "head/bias" in weights else 1
    shapes = folders.shapes_of(folders.encoder(family, config, classes))
    for path in dict.fromkeys([*shapes, *weights]):
        there, here = (tree[path].shape if path in tree else None for tree in (shapes, weights))
        if there != here:
            raise ValueError(
                f"the weights are not of a model like {checkpoint}: {path} is "
                f"{here or 'not there'}, and there {there or 'not there'}; give its own checkpoint"
            )


def _configuration(family: Family, config: dict, classes: int) -> dict:
    """The checkpoint's configuration for a classifier; names of labels stay if they are as many."""
    left = {n: v for n, v in config.items() if n not in ("torch_dtype", "dtype", "num_labels")}
    if len(config.get("id2label") or ()) != classes:
        left["id2label"] = {str(i): f"LABEL_{i}" for i in range(classes)}
        left["label2id"] = {name: int(i) for i, name in left["id2label"].items()}
    return {
        **left,
        "architectures": [f"{family.model}ForSequenceClassification"],
        "dtype": "float32",
    }


def _as_theirs(path: str, weight: Any) -> np.ndarray:
    """Their kernels are [out, in]."""
    array = np.asarray(weight, np.float32)
    return np.ascontiguousarray(array.T if path.endswith("kernel") else array)
