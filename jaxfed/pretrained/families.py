"""The kinds of checkpoints, as tables of names: what Hugging Face calls a layer, and what we do."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxfed import models

# {our layer: theirs}; the last eight in every layer.
EMBEDDINGS = {
    "token": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "type": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
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


WANTED = {"position_embedding_type": "absolute", "is_decoder": False}


class Family(NamedTuple):
    """What sets one kind of checkpoint apart from the others."""

    name: str  # of the encoder among their tensors
    model: str  # "Bert" of BertForSequenceClassification
    settings: Mapping[str, Any]  # of the Encoder
    head: Mapping[str, str]  # {our layer: theirs}; these a checkpoint need not have
    spare: str  # regular expression: their tensors that a classifier does not need
    fields: Mapping[str, str] = FIELDS
    tables: Mapping[str, str] = EMBEDDINGS
    blocks: str = "encoder.layer"
    layers: Mapping[str, str] = LAYERS
    activation: str = "hidden_act"  # the name of its setting
    wanted: Mapping[str, Any] = WANTED  # settings of which no other value is supported


def _roberta(model: str) -> Family:
    return Family(
        "roberta",
        model,
        {"head": "dense", "counted": True},
        {"head_dense": "classifier.dense", "head": "classifier.out_proj"},
        r"^lm_head\.|^roberta\.pooler\.|^roberta\.embeddings\.position_ids$",
    )


FAMILIES = {
    "bert": Family(
        "bert",
        "Bert",
        {"head": "pooler"},
        {"pooler": "bert.pooler.dense", "head": "classifier"},
        r"^cls\.|^bert\.embeddings\.position_ids$",
    ),
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
    "camembert": _roberta("Camembert"),
    "distilbert": Family(
        "distilbert",
        "DistilBert",
        {"head": "dense", "head_activation": "relu", "types": 0, "epsilon": 1e-12},
        {"head_dense": "pre_classifier", "head": "classifier"},
        r"^vocab_(transform|layer_norm|projector)\.",
        fields={
            "vocabulary": "vocab_size",
            "width": "dim",
            "depth": "n_layers",
            "heads": "n_heads",
            "feedforward": "hidden_dim",
            "positions": "max_position_embeddings",
            "pad": "pad_token_id",
        },
        blocks="transformer.layer",
        layers={
            "query": "attention.q_lin",
            "key": "attention.k_lin",
            "value": "attention.v_lin",
            "out": "attention.out_lin",
            "norm_0": "sa_layer_norm",
            "up": "ffn.lin1",
            "down": "ffn.lin2",
            "norm_1": "output_layer_norm",
        },
        activation="activation",
    ),
    "electra": Family(
        "electra",
        "Electra",
        {"head": "dense", "head_activation": "gelu"},
        {"head_dense": "classifier.dense", "head": "classifier.out_proj"},
        r"^(generator|discriminator)_(predictions|lm_head)\.|^electra\.embeddings\.position_ids$",
        fields={**FIELDS, "embedding": "embedding_size"},
        tables={**EMBEDDINGS, "project": "embeddings_project"},
    ),
    "deberta-v2": Family(
        "deberta",
        "DebertaV2",
        {"head": "dense", "head_activation": "gelu"},
        {"head_dense": "pooler.dense", "head": "classifier"},
        r"^(lm_predictions|cls|mask_predictions)\.|^deberta\.embeddings\.position_",
        tables={
            **EMBEDDINGS,
            "relative": "encoder.rel_embeddings",
            "relative_norm": "encoder.LayerNorm",
        },
        layers={
            **LAYERS,
            "query": "attention.self.query_proj",
            "key": "attention.self.key_proj",
            "value": "attention.self.value_proj",
            "place_key": "attention.self.pos_key_proj",
            "place_query": "attention.self.pos_query_proj",
        },
        wanted={
            "relative_attention": True,
            "position_biased_input": False,
            "pooler_hidden_act": "gelu",
            "conv_kernel_size": 0,
        },
    ),
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
    if ours in family.tables:
        return f"{family.name}.{family.tables[ours]}"
    number, _, name = ours.removeprefix("layer_").partition("/")
    return f"{family.name}.{family.blocks}.{number}.{family.layers[name]}"


def relative(path: str, config: Mapping[str, Any]) -> models.Relative:
    """The relative positions that DeBERTa's configuration describes; ValueError if it cannot."""
    kinds = config.get("pos_att_type") or []
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    norms = str(config.get("norm_rel_ebd", "none")).lower()
    buckets, farthest = (config.get(n, -1) for n in ("position_buckets", "max_relative_positions"))
    farthest = config["max_position_embeddings"] if farthest == -1 else farthest
    if not {"c2p", "p2c"} >= {*kinds} or norms not in ("none", "layer_norm"):
        raise ValueError(
            f"{path} has pos_att_type={kinds} and norm_rel_ebd={norms!r}; supported are c2p and "
            "p2c, and none or layer_norm"
        )
    if not all(type(n) is int and (n == -1 or n > 1) for n in (buckets, farthest)):
        raise ValueError(f"{path} has position_buckets={buckets!r}; give a number from 2 on, or -1")
    shared = config.get("share_att_key", False) is True
    return models.Relative(buckets, farthest, tuple(sorted(kinds)), shared, norms == "layer_norm")


def layer_of(path: str) -> str:
    return path.rpartition("/")[0]


def tensor_name(family: Family, path: str) -> str:
    return f"{layer_name(family, layer_of(path))}.{'bias' if path.endswith('bias') else 'weight'}"


def as_ours(path: str, tensor: np.ndarray) -> np.ndarray:
    """Their kernels are [out, in]."""
    return np.asarray(tensor.T if path.endswith("kernel") else tensor, np.float32)
