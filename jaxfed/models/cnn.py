"""The FEMNIST convolutional network of LEAF (Caldas et al. 2018), as Reddi et al. 2021 use it."""

from functools import partial

import flax.linen as nn
import jax

from jaxfed.models import conv, fields


class FemnistCNN(nn.Module):
    """Images [B, 28, 28, 1] -> logits [B, classes].

    Two 3 x 3 convolutions without padding (32 and 64 channels), a 2 x 2 max-pool, a dense layer of
    width 128, and the head. With dropout, `train=True` needs the key stream "dropout".
    """

    classes: int = 62
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for sizes that no model can have."""
        fields.check(self)
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        convolution = partial(
            nn.Conv,
            kernel_size=(3, 3),
            padding="VALID",
            conv_general_dilated=conv.convolve,
        )
        drop = partial(nn.Dropout, self.dropout, deterministic=not train)
        x = nn.relu(convolution(32, name="conv_0")(x))  # [B, 26, 26, 32]
        x = convolution(64, name="conv_1")(x)  # [B, 24, 24, 64]
        x = nn.relu(conv.max_pool_2x2(x))  # ReLU and max commute: a quarter of the work
        x = drop(name="dropout_0")(x.reshape(x.shape[0], -1))  # [B, 9216]
        x = nn.relu(nn.Dense(128, name="dense_0")(x))
        return nn.Dense(self.classes, name="head")(drop(name="dropout_1")(x))
