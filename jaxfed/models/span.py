"""A text encoder that answers questions by a span of the text it reads."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class Span(nn.Module):
    """Tokens [B, L] and their types [B, L] -> logits [B, L, 2]: an answer's first and last token.

    `encoder` is a models.Encoder, or another with a method hidden(tokens, types, train=...) ->
    [B, L, d], whose own head is not used. Paths are the encoder's, without its head, and
    `head_span` (Devlin et al. 2019, section 4.2). Raises TypeError for a model without `hidden`.
    """

    encoder: Any

    def __post_init__(self) -> None:
        """Raises TypeError if the encoder gives no hidden outputs."""
        if not callable(getattr(self.encoder, "hidden", None)):
            raise TypeError(
                f"encoder is a {type(self.encoder).__name__}, which has no method `hidden`; give a "
                "models.Encoder"
            )
        super().__post_init__()

    def setup(self) -> None:
        """Creates the head, and the encoder's layers under their own paths."""
        nn.share_scope(self, self.encoder)
        self.head_span = nn.Dense(2)

    def __call__(
        self,
        tokens: jax.Array,
        types: jax.Array | None = None,
        *,
        train: bool = False,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Logits [B, L, 2]. `mask` is ignored, because examples do not interact."""
        hidden = self.encoder.hidden(tokens, types, train=train)  # [B, L, d]
        return self.head_span(hidden.astype(jnp.float32))
