"""A vision transformer: Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021.

Parameter paths are `patches`, `first`, `position`, `layer_<i>/query|key|value|out|up|down`,
`layer_<i>/norm_0|norm_1`, `norm` and `head`. So `layer.*kernel` selects every dense kernel but the
head's. With `scanned=True` the layers are a stack, `layers/query/kernel` [depth, d, d] and so on,
and factors beside them are stacked likewise.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfed.models import fields
from jaxfed.models.layers import ACTIVATIONS


class Block(nn.Module):
    """Self-attention, then two dense layers, each after a norm and followed by the residual sum."""

    heads: int
    feedforward: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array, each: None = None) -> tuple[jax.Array, None]:
        """x [B, T, d] -> (outputs [B, T, d], None), as `nn.scan` asks; `each` is not used."""

        def norm(name: str) -> nn.LayerNorm:
            return nn.LayerNorm(self.epsilon, use_fast_variance=False, name=name)

        def heads(name: str) -> jax.Array:
            y = nn.Dense(x.shape[-1], name=name)(normed)
            return y.reshape(*y.shape[:2], self.heads, -1)  # [B, T, heads, d / heads]

        normed = norm("norm_0")(x)
        q, k, v = heads("query"), heads("key"), heads("value")
        attended = jax.nn.dot_product_attention(q, k, v)  # [B, T, heads, d / heads]
        x = x + nn.Dense(x.shape[-1], name="out")(attended.reshape(x.shape))
        hidden = ACTIVATIONS["gelu"](nn.Dense(self.feedforward, name="up")(norm("norm_1")(x)))
        return x + nn.Dense(x.shape[-1], name="down")(hidden), None


class ViT(nn.Module):
    """Images [B, H, W, C] -> logits [B, classes], from a first token beside those of the patches.

    A patch is `patch` pixels high and wide; `feedforward` is the width between the last two dense
    layers of a block. Positions are learned, so all images have one size. `scanned=True` stacks the
    layers' weights, so that one layer is compiled however deep the model; its initial weights are
    drawn by other keys. Raises ValueError if `heads` does not divide `width`, or if `patch` does
    not divide an image's height and width.
    """

    patch: int
    width: int
    depth: int
    heads: int
    feedforward: int
    classes: int
    epsilon: float = 1e-6
    scanned: bool = False

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for sizes that no model can have."""
        fields.check(self)
        if self.width % self.heads:
            raise ValueError(
                f"{self.heads} heads do not divide a width of {self.width}; use a divisor"
            )
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Logits [B, classes]; no dropout and no batch norm read `train` and `mask`."""
        if x.shape[1] % self.patch or x.shape[2] % self.patch:
            raise ValueError(
                f"images of {x.shape[1]} x {x.shape[2]} do not divide into patches of "
                f"{self.patch}; use a divisor of both"
            )
        size = (self.patch, self.patch)
        x = nn.Conv(self.width, size, size, name="patches")(x)
        x = x.reshape(len(x), -1, self.width)  # [B, T, d]
        init = nn.initializers.normal(0.02)
        first = jnp.broadcast_to(self.param("first", init, (self.width,)), (len(x), 1, self.width))
        x = jnp.concatenate([first, x], axis=1)  # [B, 1 + T, d]
        x = x + self.param("position", init, x.shape[1:])
        sizes = (self.heads, self.feedforward, self.epsilon)
        if self.scanned:
            stack = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = stack(*sizes, name="layers")(x, None)
        for i in range(0 if self.scanned else self.depth):
            x, _ = Block(*sizes, name=f"layer_{i}")(x)
        x = nn.LayerNorm(self.epsilon, use_fast_variance=False, name="norm")(x)
        return nn.Dense(self.classes, name="head")(x[:, 0])
