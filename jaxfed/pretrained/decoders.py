"""Decoders from Hugging Face folders: GPT-2, and what is built like LLaMA.

    model, params = pretrained.read_decoder("SmolLM-135M")

A folder holds config.json and model.safetensors, or the latter's parts with their index.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from jaxfed import models
from jaxfed.algorithm import PyTree
from jaxfed.pretrained import files, layouts
from jaxfed.pretrained.families import as_ours
from jaxfed.pretrained.folder import shapes_of


class Kind(NamedTuple):
    """One kind of checkpoint: how it names its settings and its tensors."""

    settings: dict[str, Any]  # of the Decoder
    fields: dict[str, str]  # {our field: the configuration's}, none of which may be missing
    optional: dict[str, str]  # likewise, of those that may be missing or null
    wanted: dict[str, Any]  # settings of which no other value is supported
    activation: str  # the name of its setting
    prefix: str  # of their tensors, which a file of the bare model leaves out
    tables: dict[str, str]  # {our layer: theirs}
    blocks: str  # their name of the list of layers
    layers: dict[str, str]  # {our layer: theirs}


LLAMA_FIELDS = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feedforward": "intermediate_size",
    "positions": "max_position_embeddings",
    "epsilon": "rms_norm_eps",
}
LLAMA_LAYERS = {
    "norm_0": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "out": "self_attn.o_proj",
    "norm_1": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
PLAIN = {"attention_bias": False, "mlp_bias": False}


def _llama(wanted: Mapping[str, Any] = PLAIN, more: Mapping[str, str] | None = None, **settings):
    return Kind(
        {"kind": "llama", **settings},
        LLAMA_FIELDS,
        {"groups": "num_key_value_heads", "head_width": "head_dim", **(more or {})},
        dict(wanted),
        "hidden_act",
        "model.",
        {"token": "embed_tokens", "norm": "norm", "head": "lm_head"},
        "layers",
        LLAMA_LAYERS,
    )


KINDS = {
    "gpt2": Kind(
        {"kind": "gpt2", "bias": "all"},
        {
            "vocabulary": "vocab_size",
            "width": "n_embd",
            "depth": "n_layer",
            "heads": "n_head",
            "positions": "n_positions",
            "epsilon": "layer_norm_epsilon",
        },
        {"feedforward": "n_inner"},
        {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
        "activation_function",
        "transformer.",
        {"token": "wte", "position": "wpe", "norm": "ln_f", "head": "lm_head"},
        "h",
        {
            "norm_0": "ln_1",
            "query": "attn.query",
            "key": "attn.key",
            "value": "attn.value",
            "out": "attn.c_proj",
            "norm_1": "ln_2",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
    ),
    "llama": _llama(),
    "mistral": _llama({}, {"window": "sliding_window"}),
    "qwen2": _llama({"use_sliding_window": False}, bias="qkv"),
    "qwen3": _llama({**PLAIN, "use_sliding_window": False}, head_norms=True),
}
ACTIVATIONS: dict[str, Any] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
ACTIVATIONS |= {"relu": "relu", "silu": "silu"}


def read_decoder(
    folder: str | Path,
    *,
    dtype: DTypeLike | None = None,
    remat: bool = False,
    base: layouts.Base = "float",
) -> tuple[models.Decoder, PyTree]:
    """(model, params): the decoder that a folder describes and its weights, nested, on the host.

    The kinds are those of `KINDS`, by config.json's model_type; SmolLM and TinyLlama are "llama".
    Weights are float32, or what a model of that `dtype` keeps; `base="int8"` or "int4" stores the
    kernels inside of layers so, to be frozen. Raises ValueError for another kind
    or setting, and, listing them, for tensors that the model lacks or does not have.
    """
    folder = Path(folder).expanduser()
    kind, config = configuration(folder)
    tensors = _tensors(folder, kind)
    model = _decoder(kind, folder / "config.json", config, tensors, dtype=dtype, remat=remat)
    wanted = shapes_of(model)
    parts = {path: names(kind, path, model.depth) for path in wanted}
    _check(folder, tensors, [name for one in parts.values() for name in one])
    flat: dict[str, Any] = {}
    for path, one in parts.items():
        each = [as_ours(path, tensors[name]) for name in one]
        weight = np.stack(each) if path.startswith("layers/") else each[0]
        if weight.shape != wanted[path].shape:
            raise ValueError(
                f"{folder} does not fit its config.json: {one[0]} makes {path} {weight.shape}, "
                f"wanted is {wanted[path].shape}"
            )
        flat[path] = layouts.narrowed(path, weight, wanted[path].dtype, base)
    return model, layouts.nested(flat, base)


def names(kind: Kind, path: str, depth: int) -> list[str]:
    """Their names of the tensors that make up one of our weights: one, or one a layer."""
    layer, _, leaf = path.rpartition("/")
    end = "bias" if leaf == "bias" else "weight"
    if layer in kind.tables:
        prefix = "" if layer == "head" else kind.prefix
        return [f"{prefix}{kind.tables[layer]}.{end}"]
    theirs = kind.layers[layer.removeprefix("layers/")]
    return [f"{kind.prefix}{kind.blocks}.{i}.{theirs}.{end}" for i in range(depth)]


def name(kind: Kind, path: str) -> str:
    """Their name of a weight of one layer, "layer_3/query/kernel", or of none."""
    number, _, rest = path.removeprefix("layer_").partition("/")
    if not path.startswith("layer_"):
        return names(kind, path, 1)[0]
    return names(kind, f"layers/{rest}", int(number) + 1)[-1]


def is_decoder(folder: str | Path) -> bool:
    """Whether a folder holds one of `KINDS`."""
    kind = files.json_object(files.find(Path(folder), "config.json")).get("model_type")
    return isinstance(kind, str) and kind in KINDS


def together(kind: Kind, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Tensors as files have them: GPT-2's queries, keys and values as one, matrices [in, out]."""
    if kind.settings["kind"] != "gpt2":
        return dict(tensors)
    found: dict[str, np.ndarray] = {}
    for theirs, x in tensors.items():
        if ".attn.query." in theirs:
            parts = [tensors[theirs.replace("query", n)] for n in ("query", "key", "value")]
            theirs, x = theirs.replace("query", "c_attn"), np.concatenate(parts)
        if ".attn.key." not in theirs and ".attn.value." not in theirs:
            found[theirs] = x.T if ".c_" in theirs and x.ndim == 2 else x
    return found


def configuration(folder: Path) -> tuple[Kind, dict]:
    path = files.find(folder, "config.json")
    config = files.json_object(path)
    name = config.get("model_type")
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"{folder} holds a {name!r} model; decoders are {', '.join(KINDS)}")
    kind = KINDS[name]
    if wrong := {k: config[k] for k, v in kind.wanted.items() if config.get(k, v) != v}:
        raise ValueError(f"{folder} has {wrong}; supported is {kind.wanted}")
    given = [n for n in kind.optional.values() if config.get(n) is not None]
    if missing := [n for n in kind.fields.values() if config.get(n) is None]:
        raise ValueError(f"{path} does not say {', '.join(missing)}; download it again")
    real = kind.fields["epsilon"]
    files.check_numbers(path, config, [*kind.fields.values(), *given], zero=(), real=real)
    if config.get(kind.activation) not in tuple(ACTIVATIONS):
        raise ValueError(
            f"{folder} has {kind.activation}={config.get(kind.activation)!r}; supported are "
            + ", ".join(ACTIVATIONS)
        )
    return kind, config


def _decoder(kind: Kind, path: Path, config: dict, tensors: Mapping, **options) -> models.Decoder:
    optional: dict[str, Any] = {ours: config.get(theirs) for ours, theirs in kind.optional.items()}
    if kind.settings["kind"] == "gpt2":
        optional["feedforward"] = optional["feedforward"] or 4 * config["n_embd"]
    else:
        optional |= _rotary(path, config)
    tied = config.get("tie_word_embeddings", "lm_head.weight" not in tensors)
    return models.Decoder(
        **{ours: config[theirs] for ours, theirs in kind.fields.items()},
        **optional,
        **kind.settings,
        activation=ACTIVATIONS[config[kind.activation]],
        tied=tied,
        **options,
    )


def _rotary(path: Path, config: dict) -> dict[str, Any]:
    """Rotary settings, as transformers 5 groups them or as older files have them."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ValueError(f"{path} has rotary settings {given!r}; give an object of them")
    base = given.get("rope_theta", config.get("rope_theta", 10000.0))
    _check_real(path, "rope_theta", base)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise ValueError(f"rotary positions are of type {kind!r}; supported are default and llama3")
    if kind == "default":
        return {"rotary_base": float(base)}
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    for name in names:
        _check_real(path, name, given.get(name))
    scaling = models.Scaling(*(given[name] for name in names))
    return {"rotary_base": float(base), "rotary_scaling": scaling}


def _check_real(path: Path, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{path} has {name}={value!r}; give a number above 0")


def _tensors(folder: Path, kind: Kind) -> dict[str, np.ndarray]:
    """{name: tensor}, named and laid out as by LLaMA: a matrix [out, in] for each layer."""
    found = files.load_all(folder)
    if not any(name.startswith(kind.prefix) for name in found):
        found = {n if n == "lm_head.weight" else kind.prefix + n: x for n, x in found.items()}
    return apart(kind, found)


def apart(kind: Kind, tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `together`: GPT-2's queries, keys and values apart, matrices as [out, in].

    Its files hold [in, out], and old ones the masks of attention as well.
    """
    if kind.settings["kind"] != "gpt2":
        return dict(tensors)
    found: dict[str, np.ndarray] = {}
    for name, x in tensors.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):
            continue
        of_layer = ".c_" in name
        x = x.T if of_layer and x.ndim == 2 else x
        if ".c_attn." in name:
            for part, third in zip(("query", "key", "value"), np.split(x, 3), strict=True):
                found[name.replace("c_attn", part)] = third
        else:
            found[name] = x
    return found


def _check(folder: Path, tensors: Mapping[str, Any], wanted: list[str]) -> None:
    if lost := [name for name in wanted if name not in tensors]:
        raise ValueError(f"{folder} lacks {', '.join(lost)}; download it again")
    spare = ("lm_head.weight", "rotary_emb.inv_freq")
    left = [n for n in tensors if n not in set(wanted) and not n.endswith(spare)]
    if left:
        raise ValueError(f"{folder} has tensors that its config.json does not: {', '.join(left)}")
