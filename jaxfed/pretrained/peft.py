"""Adapters in PEFT's format."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import lowrank, trees
from jaxfed.pretrained import decoders, files, fused, layouts
from jaxfed.pretrained.families import Family, as_ours, layer_of, tensor_name
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

    or AutoModelForCausalLM beside a decoder. GPT-2's queries, keys and values get one adapter of
    their ranks' sum, as PEFT has it. A common adapter, a personal one and the two `joined` are
    three thetas. Raises ValueError if the base is no longer the checkpoint's (then no adapter of
    these factors is the model), or if the factors are at a weight where PEFT's have another form.
    """
    if wrong := [name for name in thetas if not re.fullmatch(r"\w[\w.\- ]*", name)]:
        raise ValueError(
            f"an adapter is called {wrong[0]!r}, which is no name of a folder in {folder}; use "
            "letters, digits, spaces and . _ - only, a letter or digit first"
        )
    if decoders.is_decoder(checkpoint):
        _write_decoders(Path(folder).expanduser(), checkpoint, base, thetas)
        return
    family, _ = configuration(Path(checkpoint))
    tensors = tensors_in(Path(checkpoint), family)
    base = layouts.unrolled(base)
    _check_base(family, tensors, base, checkpoint)
    for name, stacked in thetas.items():
        theta = lowrank.Theta(layouts.unrolled(stacked.full), layouts.unrolled(stacked.factors))
        _write_adapter(Path(folder).expanduser() / name, checkpoint, family, tensors, base, theta)


PLAIN = {"peft_type": "LORA", "bias": "none", "use_rslora": False, "use_dora": False}


def read_adapter(folder: str | Path, checkpoint: str | Path) -> lowrank.Theta:
    """The factors, and the layers trained whole, of one of PEFT's LoRA adapters.

    They are for `lowrank.apply` beside the checkpoint's weights: an encoder's layer by layer, a
    decoder's stacked. Raises ValueError for another kind of adapter, for layers of a decoder that
    differ, and, by name, for tensors that such a model does not have.
    """
    folder, paths = Path(folder).expanduser(), _names(checkpoint)
    path = files.find(folder, "adapter_config.json")
    asked = files.json_object(path)
    if wrong := {k: asked.get(k, v) for k, v in PLAIN.items() if asked.get(k, v) != v}:
        raise ValueError(f"{path} has {wrong}; supported is {PLAIN}")
    loaded = files.load(files.find(folder, "adapter_model.safetensors"))
    tensors = {name.removeprefix("base_model.model."): x for name, x in loaded.items()}
    end = ".lora_A.weight"
    rank = {n.removesuffix(end): len(x) for n, x in tensors.items() if n.endswith(end)}
    if decoders.is_decoder(checkpoint):
        kind, _ = decoders.configuration(Path(checkpoint).expanduser())
        lora = {name: x for name, x in tensors.items() if ".lora_" in name}
        others = {name: x for name, x in tensors.items() if name not in lora}
        tensors = decoders.apart(kind, others) | fused.apart(lora)
    full, factors, left = {}, {}, set(tensors)
    for name, p in paths.items():
        layer = name.removesuffix(".weight")
        pair = (f"{layer}.lora_A.weight", f"{layer}.lora_B.weight")
        if name in tensors:
            full[p] = jnp.asarray(as_ours(p, tensors[name]))
            left.discard(name)
        elif name.endswith(".weight") and left.issuperset(pair):
            a, b = (jnp.asarray(tensors[n].T, jnp.float32) for n in pair)
            theirs = fused.whole(layer)
            factors[p] = lowrank.Factors(a, b, _alpha(path, asked, theirs) / rank[theirs])
            left.difference_update(pair)
    if left:
        raise ValueError(f"{folder} has tensors that {checkpoint} has no place for: {sorted(left)}")
    if decoders.is_decoder(checkpoint):
        full, factors = layouts.stacked(full), layouts.stacked(factors)
    return lowrank.Theta(full, factors)


def _names(checkpoint: str | Path) -> dict[str, str]:
    """{their name: our path} of every weight, layer by layer."""
    if not decoders.is_decoder(checkpoint):
        family, config = configuration(Path(checkpoint))
        return {tensor_name(family, p): p for p in shapes_of(encoder(family, config, 1))}
    kind, _ = decoders.configuration(Path(checkpoint).expanduser())
    weights = layouts.unrolled(trees.by_path(decoders.read_decoder(checkpoint)[1]))
    return {decoders.name(kind, p): p for p in weights}


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
        if not _same(as_ours(path, tensors[tensor_name(family, path)]), weight):
            changed.append(path)
    _refuse_changed(checkpoint, changed)


def _same(theirs: np.ndarray, weight: Any) -> bool:
    """Whether a checkpoint's weight is ours, as it is stored here."""
    if lowrank.quantised.is_quantised(weight):
        made = lowrank.quantised.quantise(theirs, weight.kind)
        return np.array_equal(made.codes, weight.codes)
    return np.array_equal(theirs.astype(weight.dtype), weight)


def _refuse_changed(checkpoint: str | Path, changed: list[str]) -> None:
    if changed:
        raise ValueError(
            f"the base is not {checkpoint}'s any more at {', '.join(changed)}: something was "
            "merged into it, so an adapter alone is not the model"
        )


def _write_decoders(
    folder: Path,
    checkpoint: str | Path,
    base: Mapping[str, jax.Array],
    thetas: Mapping[str, lowrank.Theta],
) -> None:
    kind, _ = decoders.configuration(Path(checkpoint).expanduser())
    theirs = trees.by_path(decoders.read_decoder(checkpoint)[1])
    _refuse_changed(checkpoint, [p for p, w in base.items() if not _same(theirs[p], w)])
    for name, stacked in thetas.items():
        theta = lowrank.Theta(layouts.unrolled(stacked.full), layouts.unrolled(stacked.factors))
        full = _with_others(kind, theta.full, base)
        adapted = _dense(theta, {layer_of(path) for path in full})
        _write(folder / name, checkpoint, partial(decoders.name, kind), full, adapted, [], kind)


def _with_others(
    kind: decoders.Kind, full: Mapping[str, Any], base: Mapping[str, Any]
) -> dict[str, Any]:
    """What is trained whole, and of GPT-2 what a file holds in one tensor with it."""
    if kind.settings["kind"] != "gpt2":
        return dict(full)
    known, parts = {**layouts.unrolled(lowrank.quantised.floats(base)), **full}, fused.PARTS
    split = [path.split("/") for path in full]
    more = ["/".join((*at, part, leaf)) for *at, of, leaf in split if of in parts for part in parts]
    return {path: known[path] for path in dict.fromkeys([*full, *more])}


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
    adapted = _dense(theta, whole)
    full = {p: w for p, w in {**base, **theta.full}.items() if layer_of(p) in whole}
    _write(folder, checkpoint, partial(tensor_name, family), full, adapted, ["classifier"])


def _dense(theta: lowrank.Theta, whole: Collection[str]) -> dict[str, lowrank.Factors]:
    """{layer: factors}; ValueError unless they stand beside dense layers that stay frozen."""
    adapted = {layer_of(path): f for path, f in theta.factors.items() if path.endswith("kernel")}
    if not adapted or len(adapted) < len(theta.factors) or set(whole) & set(adapted):
        raise ValueError(
            f"factors at {', '.join(theta.factors) or 'no path'}: PEFT's format holds those of "
            "dense layers of which nothing is trained whole; select others for this"
        )
    return adapted


def _write(
    folder: Path,
    checkpoint: str | Path,
    name: Callable[[str], str],
    full: Mapping[str, jax.Array],
    adapted: Mapping[str, lowrank.Factors],
    saved: list[str],
    kind: decoders.Kind | None = None,
) -> None:
    """Writes one adapter; `name` gives their name of a weight, `saved` are modules beside it.

    `kind` is a decoder's.
    """
    package = files.safetensors(folder)
    written: dict[str, np.ndarray] = {
        name(p): np.asarray(w.T if p.endswith("kernel") else w) for p, w in full.items()
    }
    written = decoders.together(kind, written) if kind else written
    modules = {n.rpartition(".")[0] for n in written}
    pairs = fused.together(
        {name(f"{layer}/kernel").removesuffix(".weight"): f for layer, f in adapted.items()}
    )
    for layer, f in pairs.items():
        written[f"{layer}.lora_A.weight"] = np.asarray(f.a.T)  # [r, in]
        written[f"{layer}.lora_B.weight"] = np.asarray(f.b.T)  # [out, r]
    own = sorted(m for m in modules if m.partition(".")[0] not in saved)
    config = _adapter_config(checkpoint, pairs, [*saved, *own])
    config["fan_in_fan_out"] = kind is not None and kind.settings["kind"] == "gpt2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    package.numpy.save_file(
        {f"base_model.model.{n}": np.ascontiguousarray(t, np.float32) for n, t in written.items()},
        folder / "adapter_model.safetensors",
    )


def _adapter_config(
    checkpoint: str | Path, pairs: Mapping[str, lowrank.Factors], saved: list[str]
) -> dict[str, Any]:
    rank = {layer: f.rank for layer, f in pairs.items()}
    alpha = {layer: f.scale * f.rank for layer, f in pairs.items()}
    r, lora_alpha = (next(iter(of.values())) for of in (rank, alpha))
    return {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if saved[:1] == ["classifier"] else "CAUSAL_LM",
        "base_model_name_or_path": str(checkpoint),
        "r": r,
        "lora_alpha": lora_alpha,
        "rank_pattern": {re.escape(n): mine for n, mine in rank.items() if mine != r},
        "alpha_pattern": {re.escape(n): mine for n, mine in alpha.items() if mine != lora_alpha},
        "target_modules": list(rank),
        "modules_to_save": saved or None,
        "inference_mode": True,
    }
