"""One config for any set of images: its shape, classes and statistics are the data's."""

import importlib.util

import jax
import numpy as np
import pytest
import tiers
from pages import ROOT

from jaxfed import Host, run, trees

HOST = Host(devices=1, chunk=2, fuse=1, checkpoint_every=0)
SMALL = {"clients": 4, "cohort": 2, "rounds": 2, "rank": 2}


@pytest.fixture(scope="module")
def config():
    spec = importlib.util.spec_from_file_location("images", ROOT / "configs" / "images.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    """120 training and 30 test images of 8 x 8 in three colours, brighter in higher classes."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("set") / "set.npz"
    arrays = {}
    for split, n in (("train", 120), ("test", 30)):
        label = np.arange(n) % 3
        arrays[f"{split}_label"] = label
        noise = rng.integers(0, 60, (n, 8, 8, 3))
        arrays[f"{split}_image"] = (noise + 60 * label[:, None, None, None]).astype(np.uint8)
    np.savez(path, **arrays)
    return str(path)


@pytest.mark.parametrize("model", tiers.usual(("mlp", "cnn", "resnet", "vit"), "mlp", "cnn"))
def test_any_shape_and_number_of_classes_will_do(config, coloured, model):
    e = config.experiment(data=coloured, model=model, method="fedloru", **SMALL)
    _, theta = jax.eval_shape(e.task.init, jax.random.key(0))
    assert theta.full["head/kernel"].shape[-1] == 3
    assert e.data.test["image"].shape == (30, 8, 8, 3)


@pytest.mark.full
def test_it_learns(config, coloured):
    e = config.experiment(data=coloured, model="mlp", **{**SMALL, "rounds": 5})
    assert list(run(e, host=HOST))[-1]["accuracy"] > 0.9


def test_a_method_that_is_no_row_is_refused(config):
    with pytest.raises(ValueError, match="the zoo has no row 'fedavgg'"):
        config.experiment(method="fedavgg")


@pytest.mark.full
@pytest.mark.parametrize("model", ["mlp", "resnet"])
def test_fedbn_gets_a_network_with_running_statistics(config, coloured, model):
    e = config.experiment(data=coloured, model=model, method="fedbn", **SMALL)
    _, theta = jax.eval_shape(e.task.init, jax.random.key(0))
    assert trees.running(theta.full)
    assert theta.factors == {}


@pytest.mark.parametrize("model", ["cnn", "vit"])
def test_fedbn_is_refused_for_a_network_without_batch_norms(config, coloured, model):
    with pytest.raises(ValueError, match=f"batch norms, which --model {model} has not; use resnet"):
        config.experiment(data=coloured, model=model, method="fedbn", **SMALL)


def test_patches_that_do_not_divide_the_images_are_refused(config, coloured):
    with pytest.raises(ValueError, match="8 x 8 do not divide into patches of 3; use a divisor"):
        config.experiment(data=coloured, model="vit", patch=3, **SMALL)
