"""A multi-layer perceptron."""

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax

from jaxfed.models import fields
from jaxfed.models.layers import running_norm


class MLP(nn.Module):
    """[B, ...] -> logits [B, classes]: layers `dense_0`, `dense_1`, ... with ReLU, then `head`.

    `norm="running"` puts a batch norm with running statistics before each ReLU: `norm_0`, ...
    """

    widths: Sequence[int]
    classes: int
    norm: Literal["none", "running"] = "none"

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for sizes that no model can have."""
        fields.check(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        x = x.reshape(x.shape[0], -1)
        for i, width in enumerate(self.widths):
            x = nn.Dense(width, name=f"dense_{i}")(x)
            if self.norm == "running":
                x = running_norm(f"norm_{i}", train=train)(x, mask)
            x = nn.relu(x)
        return nn.Dense(self.classes, name="head")(x)
