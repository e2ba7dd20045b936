"""Text encoders: BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019) and those built like them.

Parameter paths are `token|position|type/embedding`, `norm`, `layer_<i>/query|key|value|out`,
`layer_<i>/norm_0`, `layer_<i>/up|down`, `layer_<i>/norm_1`, `head`, and the head's hidden layer:
`pooler` (BERT's, part of the checkpoint) or `head_dense` (RoBERTa's, not part of it). So in both,
`query|value` selects the usual layers for LoRA, and `^head` the layers that a task adds.
ELECTRA's narrow tables have `project` after them; DeBERTa has `relative/embedding`,
`relative_norm` and, if it does not share them, `layer_<i>/place_key|place_query`.
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

from jaxfed.models import fields, relative
from jaxfed.models.layers import ACTIVATIONS, multiplied, narrowed
from jaxfed.models.relative import Relative

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
    relative: Relative | None = None

    @property
    def sparing(self) -> bool:
        """Whether the gradient computes again what is not KEPT."""
        return self.scanned or self.compute is not None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        every: jax.Array,
        real: jax.Array | None,
        train: bool,
        distances: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        """Outputs [B, Q, d] at the positions x [B, Q, d], which attend to `every` [B, L, d].

        `real` [B, L] is True for tokens and False for padding; None means no padding. `distances`
        are a table [R, d] and its row for each pair of positions [L, L], if they count.
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

        made: dict[str, nn.Dense] = {}

        def heads(name: str, x: jax.Array) -> jax.Array:
            made[name] = made.get(name) or dense(self.width, name)
            y = narrow(made[name](x))
            return y.reshape(*y.shape[:2], self.heads, -1)  # [B, L, heads, d / heads]

        q = heads("query", x)
        k, v = prefixed("key", heads("key", every)), prefixed("value", heads("value", every))
        sums = None if self.compute is None else jnp.float32
        kinds = self.relative.kinds if self.relative else ()
        by = relative.scale(kinds, q.shape[-1]) if self.relative else q.shape[-1] ** -0.5
        score = jnp.einsum("bqhd,bkhd->bhqk", q * by, k, preferred_element_type=sums)
        if self.relative and distances is not None:  # [B, heads, Q, L]
            table, rows = distances
            own = ("key", "query") if self.relative.shared else ("place_key", "place_query")
            key = heads(own[0], table[None])[0] if "c2p" in kinds else None
            query = heads(own[1], table[None])[0] * by if "p2c" in kinds else None
            score += relative.scores(q * by, k, key, query, rows[: x.shape[1]])
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


def layer(of: "Encoder", **options: Any) -> Any:
    """The class of an encoder's layers, which compute again for the gradient what they drop."""
    if not (of.remat or of.scanned or of.compute is not None):
        return Layer
    policy = None if of.remat else jax.checkpoint_policies.save_only_these_names(KEPT)
    return nn.remat(Layer, static_argnums=(4,), policy=policy, **options)  # 4 is `train`


def places(tokens: jax.Array, pad: int | None) -> jax.Array:
    """Each token's row in the table of positions, from 0, or of real tokens from pad + 1.

    With the latter, RoBERTa's, padding has row `pad`.
    """
    if pad is None:
        return jnp.arange(tokens.shape[-1])
    real = jnp.asarray(tokens != pad, jnp.int32)
    return jnp.cumsum(real, axis=-1) * real + pad


def check(of: "Encoder") -> None:
    """Raises ValueError if the options contradict each other."""
    if of.width % of.heads:
        raise ValueError(f"{of.heads} heads do not divide a width of {of.width}; use a divisor")
    if of.counted and of.pad is None:
        raise ValueError("counted=True numbers the tokens that are not padding; give `pad`")
    if of.relative and of.prefix:
        raise ValueError("prefix: a trained key has no position; leave it 0 with `relative`")


class Encoder(nn.Module):
    """Tokens [B, L] and their types [B, L] -> logits [B, classes], from the first position.

    `positions` and `types` are the numbers of rows of these tables; `types=0` omits that table.
    Attention ignores tokens equal to `pad`; with `pad=None` every token is real. `counted=True`
    numbers the real tokens from pad + 1, as RoBERTa does; otherwise positions run from 0. `head` is
    "pooler" or "dense" (a hidden layer with `head_activation`) or "linear" (no hidden layer).
    `embedding` is the tables' width if it is another than the layers'. With `relative`, distances
    enter the attention and there is no table of positions. With `dropout`, `train=True` needs the
    key stream "dropout". Use `dtype=jnp.bfloat16` for frozen weights: it is
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
    embedding: int | None = None
    relative: Relative | None = None
    head_activation: Literal["tanh", "gelu", "relu"] = "tanh"

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for sizes that no model can have."""
        fields.check(self)
        super().__post_init__()

    def setup(self) -> None:
        """Creates the layers; ValueError if the options contradict each other."""
        check(self)
        width = self.embedding or self.width
        self.token = nn.Embed(self.vocabulary, width, param_dtype=self.dtype or jnp.float32)
        if self.relative is None:
            self.position = nn.Embed(self.positions, width)
        else:
            self.distance = nn.Embed(2 * self.relative.span, self.width, name="relative")
            if self.relative.norm:
                self.relative_norm = nn.LayerNorm(self.epsilon, use_fast_variance=False)
        if self.types:
            self.type = nn.Embed(self.types, width)
        if self.embedding:
            self.project = nn.Dense(self.width)
        self.norm = nn.LayerNorm(self.epsilon, use_fast_variance=False)
        names = inspect.get_annotations(Layer).keys() - {"name", "parent"}
        of = {name: getattr(self, name) for name in names}
        if self.scanned:
            self.layers = layer(self, prevent_cse=False)(**of)  # a loop separates its passes
        else:
            self.layer = [layer(self)(**of) for _ in range(self.depth - 1)]
        self.last = layer(self)(**of, name=f"layer_{self.depth - 1}")
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
        every, seen = self._before_last(tokens, types, train)
        # The head reads only the first position of the last layer, so only that one is computed.
        x = self.last(every[:, :1], every, *seen)[:, 0]  # [B, d]
        if self.compute is not None:
            x = x.astype(jnp.float32)
        if self.head != "linear":
            act = nn.tanh if self.head_activation == "tanh" else ACTIVATIONS[self.head_activation]
            x = act(self.hidden_head(x))
        return self.logits(self.drop(x, deterministic=not train))

    def hidden(
        self, tokens: jax.Array, types: jax.Array | None = None, *, train: bool = False
    ) -> jax.Array:
        """The last layer's output at every position [B, L, d]; use apply(..., method="hidden")."""
        x, seen = self._before_last(tokens, types, train)
        return self.last(x, x, *seen)

    def _distances(self, length: int, train: bool) -> tuple[jax.Array, jax.Array] | None:
        """(the table's rows [R, d] that texts of this length use, numbers of rows [L, L])."""
        if self.relative is None:
            return None
        rows, numbers = self.relative.used(length)
        table = self.distance(rows)
        table = self.relative_norm(table) if self.relative.norm else table
        return narrowed(self.compute, self.drop(table, deterministic=not train)), numbers

    def _before_last(self, tokens, types, train) -> tuple[jax.Array, tuple]:
        """(the last layer's input [B, L, d], what each layer is called with beside its own)."""
        real = None if self.pad is None else tokens != self.pad
        seen = (real, train, self._distances(tokens.shape[-1], train))
        x = self._embed(tokens, types, train)
        if self.scanned and self.depth > 1:
            layers = nn.scan(
                lambda layer, x, _: (layer(x, x, *seen), None),
                variable_axes={"params": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth - 1,
            )
            return layers(self.layers, x, None)[0], seen
        for layer in () if self.scanned else self.layer:
            x = layer(x, x, *seen)
        return x, seen

    def _embed(self, tokens: jax.Array, types: jax.Array | None, train: bool) -> jax.Array:
        length, first = tokens.shape[-1], (self.pad or 0) + 1 if self.counted else 0
        if length > self.positions - first:
            raise ValueError(
                f"texts of {length} tokens do not fit the model's {self.positions - first} "
                "positions; truncate them"
            )
        x = self.token(tokens)  # [B, L, d]
        if self.relative is None:
            x = x + self.position(places(tokens, self.pad if self.counted else None))
        if self.types:
            x += self.type(jnp.zeros_like(tokens) if types is None else types)
        x = self.drop(self.norm(x), deterministic=not train)
        return narrowed(self.compute, self.project(x) if self.embedding else x)
