"""Encoders from Hugging Face folders, and adapters back in PEFT's format.

    model, params = pretrained.read("roberta-base", classes=2)
    tokenizer = pretrained.tokenizer("roberta-base")

A folder holds config.json, tokenizer.json, and model.safetensors or pytorch_model.bin, whole or in
parts. The kinds are those of `families.FAMILIES`, by config.json's model_type.
"""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from jaxfed import models, trees, values
from jaxfed.algorithm import PyTree
from jaxfed.pretrained import files, layouts
from jaxfed.pretrained.families import (
    ACTIVATIONS,
    FAMILIES,
    Family,
    as_ours,
    layer_of,
    relative,
    tensor_name,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Account(NamedTuple):
    """What became of each tensor of a folder's file, and what the file does not have."""

    found: dict[str, str]  # {our path: the tensor's name}
    spare: list[str]  # tensors left out: other heads, and tables of position numbers
    absent: list[str]  # our paths of a head that is still to be drawn


def read(
    folder: str | Path,
    classes: int = 2,
    *,
    dropout: float = 0.0,
    dtype: DTypeLike | None = None,
    scanned: bool = False,
    head: Literal["kept", "fresh"] = "kept",
    base: layouts.Base = "float",
) -> tuple[models.Encoder, PyTree]:
    """(model, params): the encoder that a folder describes and its weights, nested, on the host.

    They are float32, or what a model of that `dtype` keeps; `scanned=True` stacks them, as the
    Encoder does. `base="int8"` or "int4" stores the kernels inside of layers so, to be frozen. A
    checkpoint without a classifier gives params without `head` (and without `head_dense` or
    `pooler`, if it has none); fill them in from the model's own `init`. With `head="fresh"` the
    file's last layer, which may have other labels, is left out as well. Nothing else may be
    missing, and nothing may be left over but what `account` calls spare. Raises ValueError, listing
    the tensors, if they are not the model's, and for a configuration that the Encoder does not
    cover.
    """
    values.choice("head", head, ("kept", "fresh"))
    family, config = configuration(Path(folder))
    model = encoder(family, config, classes, dropout=dropout, dtype=dtype)
    tensors, wanted = tensors_in(Path(folder), family), shapes_of(model)
    if head == "fresh":
        last = f"{family.head['head']}."
        tensors = {name: t for name, t in tensors.items() if not name.startswith(last)}
    flat: dict[str, Any] = {
        path: layouts.narrowed(path, as_ours(path, tensors[name]), wanted[path].dtype, base)
        for path, name in _account(family, model, tensors, folder).found.items()
    }
    flat = layouts.scanned(flat) if scanned else flat
    return model.clone(scanned=scanned), layouts.nested(flat, base)


def account(folder: str | Path, classes: int = 2) -> Account:
    """What `read` does with each tensor of the folder's file; the same errors."""
    family, config = configuration(Path(folder))
    model = encoder(family, config, classes)
    return _account(family, model, tensors_in(Path(folder), family), folder)


def tokenizer(folder: str | Path) -> "Tokenizer":
    """The folder's tokenizer.json, neither padding nor truncating: that is the data's business."""
    path = files.find(Path(folder), "tokenizer.json")
    tokenizers = values.package("tokenizers", "text", path)
    try:
        loaded = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the type that tokenizers raises for all that it cannot read
        raise files.unreadable(path, error) from None
    loaded.no_padding()
    loaded.no_truncation()
    return loaded


def configuration(folder: Path) -> tuple[Family, dict]:
    path = files.find(folder, "config.json")
    config = files.json_object(path)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(
            f"{folder} holds a {kind!r} model; supported are {', '.join(FAMILIES)}; read_decoder "
            "reads decoders, and read_vit vision transformers"
        )
    family = FAMILIES[kind]
    wanted = dict(family.wanted)
    if wrong := {k: config[k] for k, v in wanted.items() if config.get(k, v) != v}:
        raise ValueError(f"{folder} has {wrong}; supported is {wanted}")
    numbers, activation = family.fields.values(), family.activation
    if missing := {*numbers, activation} - {k for k, v in config.items() if v is not None}:
        raise ValueError(f"{folder}/config.json does not say {', '.join(sorted(missing))}")
    zero = ("pad_token_id", *(["type_vocab_size"] if kind == "deberta-v2" else []))
    files.check_numbers(path, config, numbers, zero=zero, real="layer_norm_eps")
    if config[activation] not in tuple(ACTIVATIONS):
        raise ValueError(
            f"{folder} has {activation}={config[activation]!r}; supported are "
            + ", ".join(ACTIVATIONS)
        )
    if config.get("embedding_size", config.get("hidden_size")) != config.get("hidden_size") and (
        "embedding" not in family.fields
    ):
        raise ValueError(f"{folder} has tables of another width; supported is that of its layers")
    if kind == "deberta-v2":
        relative(str(path), config)
    return family, config


def encoder(family: Family, config: dict, classes: int, **options) -> models.Encoder:
    """The model that a configuration describes, with a head of so many classes."""
    if config.get("embedding_size") == config.get("hidden_size"):
        options["embedding"] = None
    if family.name == "deberta":
        options["relative"] = relative("config.json", config)
    return models.Encoder(
        **{
            **{ours: config[theirs] for ours, theirs in family.fields.items()},
            **family.settings,
            "classes": classes,
            "activation": ACTIVATIONS[config[family.activation]],
            **options,
        }
    )


def tensors_in(folder: Path, family: Family) -> dict[str, np.ndarray]:
    """{name: tensor}, named as a classifier of that family names them.

    A file of the bare encoder leaves the family's name out; old files call a norm's scale gamma.
    """
    loaded = files.load_all(folder)
    bare = not any(name.startswith(f"{family.name}.") for name in loaded)
    renamed = {}
    for name, tensor in loaded.items():
        if bare and re.match(r"(embeddings|embeddings_project|encoder|transformer|pooler)\.", name):
            name = f"{family.name}.{name}"
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        renamed[re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)] = tensor
    return renamed


def _account(
    family: Family, model: models.Encoder, tensors: Mapping[str, np.ndarray], folder: str | Path
) -> Account:
    shapes = shapes_of(model)
    names = {path: tensor_name(family, path) for path in shapes}
    return matched(
        folder,
        family.name,
        tensors,
        shapes,
        names,
        head=family.head,
        spare=family.spare,
        as_ours=as_ours,
    )


def matched(
    folder: str | Path,
    kind: str,
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, Any],
    names: Mapping[str, str],
    *,
    head: Collection[str],
    spare: str,
    as_ours: Callable[[str, np.ndarray], np.ndarray],
) -> Account:
    """What becomes of the tensors of a classifier whose weights have these shapes and names.

    Its last layer, or all layers of the `head`, may be absent; a regular expression tells which
    tensors are `spare`; as_ours(path, tensor) is the weight. ValueError, listing the tensors, if
    others are absent or left over, or have another shape.
    """
    found = {path: name for path, name in names.items() if name in tensors}
    left = [name for name in tensors if re.search(spare, name)]
    absent = [path for path in names if path not in found]
    drawable = [path for path in names if layer_of(path) in head]
    if absent not in ([], [path for path in drawable if layer_of(path) == "head"], drawable):
        lost = [path for path in absent if path not in drawable] or absent
        raise ValueError(f"{folder} lacks {', '.join(names[path] for path in lost)}")
    if unexpected := sorted(set(tensors) - set(found.values()) - set(left)):
        raise ValueError(
            f"{folder} has tensors that a {kind} classifier does not: {', '.join(unexpected)}"
        )
    has = {path: as_ours(path, tensors[name]).shape for path, name in found.items()}
    if wrong := [path for path in found if has[path] != shapes[path].shape]:
        raise ValueError(
            f"{folder} does not fit its config.json or classes={shapes['head/bias'].shape[0]}: "
            + ", ".join(f"{names[p]} gives {has[p]}, wanted is {shapes[p].shape}" for p in wrong)
        )
    return Account(found, left, absent)


def shapes_of(model: models.Encoder | models.Decoder) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: shape and type} of a text model's weights."""
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return trees.by_path(params)
