"""Adapters in PEFT's format."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxfed import lowrank
from jaxfed.pretrained import files, layouts
from jaxfed.pretrained.families import Family, as_ours, layer_name, layer_of, tensor_name
from jaxfed.pretrained.folder import configuration, encoder, shapes_of, tensors_in


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
    if wrong := [name for name in thetas if not re.fullmatch(r"\w[\w.\- ]*", name)]:
        raise ValueError(
            f"an adapter is called {wrong[0]!r}, which is no name of a folder in {folder}; use "
            "letters, digits, spaces and . _ - only, a letter or digit first"
        )
    family, _ = configuration(Path(checkpoint))
    tensors = tensors_in(Path(checkpoint), family)
    base = layouts.unrolled(base)
    _check_base(family, tensors, base, checkpoint)
    for name, stacked in thetas.items():
        theta = lowrank.Theta(layouts.unrolled(stacked.full), layouts.unrolled(stacked.factors))
        _write_adapter(Path(folder).expanduser() / name, checkpoint, family, tensors, base, theta)


PLAIN = {"peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False}


def read_adapter(folder: str | Path, checkpoint: str | Path) -> lowrank.Theta:
    """The factors, and the layers trained whole, of one of PEFT's LoRA adapters beside an encoder.

    They are for `lowrank.apply` beside the checkpoint's weights, layer by layer. Raises ValueError
    for another kind of adapter, and, by name, for tensors that such a model does not have.
    """
    folder, (family, config) = Path(folder).expanduser(), configuration(Path(checkpoint))
    path = files.find(folder, "adapter_config.json")
    asked = files.json_object(path)
    if wrong := {k: asked.get(k, v) for k, v in PLAIN.items() if asked.get(k, v) != v}:
        raise ValueError(f"{path} has {wrong}; supported is {PLAIN}")
    loaded = files.load(files.find(folder, "adapter_model.safetensors"))
    tensors = {name.removeprefix("base_model.model."): x for name, x in loaded.items()}
    paths = {tensor_name(family, p): p for p in shapes_of(encoder(family, config, 1))}
    full, factors, left = {}, {}, set(tensors)
    for name, p in paths.items():
        layer = name.removesuffix(".weight")
        pair = (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight")
        if name in tensors:
            full[p] = jnp.asarray(as_ours(p, tensors[name]))
            left.discard(name)
        elif name.endswith(".weight") and left.issuperset(pair):
            a, b = (jnp.asarray(tensors[n].T, jnp.float32) for n in pair)
            factors[p] = lowrank.Factors(a, b, _alpha(path, asked, layer) / b.shape[0])
            left.difference_update(pair)
    if left:
        raise ValueError(f"{folder} has tensors that {checkpoint} has no place for: {sorted(left)}")
    return lowrank.Theta(full, factors)


def _alpha(path: Path, asked: Mapping[str, Any], layer: str) -> float:
    """LoRA's numerator at a layer: of the first pattern that its name ends with, or of all."""
    patterns = (asked.get("alpha_pattern") or {}).items()
    own = (alpha for end, alpha in patterns if re.match(rf"(.*\.)?({end})$", layer))
    found = next(own, asked.get("lora_alpha"))
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"{path} has lora_alpha={found!r}; give a number")
    return found


def _check_base(
    family: Family, tensors: Mapping[str, np.ndarray], base: Mapping[str, jax.Array], checkpoint
) -> None:
    changed = []
    for path, weight in base.items():
        if layer_of(path) in family.head and _drawn(family, tensors, path, weight):
            continue
        theirs = as_ours(path, tensors[tensor_name(family, path)]).astype(weight.dtype)
        if not np.array_equal(theirs, weight):
            changed.append(path)
    if changed:
        raise ValueError(
            f"the base is not {checkpoint}'s any more at {', '.join(changed)}: something was "
            "merged into it, so an adapter alone is not the model"
        )


def _drawn(family: Family, tensors: Mapping[str, Any], path: str, weight: jax.Array) -> bool:
    """Whether a weight of the head was not read: the file has none, or one of other labels."""
    theirs = tensors.get(tensor_name(family, path))
    return theirs is None or as_ours(path, theirs).shape != weight.shape


def _write_adapter(
    folder: Path,
    checkpoint: str | Path,
    family: Family,
    tensors: Mapping[str, np.ndarray],
    base: Mapping[str, jax.Array],
    theta: lowrank.Theta,
) -> None:
    classifier = {ours for ours, theirs in family.head.items() if theirs.startswith("classifier")}
    head = {p: w for p, w in base.items() if layer_of(p) in family.head}
    drawn = {layer_of(path) for path, w in head.items() if _drawn(family, tensors, path, w)}
    whole = classifier | drawn | {layer_of(path) for path in theta.full}
    adapted = {layer_of(path): f for path, f in theta.factors.items() if path.endswith("kernel")}
    if not adapted or len(adapted) < len(theta.factors) or whole & set(adapted):
        raise ValueError(
            f"factors at {', '.join(theta.factors) or 'no path'}: PEFT's format holds those of "
            "dense layers of which nothing is trained whole; select others for this"
        )
    written = {
        tensor_name(family, path): weight.T if path.endswith("kernel") else weight
        for path, weight in {**base, **theta.full}.items()
        if layer_of(path) in whole
    }
    for layer, f in adapted.items():
        written[f"{layer_name(family, layer)}.lora_A.weight"] = f.a.T  # [r, in]
        written[f"{layer_name(family, layer)}.lora_B.weight"] = f.b.T  # [out, r]
    folder.mkdir(parents=True, exist_ok=True)
    config = _adapter_config(family, checkpoint, adapted, whole - classifier)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    safetensors.numpy.save_file(
        {f"base_model.model.{n}": np.ascontiguousarray(t, np.float32) for n, t in written.items()},
        folder / "adapter_model.safetensors",
    )


def _adapter_config(
    family: Family, checkpoint: str | Path, adapted: Mapping[str, lowrank.Factors], whole: set[str]
) -> dict[str, Any]:
    rank = {layer_name(family, layer): f.rank for layer, f in adapted.items()}
    alpha = {layer_name(family, layer): f.scale * f.rank for layer, f in adapted.items()}
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
        "modules_to_save": ["classifier", *sorted(layer_name(family, layer) for layer in whole)],
        "inference_mode": True,
    }
