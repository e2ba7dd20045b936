"""A multi-layer perceptron."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from jaxfed.models import fields


class MLP(nn.Module):
    """[B, ...] -> logits [B, classes]: layers `dense_0`, `dense_1`, ... with ReLU, then `head`."""

    widths: Sequence[int]
    classes: int

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
            x = nn.relu(nn.Dense(width, name=f"dense_{i}")(x))
        return nn.Dense(self.classes, name="head")(x)
