import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from jaxfed.data import images

KEY = jax.random.key(0)
GREY = np.array([0.299, 0.587, 0.114])
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.1)


def batch(n=64, height=7, width=5, channels=3):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, channels), np.uint8)


def floats(n=64):
    """Pixels far enough from 0 and 255 that mild jitter clips nothing."""
    return np.random.default_rng(0).uniform(80, 140, (n, 6, 6, 3)).astype(np.float32)


def test_normalise_is_the_affine_map():
    got = images.normalise(MEAN, STD)(batch(), KEY)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, (batch() / 255 - MEAN) / STD, atol=1e-5)


def test_normalised_by_their_own_statistics_images_have_mean_0_and_deviation_1():
    mean, std = images.channel_statistics(batch())
    x = np.asarray(images.normalise(mean, std)(batch(), KEY))
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(x.std(axis=(0, 1, 2)), 1, atol=1e-4)


def test_statistics_are_numpys():
    mean, std = images.channel_statistics(batch(), scale=16)
    np.testing.assert_allclose(mean, (batch() / 16).mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, (batch() / 16).std(axis=(0, 1, 2)), rtol=1e-9)


def test_a_crop_is_a_window_of_the_padded_image_and_all_windows_occur():
    x, p = batch(), 1
    got = np.asarray(jax.jit(images.random_crop(p))(x, KEY))
    assert got.dtype == np.uint8
    seen = set()
    for image, cropped in zip(x, got, strict=True):
        padded = np.zeros((7 + 2 * p, 5 + 2 * p, 3), np.uint8)
        padded[p:-p, p:-p] = image
        corners = [
            (i, j)
            for i, j in itertools.product(range(2 * p + 1), repeat=2)
            if (padded[i : i + 7, j : j + 5] == cropped).all()
        ]
        assert len(corners) == 1
        seen.update(corners)
    assert len(seen) == (2 * p + 1) ** 2


def test_a_flip_mirrors_about_half_of_the_images():
    x = batch()
    got = np.asarray(images.random_flip()(x, KEY))
    flipped = [(g == image[:, ::-1]).all() for image, g in zip(x, got, strict=True)]
    kept = [(g == image).all() for image, g in zip(x, got, strict=True)]
    assert sum(flipped) + sum(kept) == len(x)
    assert 16 < sum(flipped) < 48


def test_brightness_scales_each_image_by_its_own_factor():
    ratio = np.asarray(images.jitter(0.5, 0, 0)(floats(), KEY)) / floats()
    factor = ratio.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(
        ratio, np.broadcast_to(factor[:, None, None, None], ratio.shape), 1e-5
    )
    assert 0.5 <= factor.min() < 0.7
    assert 1.3 < factor.max() <= 1.5
    assert len(np.unique(factor)) == len(factor)


def test_contrast_scales_about_the_mean_grey():
    x, got = floats(), np.asarray(images.jitter(0, 0.5, 0)(floats(), KEY))
    for image, jittered in zip(x, got, strict=True):
        grey = (image @ GREY).mean()
        factor = (jittered - grey) / (image - grey)
        well = np.abs(image - grey) > 1
        np.testing.assert_allclose(factor[well], np.median(factor), rtol=1e-2)
        np.testing.assert_allclose((jittered @ GREY).mean(), grey, rtol=1e-5)


def test_saturation_scales_about_each_pixels_grey():
    x, got = floats(), np.asarray(images.jitter(0, 0, 0.5)(floats(), KEY))
    np.testing.assert_allclose(got @ GREY, x @ GREY, rtol=1e-5)
    for image, jittered in zip(x, got, strict=True):
        grey = (image @ GREY)[..., None]
        well = np.abs(image - grey) > 1
        factor = ((jittered - grey) / (image - grey))[well]
        np.testing.assert_allclose(factor, np.median(factor), rtol=1e-2)


def test_jitter_stays_in_range_and_none_is_the_identity():
    strong = np.asarray(images.jitter(2, 2, 2)(batch(), KEY))
    assert strong.min() == 0
    assert strong.max() == 255
    np.testing.assert_allclose(images.jitter(0, 0, 0)(batch(), KEY), batch(), atol=1e-3)


def test_grey_images_have_no_saturation():
    x = batch(channels=1)
    np.testing.assert_allclose(images.jitter(0, 0, 0.9)(x, KEY), x, atol=1e-3)


def test_enlarging_interpolates_between_pixel_centres():
    x, size = batch(n=3), 11
    got = np.asarray(images.resize(size)(x, KEY))
    for i, j in itertools.product(range(size), repeat=2):
        v = np.clip((i + 0.5) * 7 / size - 0.5, 0, 6)
        u = np.clip((j + 0.5) * 5 / size - 0.5, 0, 4)
        top, left = min(int(v), 5), min(int(u), 3)
        corner = x[:, top : top + 2, left : left + 2].astype(float)
        row = corner[:, 0] * (1 - v + top) + corner[:, 1] * (v - top)
        want = row[:, 0] * (1 - u + left) + row[:, 1] * (u - left)
        np.testing.assert_allclose(got[:, i, j], want, atol=1e-3)


def test_shrinking_keeps_the_mean():
    x = np.full((2, 8, 8, 3), 100, np.uint8)
    np.testing.assert_allclose(images.resize(3)(x, KEY), 100, rtol=1e-5)


def test_a_chain_is_the_composition_with_a_key_each():
    plain = images.chain(images.normalise(MEAN, STD), images.resize(9))(batch(), KEY)
    want = images.resize(9)(images.normalise(MEAN, STD)(batch(), KEY), KEY)
    np.testing.assert_array_equal(plain, want)
    twice = images.chain(images.random_flip(), images.random_flip())(batch(), KEY)
    assert (np.asarray(twice) != batch()).any()


TRANSFORMS = {
    "normalise": images.normalise(MEAN, STD),
    "random_crop": images.random_crop(2),
    "random_flip": images.random_flip(),
    "jitter": images.jitter(0.5, 0.5, 0.5),
    "resize": images.resize(4),
    "chain": images.chain(images.random_crop(2), images.random_flip(), images.resize(4)),
}


@pytest.mark.parametrize(
    "transform", tiers.usual(TRANSFORMS.values(), TRANSFORMS["chain"]), ids=TRANSFORMS
)
def test_clients_at_once_are_clients_one_by_one(transform):
    x, keys = batch(12).reshape(3, 4, 7, 5, 3), jax.random.split(KEY, 3)
    together = jax.jit(jax.vmap(transform))(x, keys)
    for k in range(3):
        np.testing.assert_allclose(together[k], transform(x[k], keys[k]), rtol=1e-4, atol=1e-3)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="std above 0"):
        images.normalise((0.5,), (0.0,))
    with pytest.raises(ValueError, match="each channel"):
        images.normalise((0.5,), (0.1, 0.1))
    with pytest.raises(ValueError, match=r"-0\.5"):
        images.jitter(-0.5, 0, 0)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: images.normalise([np.nan], [1.0]), ValueError, r"mean=\[nan\] .* finite"),
        (lambda: images.normalise([0.5], [np.inf]), ValueError, r"std=\[inf\]"),
        (lambda: images.normalise([], []), ValueError, "give both for each channel"),
        (lambda: images.normalise(0.5, 0.2), ValueError, "give both for each channel"),
        (lambda: images.normalise([0.5], [0.2], scale=0), ValueError, "scale=0; use a number abov"),
        (lambda: images.normalise([0.5], [0.2], scale="1"), TypeError, "scale='1' is a str"),
        (
            lambda: images.standardise(batch()[..., 0]),
            ValueError,
            r"\(64, 7, 5\), not \[n, H, W, C",
        ),
        (lambda: images.standardise(batch() * 0), ValueError, "std above 0"),
        (lambda: images.random_crop(-1), ValueError, "padding=-1; use at least 0"),
        (lambda: images.random_crop(1.5), TypeError, "padding=1.5 is a float"),
        (lambda: images.jitter(np.nan, 0, 0), ValueError, "brightness=nan; use a finite number"),
        (lambda: images.jitter(0, "1", 0), TypeError, "contrast='1' is a str"),
        (lambda: images.jitter(0, 0, 0, scale=-1), ValueError, "scale=-1"),
        (lambda: images.resize(0), ValueError, "size=0; use at least 1"),
        (lambda: images.resize(32.0), TypeError, "size=32.0 is a float"),
        (lambda: images.chain("flip"), TypeError, "'flip' is no transform"),
    ],
)
def test_values_of_transforms_are_checked_where_they_are_given(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((2, 8, 8), r"images are \(2, 8, 8\), not \[n, H, W, C\]; give grey ones a last axis"),
        ((2, 8, 8, 1), r"have 1 channels, and mean=.* is of 3; give one mean"),
        ((2, 3, 8, 8), "have 8 channels, and mean="),
    ],
)
def test_images_of_other_channels_are_refused_as_they_are_traced(shape, match):
    with pytest.raises(ValueError, match=match):
        jax.eval_shape(images.normalise(MEAN, STD), np.zeros(shape), KEY)


@pytest.mark.parametrize(
    ("x", "scale"),
    [(batch() / 255, 255), (batch(), 1), (batch() // 16, 255), (batch() / 127.5 - 1, 255)],
    ids=["0 to 1 over 255", "0 to 255 over 1", "0 to 15 over 255", "-1 to 1 over 255"],
)
def test_images_of_another_unit_are_refused(x, scale):
    transform = images.chain(images.resize(4), images.normalise(MEAN, STD, scale))
    with pytest.raises(ValueError, match=r"images run from .* use images.standardise"):
        transform.check(x)


@pytest.mark.parametrize(
    "x", [batch(), batch() / 255, batch() * 100 - 3.0], ids=["0 to 255", "0 to 1", "other"]
)
def test_standardised_images_have_mean_0_and_deviation_1_in_any_unit(x):
    transform = images.standardise(x)
    transform.check(x)
    z = np.asarray(transform(x, KEY))
    np.testing.assert_allclose(z.mean(axis=(0, 1, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=(0, 1, 2)), 1, atol=1e-4)


@pytest.mark.parametrize(
    ("x", "scale"), [(batch(), 255), (batch() / 255, 1), (np.zeros((2, 3, 3, 3)), 255)]
)
def test_images_of_the_unit_of_the_scale_are_taken(x, scale):
    images.normalise(MEAN, STD, scale).check(x)
    images.normalise(MEAN, STD, scale).check(x[:0])
