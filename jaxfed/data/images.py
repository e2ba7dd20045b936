"""What is done to batches of images inside the jitted round.

Each factory returns `transform(images [B, H, W, C], key) -> images`, with draws of its own for each
example. Pixels keep their unit (0..255 as stored) until `normalise`.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

Transform: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in torchvision


def chain(*transforms: Transform) -> Transform:
    """The transforms one after the other, each with its own key."""

    def transform(images, key):
        for i, one in enumerate(transforms):
            images = one(images, jax.random.fold_in(key, i))
        return images

    return transform


def normalise(mean: Sequence[float], std: Sequence[float], scale: float = 255) -> Transform:
    """(images / scale - mean) / std in float32; one mean and one std a channel."""
    if len(mean) != len(std) or not all(s > 0 for s in std):
        raise ValueError(f"mean={mean} and std={std}; give both for each channel, std above 0")

    def transform(images, key):
        x = images.astype(jnp.float32) / scale
        return (x - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)

    return transform


def random_crop(padding: int) -> Transform:
    """A window of the image's own size, anywhere in it after zeros [padding] are put around it."""

    def crop(image, corner):
        padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)

    def transform(images, key):
        corners = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)
        return jax.vmap(crop)(images, corners)

    return transform


def random_flip() -> Transform:
    """Left and right exchanged, with probability one half."""

    def transform(images, key):
        flip = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
        return jnp.where(flip, images[:, :, ::-1], images)

    return transform


def jitter(brightness: float, contrast: float, saturation: float, scale: float = 255) -> Transform:
    """torchvision's ColorJitter without hue, in float32 and clipped to [0, scale].

    In an order drawn for each image, x <- f x + (1 - f) reference, f ~ U(max(0, 1 - strength),
    1 + strength); the reference is black for brightness, the image's mean grey for contrast, and
    each pixel's grey for saturation. Images have 1 or 3 channels.
    """
    strength = np.array([brightness, contrast, saturation], np.float32)
    if (strength < 0).any():
        raise ValueError(f"jitter strengths are {strength.tolist()}; use numbers from 0 (none)")

    def transform_one(image, key):
        order_key, factor_key = jax.random.split(key)
        low, high = np.maximum(0, 1 - strength), 1 + strength
        factor = jax.random.uniform(factor_key, (3,), minval=low, maxval=high)
        for i in jax.random.permutation(order_key, 3):
            grey = _grey(image)  # [H, W, 1]
            reference = jnp.stack([jnp.zeros_like(grey), jnp.full_like(grey, grey.mean()), grey])
            image = jnp.clip(factor[i] * image + (1 - factor[i]) * reference[i], 0, scale)
        return image

    def transform(images, key):
        return jax.vmap(transform_one)(
            images.astype(jnp.float32), jax.random.split(key, len(images))
        )

    return transform


def resize(size: int) -> Transform:
    """Bilinear, in float32, to [B, size, size, C]; smoothed first where it shrinks, as PIL does."""

    def transform(images, key):
        shape = (len(images), size, size, images.shape[-1])
        return jax.image.resize(images.astype(jnp.float32), shape, "bilinear")

    return transform


def channel_statistics(
    images: np.ndarray, scale: float = 255
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel of images [n, H, W, C] / scale, for `normalise`."""
    pixels = images[..., 0].size
    mean = images.sum(axis=(0, 1, 2), dtype=np.float64) / pixels
    square = np.einsum("nhwc,nhwc->c", images, images, dtype=np.float64) / pixels
    std = np.sqrt(np.maximum(square - mean**2, 0))
    return tuple((mean / scale).tolist()), tuple((std / scale).tolist())


def _grey(image: jax.Array) -> jax.Array:
    """[H, W, 1 or 3] -> [H, W, 1]."""
    if image.shape[-1] == 1:
        return image
    return (image @ jnp.asarray(GREY))[..., None]
