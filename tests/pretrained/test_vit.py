"""Vision transformers of Hugging Face folders, read and written, against transformers."""

import json

import jax
import numpy as np
import pytest
import tiers

from jaxfed import models, pretrained, trees
from jaxfed.pretrained import vit

torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
safetensors = pytest.importorskip("safetensors.numpy")

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 12, 3)).astype(np.float32)
SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 16, "image_size": [8, 12], "patch_size": 4, "num_labels": 5}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(a folder that transformers saved, its model with large weights)"""
    torch.manual_seed(0)
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.normal_(0, 0.4)
    folder = tmp_path_factory.mktemp("vit")
    theirs.save_pretrained(folder)
    return folder, theirs


def logits(model, params):
    return jax.jit(model.apply)({"params": params}, IMAGES)


def theirs_of(model):
    with torch.no_grad():
        return model(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())).logits.numpy()


def edited(saved, folder, settings=(), **tensors):
    """The saved folder with other settings, and with tensors added, or None to leave one out."""
    loaded = safetensors.load_file(saved[0] / "model.safetensors") | tensors
    kept = {name: x for name, x in loaded.items() if x is not None}
    safetensors.save_file(kept, folder / "model.safetensors")
    config = json.loads((saved[0] / "config.json").read_text()) | dict(settings)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("scanned", tiers.usual([False, True], True))
def test_logits_are_those_of_transformers(saved, scanned):
    model, params = pretrained.read_vit(saved[0], classes=5, scanned=scanned)
    assert model == models.ViT(4, 8, 3, 2, 16, 5, epsilon=1e-12, scanned=scanned)
    np.testing.assert_allclose(logits(model, params), theirs_of(saved[1]), atol=1e-5)


@pytest.mark.full
def test_what_is_written_is_what_was_read_and_transformers_reads_it(saved, tmp_path):
    model, params = pretrained.read_vit(saved[0], classes=5, scanned=True)
    doubled = jax.tree.map(lambda w: 2 * w, params)
    (saved[0] / "preprocessor_config.json").write_text("{}")
    pretrained.write_model(tmp_path / "new", saved[0], doubled)
    again = pretrained.read_vit(tmp_path / "new", classes=5, scanned=True)
    assert again[0] == model
    jax.tree.map(np.testing.assert_array_equal, again[1], doubled)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "new")
    np.testing.assert_allclose(logits(model, doubled), theirs_of(loaded.eval()), atol=2e-5)
    assert (tmp_path / "new" / "preprocessor_config.json").exists()


@pytest.mark.full
def test_a_fresh_head_may_have_other_labels_and_is_written_with_them(saved, tmp_path):
    model, params = pretrained.read_vit(saved[0], classes=2, head="fresh")
    drawn = jax.jit(model.init)(jax.random.key(0), IMAGES)["params"]
    assert {*drawn} - {*params} == {"head"}
    pretrained.write_model(tmp_path / "new", saved[0], drawn | params)
    assert len(json.loads((tmp_path / "new" / "config.json").read_text())["id2label"]) == 2
    assert trees.shapes(pretrained.read_vit(tmp_path / "new", classes=2)[1]) == trees.shapes(drawn)


def test_a_file_of_the_bare_model_has_no_head_and_what_others_need_is_left_out(saved, tmp_path):
    bare = {
        name.removeprefix("vit."): x
        for name, x in safetensors.load_file(saved[0] / "model.safetensors").items()
        if not name.startswith("classifier.")
    }
    spare = {"pooler.dense.weight": np.zeros((8, 8), np.float32)}
    safetensors.save_file(bare | spare, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((saved[0] / "config.json").read_text())
    whole, params = (pretrained.read_vit(f, classes=5)[1] for f in (saved[0], tmp_path))
    assert {*whole} - {*params} == {"head"}
    np.testing.assert_array_equal(params["position"], whole["position"])


WRONG = {
    "another number of labels": (
        {},
        {},
        7,
        r"classes=7: .* gives \(8, 5\), wanted",
    ),
    "a tensor too many": ({}, {"x": np.zeros(1)}, 5, "tensors that a vit classifier does not: x"),
    "a tensor too few": ({}, {"vit.layernorm.bias": None}, 5, r"lacks vit\.layernorm\.bias"),
    "another activation": ({"hidden_act": "relu"}, {}, 5, "'hidden_act': 'relu'.*supported is"),
    "no biases": ({"qkv_bias": False}, {}, 5, "'qkv_bias': False"),
    "patches that do not fit": ({"image_size": 10}, {}, 5, "image_size=10; give a height and"),
    "no size": ({"patch_size": 0}, {}, 5, "patch_size=0; give a number from 1 on"),
    "another kind": ({"model_type": "beit"}, {}, 5, "'model_type': 'beit'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_ends_in_one_sentence(name, saved, tmp_path):
    settings, tensors, classes, match = WRONG[name]
    with pytest.raises(ValueError, match=match):
        pretrained.read_vit(edited(saved, tmp_path, settings, **tensors), classes=classes)


def test_weights_of_another_model_are_not_written(saved, tmp_path):
    _, params = pretrained.read_vit(saved[0], classes=5)
    with pytest.raises(ValueError, match=r"not of a model like .*position is"):
        pretrained.write_model(tmp_path / "new", saved[0], params | {"position": np.zeros((2, 8))})
    assert not (tmp_path / "new").exists()


def test_every_weight_has_a_name_of_its_own(saved):
    config = vit.configuration(saved[0])
    paths = vit.shapes_of(vit.vit(config, 5), config)
    stored = safetensors.load_file(saved[0] / "model.safetensors")
    assert {*map(vit.tensor_name, paths)} == {*stored}
