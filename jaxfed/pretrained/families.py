"""The kinds of checkpoints, as tables of names: what Hugging Face calls a layer, and what we do."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np


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


def layer_name(family: Family, ours: str) -> str:
    """Their name of one of our layers: "layer_0/query" -> "bert.encoder.layer.0.attention...."""
    if ours in family.head:
        return family.head[ours]
    if ours in EMBEDDINGS:
        return f"{family.name}.embeddings.{EMBEDDINGS[ours]}"
    number, _, name = ours.removeprefix("layer_").partition("/")
    return f"{family.name}.encoder.layer.{number}.{LAYERS[name]}"


def layer_of(path: str) -> str:
    return path.rpartition("/")[0]


def tensor_name(family: Family, path: str) -> str:
    return f"{layer_name(family, layer_of(path))}.{'bias' if path.endswith('bias') else 'weight'}"


def as_ours(path: str, tensor: np.ndarray) -> np.ndarray:
    """Their kernels are [out, in]."""
    return np.asarray(tensor.T if path.endswith("kernel") else tensor, np.float32)
