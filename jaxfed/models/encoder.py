"""Text encoders: BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019).

Parameter paths are `token|position|type/embedding`, `norm`, `layer_<i>/query|key|value|out`,
`layer_<i>/norm_0`, `layer_<i>/up|down`, `layer_<i>/norm_1`, `head`, and the head's hidden layer:
`pooler` (BERT's, part of the checkpoint) or `head_dense` (RoBERTa's, not part of it). So in both,
`query|value` selects the usual layers for LoRA, and `^head` the layers that a task adds.
With `scanned=True` all layers but the last are a stack, `layers/query/kernel` [depth - 1, d, d] and
so on, and factors beside them are stacked likewise.

Options add `layer_<i>/adapter_<0|1>_narrow|wide` (bottlenecks: Houlsby et al. 2019) and
`layer_<i>/prefix_key|prefix_value` (prefixes: Li and Liang 2021).
"""

import inspect
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from jaxfed.models import fields
from jaxfed.models.layers import ACTIVATIONS, multiplied, narrowed

HIDDEN_HEAD = {"pooler": "pooler", "dense": "head_dense"}
KEPT = "kept"  # the name of what the gradient keeps of a layer, beside its input


class Layer(nn.Module):
    """Self-attention, then two dense layers, each followed by the residual sum and a norm."""

    width: int
    heads: int
    feedforward: int
    epsilon: float
    activation: str
    dropout: float
    dtype: DTypeLike | None
    adapter: int = 0
    prefix: int = 0
    compute: DTypeLike | None = None
    scanned: bool = False

    @property
    def sparing(self) -> bool:
        """Whether the gradient computes again what is not KEPT."""
        return self.scanned or self.compute is not None

    @nn.compact
    def __call__(
        self, x: jax.Array, every: jax.Array, real: jax.Array | None, train: bool
    ) -> jax.Array:
        """Outputs [B, Q, d] at the positions x [B, Q, d], which attend to `every` [B, L, d].

        `real` [B, L] is True for tokens and False for padding; None means no padding.
        """
        drop = nn.Dropout(self.dropout, deterministic=not train)

        def norm(name: str, x: jax.Array, y: jax.Array) -> jax.Array:
            total = (x if self.compute is None else x.astype(jnp.float32)) + y
            return narrow(nn.LayerNorm(self.epsilon, use_fast_variance=False, name=name)(total))

        def dense(width: int, name: str) -> nn.Dense:
            return nn.Dense(width, name=name, **multiplied(self.dtype, self.compute))

        def narrow(x: jax.Array) -> jax.Array:
            return narrowed(self.compute, x)

        def kept(x: jax.Array) -> jax.Array:
            return checkpoint_name(narrow(x), KEPT) if self.sparing else x

        def heads(name: str, x: jax.Array) -> jax.Array:
            y = narrow(dense(self.width, name)(x))
            return y.reshape(*y.shape[:2], self.heads, -1)  # [B, L, heads, d / heads]

        def prefixed(name: str, y: jax.Array) -> jax.Array:
            if not self.prefix:
                return y
            init = nn.initializers.normal(0.02)
            own = self.param(f"prefix_{name}", init, (self.prefix, self.width))
            own = jnp.broadcast_to(own, (len(y), *own.shape)).reshape(len(y), -1, *y.shape[2:])
            return jnp.concatenate([own.astype(y.dtype), y], axis=1)  # [B, P + L, heads, d / heads]

        def adapted(name: str, y: jax.Array) -> jax.Array:
            if not self.adapter:
                return y
            hidden = ACTIVATIONS[self.activation](nn.Dense(self.adapter, name=f"{name}_narrow")(y))
            zeros = nn.initializers.zeros
            return y + nn.Dense(self.width, kernel_init=zeros, name=f"{name}_wide")(hidden)

        q = heads("query", x)
        k, v = prefixed("key", heads("key", every)), prefixed("value", heads("value", every))
        sums = None if self.compute is None else jnp.float32
        score = jnp.einsum(  # [B, heads, Q, L]
            "bqhd,bkhd->bhqk", q * q.shape[-1] ** -0.5, k, preferred_element_type=sums
        )
        if real is not None:
            real = jnp.pad(real, ((0, 0), (self.prefix, 0)), constant_values=True)
            score = jnp.where(real[:, None, None], score, jnp.finfo(score.dtype).min)
        share = narrow(drop(nn.softmax(score)))
        attended = jnp.einsum("bhqk,bkhd->bqhd", share, v).reshape(x.shape)
        attended = adapted("adapter_0", dense(self.width, "out")(attended))
        x = norm("norm_0", x, drop(narrow(attended)))
        hidden = ACTIVATIONS[self.activation](kept(dense(self.feedforward, "up")(x)))
        hidden = adapted("adapter_1", dense(self.width, "down")(hidden))
        return norm("norm_1", x, drop(kept(hidden)))


class Encoder(nn.Module):
    """Tokens [B, L] and their types [B, L] -> logits [B, classes], from the first position.

    `positions` and `types` are the numbers of rows of these tables; `types=0` omits that table.
    Attention ignores tokens equal to `pad`; with `pad=None` every token is real. `counted=True`
    numbers the real tokens from pad + 1, as RoBERTa does; otherwise positions run from 0. `head` is
    "pooler" or "dense" (a hidden layer with tanh) or "linear" (no hidden layer). With `dropout`,
    `train=True` needs the key stream "dropout". Use `dtype=jnp.bfloat16` for frozen weights: it is
    the type of the token table and of the layers' dense weights and their products; sums and all
    other weights are float32. `adapter` is the width of a bottleneck after each sublayer's last
    dense layer, y + wide(activation(narrow(y))), which starts as the identity. `prefix` is a number
    of trained keys and values before the tokens' own in each layer. Zero is none.
    `compute=jnp.bfloat16` also keeps activations between layers' parts in that type; norms,
    softmax, residual sums and all that is trained stay float32. `scanned=True` stacks the layers'
    weights, so that one layer is compiled however deep the model; values are the same to rounding,
    while what is drawn (initial weights, dropout) differs. With either, the gradient keeps of a
    layer its input and what its last two dense layers make, and computes attention again;
    `remat=True` keeps the input alone. Raises ValueError for a text with more tokens than
    positions, and if `heads` does not divide `width`.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    feedforward: int
    positions: int
    classes: int
    types: int = 2
    pad: int | None = 0
    counted: bool = False
    head: Literal["pooler", "dense", "linear"] = "pooler"
    epsilon: float = 1e-12
    activation: Literal["gelu", "gelu_tanh", "relu"] = "gelu"
    dropout: float = 0.0
    dtype: DTypeLike | None = None
    adapter: int = 0
    prefix: int = 0
    compute: DTypeLike | None = None
    remat: bool = False
    scanned: bool = False

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for sizes that no model can have."""
        fields.check(self)
        super().__post_init__()

    def setup(self) -> None:
        """Creates the layers; ValueError if the options contradict each other."""
        if self.width % self.heads:
            raise ValueError(
                f"{self.heads} heads do not divide a width of {self.width}; use a divisor"
            )
        if self.counted and self.pad is None:
            raise ValueError("counted=True numbers the tokens that are not padding; give `pad`")
        self.token = nn.Embed(self.vocabulary, self.width, param_dtype=self.dtype or jnp.float32)
        self.position = nn.Embed(self.positions, self.width)
        if self.types:
            self.type = nn.Embed(self.types, self.width)
        self.norm = nn.LayerNorm(self.epsilon, use_fast_variance=False)
        names = inspect.get_annotations(Layer).keys() - {"name", "parent"}
        of = {name: getattr(self, name) for name in names}
        if self.scanned:
            self.layers = self._layer(prevent_cse=False)(**of)  # a loop separates its passes
        else:
            self.layer = [self._layer()(**of) for _ in range(self.depth - 1)]
        self.last = self._layer()(**of, name=f"layer_{self.depth - 1}")
        if self.head != "linear":
            self.hidden_head = nn.Dense(self.width, name=HIDDEN_HEAD[self.head])
        self.logits = nn.Dense(self.classes, name="head")
        self.drop = nn.Dropout(self.dropout)

    def __call__(
        self,
        tokens: jax.Array,
        types: jax.Array | None = None,
        *,
        train: bool = False,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """Logits [B, classes]. `mask` is ignored, because examples do not interact."""
        real = self._real(tokens)
        every = self._before_last(self._embed(tokens, types, train), real, train)
        # The head reads only the first position of the last layer, so only that one is computed.
        x = self.last(every[:, :1], every, real, train)[:, 0]  # [B, d]
        if self.compute is not None:
            x = x.astype(jnp.float32)
        if self.head != "linear":
            x = nn.tanh(self.hidden_head(x))
        return self.logits(self.drop(x, deterministic=not train))

    def hidden(
        self, tokens: jax.Array, types: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """The last layer's output at every position [B, L, d]; use apply(..., method="hidden")."""
        real = self._real(tokens)
        x = self._before_last(self._embed(tokens, types, train), real, train)
        return self.last(x, x, real, train)

    def _before_last(self, x: jax.Array, real: jax.Array | None, train: bool) -> jax.Array:
        """The last layer's input [B, L, d]."""
        if self.scanned and self.depth > 1:
            layers = nn.scan(
                lambda layer, x, _: (layer(x, x, real, train), None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth - 1,
            )
            return layers(self.layers, x, None)[0]
        for layer in () if self.scanned else self.layer:
            x = layer(x, x, real, train)
        return x

    def _layer(self, **options: Any) -> Any:
        """The class of layers, which compute again for the gradient what they do not keep."""
        if not (self.remat or self.scanned or self.compute is not None):
            return Layer
        policy = None if self.remat else jax.checkpoint_policies.save_only_these_names(KEPT)
        return nn.remat(Layer, static_argnums=(4,), policy=policy, **options)  # 4 is `train`

    def _real(self, tokens: jax.Array) -> jax.Array | None:
        return None if self.pad is None else tokens != self.pad

    def _embed(self, tokens: jax.Array, types: jax.Array | None, train: bool) -> jax.Array:
        length, first = tokens.shape[-1], (self.pad or 0) + 1 if self.counted else 0
        if length > self.positions - first:
            raise ValueError(
                f"texts of {length} tokens do not fit the model's {self.positions - first} "
                "positions; truncate them"
            )
        x = self.token(tokens) + self.position(self._places(tokens))  # [B, L, d]
        if self.types:
            x += self.type(jnp.zeros_like(tokens) if types is None else types)
        return narrowed(self.compute, self.drop(self.norm(x), deterministic=not train))

    def _places(self, tokens: jax.Array) -> jax.Array:
        """Each token's row in the table of positions; RoBERTa's padding has row `pad`."""
        if not self.counted:
            return jnp.arange(tokens.shape[-1])
        real = jnp.asarray(tokens != self.pad, jnp.int32)
        return jnp.cumsum(real, axis=-1) * real + (self.pad or 0)
