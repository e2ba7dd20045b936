"""ResNets for small images: He et al. 2016, with a 3 x 3 stem of stride 1 and no max-pool.

Parameter paths are `stem`, `norm_stem`, `layer<1-4>_<block>/conv_0|conv_1|conv_down`,
`layer<1-4>_<block>/norm_0|norm_1|norm_down` and `head`. So `^layer.*conv` selects every convolution
except the stem, and `norm` every normalisation.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfed.models import conv, fields
from jaxfed.models.layers import running_norm


class Initialisers(NamedTuple):
    """Initialisers of convolutions, of the head's kernel and of the norms' scales; biases are 0."""

    conv: nn.initializers.Initializer
    head: nn.initializers.Initializer
    scale: nn.initializers.Initializer


def _scale_around_one(key, shape, dtype=jnp.float32):
    return 1 + jax.random.normal(key, shape, dtype)


_xavier_normal = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")

INITIALISERS = {
    "he": Initialisers(
        nn.initializers.he_normal(), nn.initializers.lecun_normal(), nn.initializers.ones
    ),
    # As in the code of FedLoRU's authors: Xavier kernels, and scales drawn from N(1, 1).
    "fedloru": Initialisers(_xavier_normal, _xavier_normal, _scale_around_one),
}


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) of each example's channels in `groups` groups.

    x [B, ..., C] -> scale * (x - mean) / sqrt(variance + epsilon) + bias, with mean and variance
    over the positions and the C / groups channels of a group. `mask` is ignored, because examples
    do not interact.
    """

    groups: int
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        batch, channels = x.shape[0], x.shape[-1]
        if channels % self.groups:
            raise ValueError(
                f"{channels} channels do not divide into {self.groups} groups; use a divisor"
            )
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        positions = tuple(range(1, x.ndim - 1))

        def group_mean(x: jax.Array) -> jax.Array:
            # Positions first, then the few channels of a group: with gradients on the CPU this is a
            # sixth faster than one sum over both, whose axes are not adjacent.
            channel = jnp.mean(x, positions, keepdims=True)  # [B, 1, 1, C]
            group = jnp.mean(channel.reshape(batch, self.groups, -1), -1)  # [B, G]
            return jnp.repeat(group, channels // self.groups, -1).reshape(channel.shape)

        centred = x - group_mean(x)
        variance = group_mean(jnp.square(centred))
        return centred * (scale * jax.lax.rsqrt(variance + self.epsilon)) + bias


class BatchStatisticsNorm(nn.Module):
    """Batch normalisation by the batch's own mean and variance, in training and in testing.

    x [B, ..., C] -> scale * (x - mean) / sqrt(variance + epsilon) + bias. There are no running
    statistics, so all state is parameters. `mask` [B] excludes padded examples.
    """

    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        channels = x.shape[-1:]
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        real = jnp.ones(len(x), x.dtype) if mask is None else mask.astype(x.dtype)
        weight = real / jnp.maximum(jnp.sum(real), 1) * (channels[0] / x[0].size)  # [B]
        mean = jnp.einsum("b,b...c->c", weight, x)
        variance = jnp.einsum("b,b...c->c", weight, jnp.square(x - mean))
        return (x - mean) * (scale * jax.lax.rsqrt(variance + self.epsilon)) + bias


class BasicBlock(nn.Module):
    """relu(norm(conv(relu(norm(conv(x))))) + shortcut(x)).

    The shortcut is a 1 x 1 convolution and a norm if the shapes differ, otherwise the identity.
    """

    width: int
    stride: int
    convolution: Callable[..., nn.Module]
    norm: Callable[..., nn.Module]

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        y = self.convolution(self.width, (3, 3), self.stride, name="conv_0")(x)
        y = nn.relu(self.norm(name="norm_0")(y, mask))
        y = self.convolution(self.width, (3, 3), name="conv_1")(y)
        y = self.norm(name="norm_1")(y, mask)
        if x.shape != y.shape:
            x = self.convolution(self.width, (1, 1), self.stride, padding=0, name="conv_down")(x)
            x = self.norm(name="norm_down")(x, mask)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Images [B, H, W, channels] -> logits [B, classes].

    `blocks` and `widths` are the numbers of basic blocks and of channels in each stage. Every stage
    except the first halves height and width. `norm="group"` has `groups` groups. `norm="batch"`
    uses the batch's own statistics, also in testing, as FedLoRU's authors do; `norm="running"` is
    the usual batch norm, with running statistics in testing.
    """

    blocks: Sequence[int]
    classes: int
    widths: Sequence[int] = (64, 128, 256, 512)
    norm: Literal["group", "batch", "running"] = "group"
    groups: int = 32
    initialiser: Literal["he", "fedloru"] = "he"

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for sizes that no model can have."""
        fields.check(self)
        if len(self.blocks) != len(self.widths):
            raise ValueError(
                f"blocks={self.blocks} are of {len(self.blocks)} stages, widths={self.widths} of "
                f"{len(self.widths)}; give one each"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        init = INITIALISERS[self.initialiser]
        convolution = partial(
            nn.Conv,
            padding=1,
            use_bias=False,
            kernel_init=init.conv,
            conv_general_dilated=conv.convolve,
        )
        norms: dict[str, Callable] = {
            "group": partial(GroupNorm, self.groups),
            "batch": BatchStatisticsNorm,
            "running": partial(running_norm, train=train),
        }
        norm = partial(norms[self.norm], scale_init=init.scale)
        x = convolution(self.widths[0], (3, 3), name="stem")(x)
        x = nn.relu(norm(name="norm_stem")(x, mask))
        for stage, (count, width) in enumerate(zip(self.blocks, self.widths, strict=True), 1):
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                x = BasicBlock(width, stride, convolution, norm, name=f"layer{stage}_{i}")(x, mask)
        x = jnp.mean(x, (1, 2))  # [B, C]
        return nn.Dense(self.classes, kernel_init=init.head, name="head")(x)


resnet10 = partial(ResNet, (1, 1, 1, 1))
resnet18 = partial(ResNet, (2, 2, 2, 2))
resnet34 = partial(ResNet, (3, 4, 6, 3))
