"""Linear regression or classification."""

import flax.linen as nn
import jax

from jaxfed.models import fields


class Linear(nn.Module):
    """x [B, d] -> x W [B, outputs], without a bias; W is `dense/kernel` and starts at zero."""

    outputs: int

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for sizes that no model can have."""
        fields.check(self)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros
        return nn.Dense(self.outputs, use_bias=False, kernel_init=zeros, name="dense")(x)
