"""configs/fedloru/cifar100.py: images in training are changed as the authors' release does."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

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


def test_by_default_it_is_the_release():
    defaults = CONFIG["experiment"].__kwdefaults__ or {}
    names = CONFIG["experiment"].__code__.co_varnames
    values = dict(zip(names, CONFIG["experiment"].__defaults__, strict=False)) | defaults
    assert (values["jitter"], values["saturation"], values["jittered"]) == (0.5, 0.0, "resized")
