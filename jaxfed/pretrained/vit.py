"""Vision transformers from Hugging Face folders (ViTForImageClassification), and back.

    model, params = pretrained.read_vit("vit-base-patch16-224", classes=10, head="fresh")

A folder holds config.json, and model.safetensors or pytorch_model.bin, whole or in parts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import models, trees, values
from jaxfed.algorithm import PyTree
from jaxfed.pretrained import files, layouts
from jaxfed.pretrained import folder as folders

MODEL = "ViTForImageClassification"
TABLES = {"first": "cls_token", "position": "position_embeddings"}
OUTSIDE = {
    "patches": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "head": "classifier",
}
LAYERS = {
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "norm_0": "layernorm_before",
    "norm_1": "layernorm_after",
    "up": "intermediate.dense",
    "down": "output.dense",
}
SPARE = r"^vit\.pooler\.|^vit\.embeddings\.mask_token$|^decoder\."  # other heads
FIELDS = {
    "patch": "patch_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feedforward": "intermediate_size",
    "epsilon": "layer_norm_eps",
}
WANTED = {"model_type": "vit", "hidden_act": "gelu", "qkv_bias": True}


def read_vit(
    folder: str | Path,
    classes: int,
    *,
    scanned: bool = False,
    head: Literal["kept", "fresh"] = "kept",
) -> tuple[models.ViT, PyTree]:
    """(model, params): the vision transformer of a folder and its weights, nested, in float32.

    Images have the size that config.json names, and whatever scale the checkpoint was trained on.
    `scanned=True` stacks the layers, as ViT does. A checkpoint without a classifier gives params
    without `head`; fill it in from the model's own `init`. With `head="fresh"` the file's, which
    may have other labels, is left out. ValueError, listing the tensors, if they are not the
    model's, and for a configuration that ViT does not cover.
    """
    values.choice("head", head, ("kept", "fresh"))
    config = configuration(folder)
    model = vit(config, classes)
    shapes, tensors = shapes_of(model, config), _tensors(Path(folder), head)
    names = {path: tensor_name(path) for path in shapes}
    account = folders.matched(
        folder, "vit", tensors, shapes, names, head=("head",), spare=SPARE, as_ours=_as_ours
    )
    flat = {path: _as_ours(path, tensors[name]) for path, name in account.found.items()}
    flat = layouts.stacked(flat) if scanned else flat
    return model.clone(scanned=scanned), layouts.nested(flat, "float")


def is_vit(folder: str | Path) -> bool:
    """Whether a folder holds a vision transformer."""
    config = files.json_object(files.find(Path(folder), "config.json"))
    return config.get("model_type") == "vit"


def configuration(folder: str | Path) -> dict[str, Any]:
    """The folder's config.json; ValueError for one that ViT does not cover."""
    path = files.find(Path(folder), "config.json")
    config = files.json_object(path)
    default = {"qkv_bias": True, "num_channels": 3}
    if missing := {*WANTED, *FIELDS.values(), "image_size"} - {*config, *default}:
        raise ValueError(f"{path} does not say {', '.join(sorted(missing))}")
    config = {**default, **config}
    if wrong := {name: config[name] for name, v in WANTED.items() if config[name] != v}:
        raise ValueError(f"{path} has {wrong}; supported is {WANTED}")
    numbers = (*FIELDS.values(), "num_channels")
    files.check_numbers(path, config, numbers, zero=(), real="layer_norm_eps")
    sizes = _image_size(config)
    if len(sizes) != 2 or any(type(n) is not int or n % config["patch_size"] for n in sizes):
        raise ValueError(
            f"{path} has image_size={config['image_size']!r}; give a height and a width that "
            f"patch_size={config['patch_size']} divides"
        )
    return config


def vit(config: Mapping[str, Any], classes: int) -> models.ViT:
    """The model that a configuration describes, with a head of so many classes."""
    return models.ViT(**{ours: config[theirs] for ours, theirs in FIELDS.items()}, classes=classes)


def shapes_of(model: models.ViT, config: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: shape and type} of the model's weights."""
    images = jnp.zeros((1, *_image_size(config), config["num_channels"]))
    return trees.by_path(jax.eval_shape(model.init, jax.random.key(0), images)["params"])


def tensor_name(path: str) -> str:
    """Their name of one of our weights: "layer_0/query/kernel", as layers lie one by one."""
    if path in TABLES:
        return f"vit.embeddings.{TABLES[path]}"
    layer, _, kind = path.rpartition("/")
    end = "bias" if kind == "bias" else "weight"
    if layer in OUTSIDE:
        return f"{OUTSIDE[layer]}.{end}"
    number, _, name = layer.removeprefix("layer_").partition("/")
    return f"vit.encoder.layer.{number}.{LAYERS[name]}.{end}"


def as_theirs(path: str, weight: Any) -> np.ndarray:
    """Their kernels are [out, in], those of patches [out, in, height, width]."""
    array = np.asarray(weight, np.float32)
    if path in TABLES:
        return array.reshape(1, -1, array.shape[-1])
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _as_ours(path: str, tensor: np.ndarray) -> np.ndarray:
    array = np.asarray(tensor, np.float32)
    if path in TABLES:
        return array[0, 0] if path == "first" else array[0]
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def _tensors(folder: Path, head: str) -> dict[str, np.ndarray]:
    """{name: tensor} of the folder; a file of the bare model leaves `vit.` out."""
    loaded = files.load_all(folder)
    if not any(name.startswith("vit.") for name in loaded):
        loaded = {
            name if name.startswith("classifier.") else f"vit.{name}": x
            for name, x in loaded.items()
        }
    return {n: x for n, x in loaded.items() if head == "kept" or not n.startswith("classifier.")}


def _image_size(config: Mapping[str, Any]) -> tuple[Any, ...]:
    """(height, width)"""
    size = config["image_size"]
    return tuple(size) if isinstance(size, list) else (size, size)
