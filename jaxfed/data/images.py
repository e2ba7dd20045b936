"""What is done to batches of images inside the jitted round.

Each factory returns `transform(images [B, H, W, C], key) -> images`, with draws of its own for each
example. Pixels keep their unit (0..255 as stored) until `normalise`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import values

Transform: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in torchvision


@dataclasses.dataclass(frozen=True)
class Chain:
    """Transforms one after the other, each with its own key; made by `chain`."""

    transforms: tuple[Transform, ...]

    def __call__(self, images: jax.Array, key: jax.Array) -> jax.Array:
        for i, one in enumerate(self.transforms):
            images = one(images, jax.random.fold_in(key, i))
        return images

    def check(self, images: np.ndarray) -> None:
        """Raises ValueError if one of the transforms does not expect the values of these images."""
        for one in self.transforms:
            if isinstance(one, Normalise | Chain):
                one.check(images)


def chain(*transforms: Transform) -> Chain:
    """The transforms one after the other, each with its own key."""
    for one in transforms:
        if not callable(one):
            raise TypeError(f"{one!r} is no transform; give functions of images and a key")
    return Chain(transforms)


@dataclasses.dataclass(frozen=True)
class Normalise:
    """(images / scale - mean) / std; made by `normalise` or `standardise`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float

    def __call__(self, images: jax.Array, key: jax.Array) -> jax.Array:
        """Float32; raises ValueError if images [B, H, W, C] have another number of channels."""
        check_layout(images.shape)
        if images.shape[-1] != len(self.mean):
            raise ValueError(
                f"images {images.shape[1:]} have {images.shape[-1]} channels, and mean={self.mean} "
                f"is of {len(self.mean)}; give one mean and one std a channel, in the last axis "
                "(images.standardise takes them from the data)"
            )
        x = images.astype(jnp.float32) / self.scale
        return (x - jnp.asarray(self.mean, jnp.float32)) / jnp.asarray(self.std, jnp.float32)

    def check(self, images: np.ndarray) -> None:
        """Raises ValueError if these images cannot be in the unit of `scale`.

        That is, if normalised they reach beyond 40 deviations, or all lie within one.
        """
        check_layout(images.shape)
        if not images.size:
            return
        low, high = float(np.min(images)), float(np.max(images))
        ends = (np.array([low, high]) / self.scale)[:, None]  # [2, 1]
        z = (ends - np.array(self.mean)) / np.array(self.std)  # [2, C]
        if low < high and (np.abs(z).max() > 40 or (z[1] - z[0]).max() < 1):
            raise ValueError(
                f"images run from {low:g} to {high:g}, which scale={self.scale:g} with "
                f"mean={self.mean} and std={self.std} makes {z.min():.3g} to {z.max():.3g}; give "
                "the scale of the images (their largest possible value), or use images.standardise"
            )


def check_layout(shape: tuple[int, ...]) -> None:
    """Raises ValueError if images of this shape are not [n, H, W, C]."""
    if len(shape) != 4:
        remedy = "give grey ones a last axis, x[..., None]" if len(shape) == 3 else "reshape them"
        raise ValueError(f"images are {shape}, not [n, H, W, C]; {remedy}")


def normalise(mean: Sequence[float], std: Sequence[float], scale: float = 255) -> Normalise:
    """(images / scale - mean) / std in float32; one mean and one std a channel.

    A task refuses examples of another number of channels, or of values that `scale` cannot fit.
    """
    means, stds = (values.array("mean or std", x, np.float64) for x in (mean, std))
    fit = means.ndim == stds.ndim == 1 and len(means) == len(stds) > 0
    if not fit or not np.isfinite([means, stds]).all() or (stds <= 0).any():
        raise ValueError(
            f"mean={mean} and std={std}; give both for each channel, finite and std above 0"
        )
    if values.number("scale", scale) <= 0:
        raise ValueError(f"scale={scale}; use a number above 0")
    return Normalise(tuple(means.tolist()), tuple(stds.tolist()), float(scale))


def standardise(images: np.ndarray) -> Normalise:
    """(images - mean) / std with each channel's own statistics in images [n, H, W, C].

    `standardise(source.train["image"])`, whatever their unit. Raises ValueError if a channel is
    constant.
    """
    return normalise(*channel_statistics(images, scale=1), scale=1)


def random_crop(padding: int) -> Transform:
    """A window of the image's own size, anywhere in it after zeros [padding] are put around it."""

    values.whole("padding", padding, 0)

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
    given = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    strength = np.array([values.number(n, v, 0) for n, v in given.items()], np.float32)
    if values.number("scale", scale) <= 0:
        raise ValueError(f"scale={scale}; use a number above 0")

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
    values.whole("size", size, 1)

    def transform(images, key):
        shape = (len(images), size, size, images.shape[-1])
        return jax.image.resize(images.astype(jnp.float32), shape, "bilinear")

    return transform


def channel_statistics(
    images: np.ndarray, scale: float = 255
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of each channel of images [n, H, W, C] / scale, for `normalise`."""
    images = values.array("images", images)
    check_layout(images.shape)
    if not images.size or values.number("scale", scale) <= 0:
        raise ValueError(
            f"images are {images.shape}, scale={scale}; give some, and a scale above 0"
        )
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
