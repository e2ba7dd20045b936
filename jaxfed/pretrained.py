"""Encoders from Hugging Face folders, and adapters back in PEFT's format.

    model, params = pretrained.read("roberta-base", classes=2)
    tokenizer = pretrained.tokenizer("roberta-base")

A folder holds config.json, model.safetensors and tokenizer.json, as BERT's and RoBERTa's do.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tokenizers
from jax.typing import DTypeLike

from jaxfed import lowrank, models
from jaxfed.algorithm import PyTree


class Family(NamedTuple):
    """What sets one kind of checkpoint apart from the others."""

    name: str
    settings: Mapping[str, Any]  # of the Encoder
    head: Mapping[str, str]  # {our layer: theirs}; these a checkpoint need not have
    spare: str  # regular expression: their tensors that a classifier does not need


FAMILIES = {
    "bert": Family(
        "bert",
        {"head": "pooler"},
        {"pooler": "bert.pooler.dense", "head": "classifier"},
        r"^cls\.|^bert\.embeddings\.position_ids$",
    ),
    "roberta": Family(
        "roberta",
        {"head": "dense", "counted": True},
        {"head_dense": "classifier.dense", "head": "classifier.out_proj"},
        r"^lm_head\.|^roberta\.pooler\.|^roberta\.embeddings\.position_ids$",
    ),
}

# {our layer: theirs}; the last eight in every layer.
EMBEDDINGS = {
    "token": "word_embeddings",
    "position": "position_embeddings",
    "type": "token_type_embeddings",
    "norm": "LayerNorm",
}
LAYERS = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "norm_0": "attention.output.LayerNorm",
    "up": "intermediate.dense",
    "down": "output.dense",
    "norm_1": "output.LayerNorm",
}

# {our field: the configuration's}
FIELDS = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feedforward": "intermediate_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
    "pad": "pad_token_id",
    "epsilon": "layer_norm_eps",
}
ACTIVATIONS: dict[str, Literal["gelu", "gelu_tanh", "relu"]] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


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
) -> tuple[models.Encoder, PyTree]:
    """(model, params): the encoder that a folder describes and its weights, nested, on the host.

    They are float32, or what a model of that `dtype` keeps. A checkpoint without a classifier gives
    params without `head` (and without `head_dense` or `pooler`, if it has none); fill them in from
    the model's own `init`. Nothing else may be missing, and nothing may be left over but what
    `account` calls spare. Raises ValueError, listing the tensors, if they are not the model's, and
    for a configuration that the Encoder does not cover.
    """
    family, config = _configuration(Path(folder))
    model = _encoder(family, config, classes, dropout=dropout, dtype=dtype)
    tensors, wanted = _tensors(Path(folder), family), _shapes(model)
    flat: dict[str, Any] = {
        path: _ours(path, tensors[name]).astype(wanted[path].dtype)
        for path, name in _account(family, model, tensors, folder).found.items()
    }
    return model, lowrank.merged(flat, lowrank.Theta({}, {}))


def account(folder: str | Path, classes: int = 2) -> Account:
    """What `read` does with each tensor of the folder's file; the same errors."""
    family, config = _configuration(Path(folder))
    model = _encoder(family, config, classes)
    return _account(family, model, _tensors(Path(folder), family), folder)


def tokenizer(folder: str | Path) -> tokenizers.Tokenizer:
    """The folder's tokenizer.json, neither padding nor truncating: that is the data's business."""
    path = _file(Path(folder), "tokenizer.json")
    loaded = tokenizers.Tokenizer.from_file(str(path))
    loaded.no_padding()
    loaded.no_truncation()
    return loaded


def _file(folder: Path, name: str) -> Path:
    if not (path := folder / name).is_file():
        there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "nothing"
        raise ValueError(f"{folder} has no {name}; it has {there}")
    return path


def _configuration(folder: Path) -> tuple[Family, dict]:
    config = json.loads(_file(folder, "config.json").read_text())
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise ValueError(f"{folder} holds a {kind!r} model; supported are {', '.join(FAMILIES)}")
    wanted = {"position_embedding_type": "absolute", "is_decoder": False}
    if wrong := {k: config[k] for k, v in wanted.items() if config.get(k, v) != v}:
        raise ValueError(f"{folder} has {wrong}; supported is {wanted}")
    if missing := {*FIELDS.values(), "hidden_act"} - {
        k for k, v in config.items() if v is not None
    }:
        raise ValueError(f"{folder}/config.json does not say {', '.join(sorted(missing))}")
    if config["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"{folder} has hidden_act={config['hidden_act']!r}; supported are "
            + ", ".join(ACTIVATIONS)
        )
    return FAMILIES[kind], config


def _encoder(family: Family, config: dict, classes: int, **options) -> models.Encoder:
    return models.Encoder(
        **{ours: config[theirs] for ours, theirs in FIELDS.items()},
        **family.settings,
        classes=classes,
        activation=ACTIVATIONS[config["hidden_act"]],
        **options,
    )


def _tensors(folder: Path, family: Family) -> dict[str, np.ndarray]:
    """{name: tensor}, named as a classifier of that family names them.

    A file of the bare encoder leaves the family's name out; old files call a norm's scale gamma.
    """
    loaded = safetensors.numpy.load_file(_file(folder, "model.safetensors"))
    renamed = {}
    for name, tensor in loaded.items():
        name = re.sub(r"^(?=(embeddings|encoder|pooler)\.)", f"{family.name}.", name)
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        renamed[re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)] = tensor
    return renamed


def _layer(family: Family, ours: str) -> str:
    """Their name of one of our layers: "layer_0/query" -> "bert.encoder.layer.0.attention...."""
    if ours in family.head:
        return family.head[ours]
    if ours in EMBEDDINGS:
        return f"{family.name}.embeddings.{EMBEDDINGS[ours]}"
    number, _, name = ours.removeprefix("layer_").partition("/")
    return f"{family.name}.encoder.layer.{number}.{LAYERS[name]}"


def _layer_of(path: str) -> str:
    return path.rpartition("/")[0]


def _tensor(family: Family, path: str) -> str:
    return f"{_layer(family, _layer_of(path))}.{'bias' if path.endswith('bias') else 'weight'}"


def _ours(path: str, tensor: np.ndarray) -> np.ndarray:
    """Their kernels are [out, in]."""
    return np.asarray(tensor.T if path.endswith("kernel") else tensor, np.float32)


def _account(
    family: Family, model: models.Encoder, tensors: Mapping[str, np.ndarray], folder: str | Path
) -> Account:
    shapes = _shapes(model)
    names = {path: _tensor(family, path) for path in shapes}
    found = {path: name for path, name in names.items() if name in tensors}
    spare = [name for name in tensors if re.search(family.spare, name)]
    absent = [path for path in names if path not in found]
    drawable = [path for path in names if _layer_of(path) in family.head]
    if absent not in ([], [path for path in drawable if _layer_of(path) == "head"], drawable):
        lost = [path for path in absent if path not in drawable] or absent
        raise ValueError(
            f"{folder}/model.safetensors lacks {', '.join(names[path] for path in lost)}"
        )
    if unexpected := sorted(set(tensors) - set(found.values()) - set(spare)):
        raise ValueError(
            f"{folder}/model.safetensors has tensors that a {family.name} classifier does not: "
            + ", ".join(unexpected)
        )
    has = {path: _ours(path, tensors[name]).shape for path, name in found.items()}
    if wrong := [path for path in found if has[path] != shapes[path].shape]:
        raise ValueError(
            f"{folder}/model.safetensors does not fit its config.json or classes={model.classes}: "
            + ", ".join(f"{names[p]} gives {has[p]}, wanted is {shapes[p].shape}" for p in wrong)
        )
    return Account(found, spare, absent)


def _shapes(model: models.Encoder) -> dict[str, jax.ShapeDtypeStruct]:
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def write_adapters(
    folder: str | Path,
    checkpoint: str | Path,
    base: Mapping[str, jax.Array],
    thetas: Mapping[str, lowrank.Theta],
) -> None:
    """Writes folder/<name>/ for each theta, as PEFT's LoRA adapters beside `checkpoint`.

    adapter_model.safetensors has each factor transposed, and each layer of which theta trains a
    weight, whole; the classifier is always among them. adapter_config.json has rank r and alpha =
    s r, for a layer of another rank or scale in patterns. Load them with

        peft.PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(
            checkpoint, num_labels=classes), folder / name)

    A common adapter, a personal one and the two `joined` are three thetas. Raises ValueError if the
    base is no longer the checkpoint's (then no adapter of these factors is the model), or if the
    factors are at a weight where PEFT's have another form.
    """
    family, _ = _configuration(Path(checkpoint))
    tensors = _tensors(Path(checkpoint), family)
    _check_base(family, tensors, base, checkpoint)
    for name, theta in thetas.items():
        _write_adapter(Path(folder) / name, checkpoint, family, base, theta)


def _check_base(
    family: Family, tensors: Mapping[str, np.ndarray], base: Mapping[str, jax.Array], checkpoint
) -> None:
    changed = []
    for path, weight in base.items():
        if _layer_of(path) in family.head and _tensor(family, path) not in tensors:
            continue  # drawn, not read
        theirs = _ours(path, tensors[_tensor(family, path)]).astype(weight.dtype)
        if not np.array_equal(theirs, weight):
            changed.append(path)
    if changed:
        raise ValueError(
            f"the base is not {checkpoint}'s any more at {', '.join(changed)}: something was "
            "merged into it, so an adapter alone is not the model"
        )


def _write_adapter(
    folder: Path,
    checkpoint: str | Path,
    family: Family,
    base: Mapping[str, jax.Array],
    theta: lowrank.Theta,
) -> None:
    classifier = {ours for ours, theirs in family.head.items() if theirs.startswith("classifier")}
    whole = classifier | {_layer_of(path) for path in theta.full}
    adapted = {_layer_of(path): f for path, f in theta.factors.items() if path.endswith("kernel")}
    if not adapted or len(adapted) < len(theta.factors) or whole & set(adapted):
        raise ValueError(
            f"factors at {', '.join(theta.factors) or 'no path'}: PEFT's format holds those of "
            "dense layers of which nothing is trained whole; select others for this"
        )
    tensors = {
        _tensor(family, path): weight.T if path.endswith("kernel") else weight
        for path, weight in {**base, **theta.full}.items()
        if _layer_of(path) in whole
    }
    for layer, f in adapted.items():
        tensors[f"{_layer(family, layer)}.lora_A.weight"] = f.a.T  # [r, in]
        tensors[f"{_layer(family, layer)}.lora_B.weight"] = f.b.T  # [out, r]
    folder.mkdir(parents=True, exist_ok=True)
    config = _adapter_config(family, checkpoint, adapted, whole - classifier)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    safetensors.numpy.save_file(
        {f"base_model.model.{n}": np.ascontiguousarray(t, np.float32) for n, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )


def _adapter_config(
    family: Family, checkpoint: str | Path, adapted: Mapping[str, lowrank.Factors], whole: set[str]
) -> dict[str, Any]:
    rank = {_layer(family, layer): f.rank for layer, f in adapted.items()}
    alpha = {_layer(family, layer): f.scale * f.rank for layer, f in adapted.items()}
    r, lora_alpha = (next(iter(of.values())) for of in (rank, alpha))
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": str(checkpoint),
        "r": r,
        "lora_alpha": lora_alpha,
        "rank_pattern": {re.escape(n): mine for n, mine in rank.items() if mine != r},
        "alpha_pattern": {re.escape(n): mine for n, mine in alpha.items() if mine != lora_alpha},
        "target_modules": list(rank),
        "modules_to_save": ["classifier", *sorted(_layer(family, layer) for layer in whole)],
        "inference_mode": True,
    }
