"""Decoders from folders that transformers saved: their logits, and what is refused."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

pytest.importorskip("torch")
pytest.importorskip("transformers")
import tiny_decoders
import torch

from jaxfed import lowrank, pretrained, trees

KINDS = tuple(tiny_decoders.SETTINGS)
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(3, tiny_decoders.VOCABULARY, (3, 12))
REAL = np.arange(12) >= np.array([[0], [4], [9]])  # padded on the left


@functools.partial(quickly, static_argnames="model")
def logits(model, params, tokens, segments=None):
    return model.apply({"params": params}, tokens, segments)


def theirs(model):
    places = np.maximum(np.cumsum(REAL, axis=1) - 1, 0)
    with torch.no_grad():
        given = {"attention_mask": torch.tensor(REAL).long(), "position_ids": torch.tensor(places)}
        return model(torch.tensor(TOKENS), **given).logits.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers(kind):
    folder, saved = tiny_decoders.small(kind)
    model, params = pretrained.read_decoder(folder)
    found, expected = logits(model, params, TOKENS, REAL.astype(np.int32)), theirs(saved)
    assert np.ptp(expected[REAL], axis=0)[1:].min() > 0.1  # or any model would do; 0 is padding
    np.testing.assert_allclose(found[REAL], expected[REAL], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_decoder_that_is_written_is_the_one_that_was_read(kind, tmp_path):
    folder, _ = tiny_decoders.small(kind)
    model, params = pretrained.read_decoder(folder)
    pretrained.write_model(tmp_path / "new", folder, params)
    again, found = pretrained.read_decoder(tmp_path / "new")
    assert again == model
    same(found, params)
    files = (
        safetensors.numpy.load_file(f / "model.safetensors") for f in (tmp_path / "new", folder)
    )
    same(*({n: x for n, x in file.items() if n != "lm_head.weight"} for file in files))


def adapted(kind):
    """(model, base, theta) with factors beside layers and a norm that is trained whole."""
    model, params = pretrained.read_decoder(tiny_decoders.small(kind)[0])
    select = lowrank.Select(factors="query|value|down", full="norm_1", rank=2, alpha=6, up="random")
    layers = lowrank.layers(model, TOKENS)
    base, theta = lowrank.split(params, layers, select, jax.random.key(1, impl="rbg"))
    return model, base, theta._replace(full={p: w + 0.1 for p, w in theta.full.items()})


def assert_peft_runs(place, kind, model, base, theta):
    """The adapter, written to place/one and loaded by PEFT, has our logits and not the base's."""
    peft = pytest.importorskip("peft")
    folder, saved = tiny_decoders.small(kind)
    pretrained.write_adapters(place, folder, base, {"one": theta})
    plain = type(saved).from_pretrained(folder)
    loaded = peft.PeftModel.from_pretrained(plain, place / "one").eval()
    found = quickly(functools.partial(lowrank.apply, model))(
        base, theta, TOKENS, REAL.astype(np.int32)
    )
    np.testing.assert_allclose(found[REAL], theirs(loaded)[REAL], atol=1e-4, rtol=1e-4)
    assert np.abs(found[REAL] - theirs(saved)[REAL]).max() > 0.01


def test_peft_runs_the_adapter_of_a_decoder(tmp_path):
    kind = "llama"
    folder, _ = tiny_decoders.small(kind)
    model, base, theta = adapted(kind)
    assert_peft_runs(tmp_path, kind, model, base, theta)
    same(pretrained.read_adapter(tmp_path / "one", folder), theta)
    _, narrow = pretrained.read_decoder(folder, base="int8")
    pretrained.write_adapters(tmp_path, folder, trees.by_path(narrow), {"narrow": theta})
    same(pretrained.read_adapter(tmp_path / "narrow", folder), theta)
    with pytest.raises(ValueError, match=r"not .* any more at layers/down/kernel"):
        pretrained.write_adapters(tmp_path, folder, lowrank.merge(base, theta), {"two": theta})


def test_peft_runs_the_adapter_of_gpt2_whose_queries_keys_and_values_are_one(tmp_path):
    kind = "gpt2"
    folder, _ = tiny_decoders.small(kind)
    model, base, theta = adapted(kind)
    theta = theta._replace(
        factors={
            p: dataclasses.replace(f, scale=0.5) if "query" in p else f
            for p, f in theta.factors.items()
        }
    )
    assert_peft_runs(tmp_path, kind, model, base, theta)
    again = pretrained.read_adapter(tmp_path / "one", folder)
    assert set(again.factors) == set(theta.factors)
    for p, f in theta.factors.items():
        assert again.factors[p].a.shape == f.a.shape
        product = lowrank.product(again.factors[p])
        np.testing.assert_allclose(product, lowrank.product(f), atol=1e-6)
    with pytest.raises(ValueError, match=r"not .* any more at layers/"):
        pretrained.write_adapters(tmp_path, folder, lowrank.merge(base, theta), {"two": theta})


def edited(folder, place, *, config=None, tensors=lambda old: old):
    """A copy of a folder with other settings, and with its tensors changed."""
    shutil.copytree(folder, place, dirs_exist_ok=True)
    old = safetensors.numpy.load_file(folder / "model.safetensors")
    safetensors.numpy.save_file(tensors(old), place / "model.safetensors")
    settings = {**json.loads((folder / "config.json").read_text()), **(config or {})}
    (place / "config.json").write_text(json.dumps(settings))
    return place


def same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_checkpoint_in_parts_is_the_whole(tmp_path):
    folder, _ = tiny_decoders.small("smollm")
    whole = safetensors.numpy.load_file(folder / "model.safetensors")
    names, listed = sorted(whole), {}
    for i in range(3):
        part = {n: whole[n] for n in names[i::3]}
        safetensors.numpy.save_file(part, tmp_path / f"part-{i}.safetensors")
        listed |= dict.fromkeys(part, f"part-{i}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    shutil.copy(folder / "config.json", tmp_path)
    same(pretrained.read_decoder(tmp_path)[1], pretrained.read_decoder(folder)[1])
    for wrong in ("../part-0.safetensors", ["part-0.safetensors"]):
        index = {"weight_map": {**listed, names[0]: wrong}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match="which is no file beside it"):
            pretrained.read_decoder(tmp_path)


def bare(prefix):
    """The tensors as a model without a head saves them, and as the oldest files have them."""
    return lambda old: {
        **{n.removeprefix(prefix): x for n, x in old.items() if n != "lm_head.weight"},
        "h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32),
    }


def test_the_bare_gpt2_of_an_old_file_is_the_model(tmp_path):
    folder, _ = tiny_decoders.small("gpt2")
    other = edited(folder, tmp_path, tensors=bare("transformer."))
    same(pretrained.read_decoder(other)[1], pretrained.read_decoder(folder)[1])


def without(name):
    return lambda old: {n: x for n, x in old.items() if n != name}


WRONG = {
    "an unknown kind": ({"config": {"model_type": "t5"}}, "holds a 't5' model; decoders are gpt2"),
    "a setting": ({"config": {"mlp_bias": True}}, r"has \{'mlp_bias': True\}; supported is"),
    "no size": ({"config": {"hidden_size": None}}, "does not say hidden_size"),
    "no number": ({"config": {"num_hidden_layers": "2"}}, "num_hidden_layers='2'; give a number"),
    "an activation": ({"config": {"hidden_act": "swish"}}, "hidden_act='swish'; supported are"),
    "positions": (
        {"config": {"rope_parameters": {"rope_type": "yarn"}}},
        "rotary positions are of type 'yarn'",
    ),
    "positions of no object": ({"config": {"rope_parameters": "x"}}, "rotary settings 'x'"),
    "no base": (
        {"config": {"rope_parameters": {"rope_theta": None}}},
        "rope_theta=None; give a number above 0",
    ),
    "half of a scaling": (
        {"config": {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}},
        "low_freq_factor=None; give a number above 0",
    ),
    "a lost tensor": ({"tensors": without("model.norm.weight")}, r"lacks model\.norm\.weight"),
    "a stranger": (
        {"tensors": lambda old: {**old, "model.extra": np.ones(1)}},
        r"config\.json does not: model\.extra",
    ),
    "a shape": ({"config": {"intermediate_size": 23}}, "does not fit its config.json: "),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_folder_is_refused_in_a_sentence(tmp_path, name):
    changes, message = WRONG[name]
    other = edited(tiny_decoders.small("llama")[0], tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        pretrained.read_decoder(other)


def test_a_missing_folder_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json; it has nothing"):
        pretrained.read_decoder(tmp_path / "none")
