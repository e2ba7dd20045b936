"""configs/fedloru/cifar100.py: images in training are changed as the authors' release does."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxfed.simulation import engine, participation

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs/fedloru/cifar100.py"))
IMAGES = np.random.default_rng(0).integers(100, 150, (6, 32, 32, 3)).astype(np.float32)


def residual(before, after):
    """How far `after` is from any a * before + b, with one a and one b an image.

    The border of zeros that a crop leaves does not count: contrast would make it negative.
    """
    found = []
    for x, y in zip(before.reshape(len(before), -1), after.reshape(len(after), -1), strict=True):
        inside = x > 0
        columns = np.stack([x[inside], np.ones(inside.sum())], axis=1)
        best = np.linalg.lstsq(columns, y[inside])[0]
        found.append(np.abs(columns @ best - y[inside]).max())
    return max(found)


@pytest.mark.parametrize(("saturation", "kept"), [(0.0, True), (0.5, False)])
def test_brightness_and_contrast_change_and_saturation_only_if_asked(saturation, kept):
    """Both are one affine function of all pixels and channels; a saturation is not."""
    still, changed = (
        CONFIG["augmentation"](64, jitter, s)(IMAGES, jax.random.key(1))
        for jitter, s in ((0.0, 0.0), (0.2, saturation))
    )
    assert np.abs(still - changed).max() > 1
    away = residual(np.asarray(still), np.asarray(changed))
    assert away < 1e-2 if kept else away > 1


@pytest.mark.parametrize(("resize", "size"), [(64, 64), (None, 32)])
def test_images_are_jittered_as_they_are_enlarged_or_as_they_are_stored(resize, size):
    found = CONFIG["augmentation"](resize, 0.5, 0.0)(IMAGES, jax.random.key(0))
    assert found.shape == (6, size, size, 3)


def test_the_control_lowers_its_rate_where_others_merge():
    for merges in (3, (3, 6)):
        rate = CONFIG["stairs"](0.5, merges)
        assert [float(rate(t)) for t in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]


ARMS = [{"restart": "balanced"}, {"method": "fedlora", "lowered": 0.5}]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """tiny(**arm): the experiment of an arm of the trial for a GPU, two tiny rounds."""
    path = tmp_path_factory.mktemp("data") / "cifar100.npz"
    rng, made = np.random.default_rng(0), {}
    for split in ("train", "test"):
        made[f"{split}_image"] = rng.integers(0, 256, (100, 32, 32, 3)).astype(np.uint8)
        made[f"{split}_label"] = np.arange(100)
    np.savez(path, **made)
    sizes = {"clients": 20, "cohort": 1, "rounds": 2, "every": (1,), "rank": 2, "resize": 8}
    sizes |= {"blocks": (1, 1, 1, 1), "batch_size": 4, "epochs": 1, "evaluate_every": 2}
    return lambda **arm: CONFIG["experiment"](str(path), **sizes, **arm)


@pytest.mark.full
@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_an_arm_of_the_trial_for_a_gpu_has_a_round(arm, tiny):
    """Traced, not compiled: a ResNet compiles longer on a CPU than it runs."""
    made = tiny(**arm)
    fed, plan = made.algorithm, participation.make(made, 1, range(1))
    server = jax.eval_shape(fed.init, jax.random.key(0))
    one = engine.rounds(fed, engine.for_each_client(engine.machine(1)), 0, made.data.train.most)
    after, _, metrics = jax.eval_shape(one, server, (), made.data.train.examples, plan)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, server)
    assert metrics["loss"].shape == (1, 1)
    assert [bool(fed.broadcast(server, t)) for t in (0, 1)] == [False, "restart" in arm]


def test_by_default_it_is_the_release():
    defaults = CONFIG["experiment"].__kwdefaults__ or {}
    names = CONFIG["experiment"].__code__.co_varnames
    values = dict(zip(names, CONFIG["experiment"].__defaults__, strict=False)) | defaults
    assert (values["jitter"], values["saturation"], values["jittered"]) == (0.5, 0.0, "resized")
