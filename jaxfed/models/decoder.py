"""Text decoders: GPT-2 (Radford et al. 2019) and the LLaMA kind (Touvron et al., arXiv 2302.13971).

Parameter paths are `token|position/embedding`, `layers/norm_0`, `layers/query|key|value|out`,
`layers/norm_1`, `layers/gate|up|down` (only the LLaMA kind has `gate`), `norm` and, unless it is
the tokens' table, `head/kernel`. Layers are stacked: `layers/query/kernel` is [depth, d, heads h],
and factors beside it are stacked likewise. So `query|value` selects the usual layers for LoRA.
"""

import inspect
from typing import Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxfed.models import fields
from jaxfed.models.layers import ACTIVATIONS, multiplied, narrowed, stored_as


class Cache(NamedTuple):
    """Keys and values of earlier tokens, in T slots, for decoding token by token."""

    keys: jax.Array  # [depth, B, T, groups, h]
    values: jax.Array  # [depth, B, T, groups, h]
    places: jax.Array  # int32 [B, T], positions within their texts
    segments: jax.Array  # int32 [B, T], zero where there is no token


class Scaling(NamedTuple):
    """How rotary positions are slowed down for longer texts."""

    factor: float
    low: float
    high: float
    positions: int  # of the training before


QKV = ("query", "key", "value")

FEW = 5  # layers that are compiled one by one


class Layer(nn.Module):
    """Causal self-attention and a feed-forward part, each after a norm and added to its input."""

    kind: str
    width: int
    heads: int
    groups: int | None
    head_width: int | None
    feedforward: int
    bias: str
    head_norms: bool
    rotary_base: float
    rotary_scaling: Scaling | None
    epsilon: float
    activation: str
    dtype: DTypeLike | None
    compute: DTypeLike | None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        past: tuple[jax.Array, jax.Array] | None,
        places: jax.Array,
        allowed: jax.Array,
        at: jax.Array | int,
    ) -> tuple[jax.Array, tuple]:
        """(outputs [B, Q, d], the new (keys, values) [B, Q, groups, h]) for inputs [B, Q, d].

        `past` are keys and values [B, T, groups, h], in which the new ones take the slots from `at`
        on; without it, the outputs are attended over themselves and the second result is (). Input
        q attends to the slots where `allowed` [B, 1, Q, T] is True.
        """
        plain, h = self.kind == "gpt2", self.head_width or self.width // self.heads

        def dense(name: str, width: int, x: jax.Array) -> jax.Array:
            biased = self.bias == "all" or (self.bias == "qkv" and name in QKV)
            options = multiplied(self.dtype, self.compute)
            return narrow(nn.Dense(width, use_bias=biased, name=name, **options)(x))

        def narrow(x: jax.Array) -> jax.Array:
            return narrowed(self.compute, x)

        def heads(name: str, count: int) -> jax.Array:
            z = dense(name, count * h, y).reshape(*y.shape[:2], count, h)  # [B, Q, count, h]
            if self.head_norms and name != "value":
                z = norm(self, f"{name}_norm", z)
            return z if plain or name == "value" else rotated(z, angle)

        angle = places[..., None, None] * speeds(h, self.rotary_base, self.rotary_scaling)
        y = narrow(norm(self, "norm_0", x))
        groups = self.groups or self.heads
        q, k, v = heads("query", self.heads), heads("key", groups), heads("value", groups)
        q, k, v = (z.astype(self.compute or self.dtype or z.dtype) for z in (q, k, v))
        new = () if past is None else (k, v)
        if past is not None:
            update = jax.lax.dynamic_update_slice_in_dim
            k, v = (update(old, z, at, axis=1) for old, z in zip(past, new, strict=True))
        attended = jax.nn.dot_product_attention(q, k, v, mask=allowed)  # [B, Q, heads, h]
        x = x + dense("out", self.width, attended.reshape(*x.shape[:2], -1))
        y, act = narrow(norm(self, "norm_1", x)), ACTIVATIONS[self.activation]
        up = dense("up", self.feedforward, y)
        hidden = act(up) if plain else act(dense("gate", self.feedforward, y)) * up
        return x + dense("down", self.width, hidden), new


def norm(of: "Layer | Decoder", name: str, x: jax.Array) -> jax.Array:
    """LayerNorm for GPT-2, RMSNorm for the LLaMA kind, in float32."""
    if of.kind == "gpt2":
        return nn.LayerNorm(of.epsilon, use_fast_variance=False, name=name)(x)
    return nn.RMSNorm(of.epsilon, use_fast_variance=False, name=name)(x)


def speeds(width: int, base: float, scaling: Scaling | None) -> jax.Array:
    """By how much each plane of a head turns from one place to the next, radians [width / 2].

    base^(-2 i / width), as in RoFormer (arXiv 2104.09864). With `scaling`, planes that turn less
    than `low` times in `positions` places are slowed down by `factor`, those with more than `high`
    turns are left alone, and between them is a linear passage (Llama 3.1's).
    """
    half = width // 2
    plain = base ** (-jnp.arange(half) / half)
    if scaling is None:
        return plain
    turns = scaling.positions * plain / (2 * jnp.pi)
    kept = jnp.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)
    return plain * (kept + (1 - kept) / scaling.factor)


def rotated(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Vectors [B, Q, heads, h] turned by angles [B, Q, 1, h / 2].

    Entries i and i + h / 2 are a plane, as in Hugging Face's checkpoints.
    """
    half = x.shape[-1] // 2
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


class Table(nn.Embed):
    """An embedding that is also the head: it multiplies as it is stored and sums in float32."""

    def attend(self, query: jax.Array) -> jax.Array:
        """Logits [..., vocabulary] of vectors [..., d]."""
        table = self.embedding
        axes = (((query.ndim - 1,), (1,)), ((), ()))
        query = query.astype(table.dtype)
        return jax.lax.dot_general(query, table, axes, preferred_element_type=jnp.float32)


class Decoder(nn.Module):
    """Tokens [B, L] -> logits [B, L, vocabulary] of the token that follows each.

    A token attends to itself and to earlier tokens of its segment. `segments` [B, L] numbers the
    texts of a row from 1, with 0 for padding on either side; positions run from 0 in each text.
    Without it each row is one text, and padding at its end changes nothing before it.

    `kind` "gpt2" has learned positions, LayerNorm and two dense layers; "llama" has rotary
    positions, RMSNorm and three, act(gate) * up. `groups` are the heads of keys and values, each
    for as many heads of queries, `head_width` is their width (width / heads), `bias` says which
    dense layers have one, and `head_norms=True` puts a norm on each query and key (Qwen3's). With
    `window`, a token sees so many tokens, itself included (Mistral's). `tied=True` makes the
    tokens' table the head. `positions` is the longest text, also for rotary positions.

    `dtype=jnp.bfloat16` is for frozen weights: the type of the token table, of dense weights and of
    their products and attention's; sums and all other weights are float32.
    `compute=jnp.bfloat16` also keeps activations inside of layers in that type; norms, softmax,
    the sums of layers and all that is trained stay float32. `remat=True` keeps only each layer's
    input for the gradient and computes the rest again. Raises ValueError for a text
    longer than the positions, and for heads that do not divide.
    """

    vocabulary: int
    width: int
    depth: int
    heads: int
    feedforward: int
    positions: int
    kind: Literal["gpt2", "llama"]
    groups: int | None = None
    head_width: int | None = None
    bias: Literal["all", "qkv", "none"] = "none"
    head_norms: bool = False
    tied: bool = True
    rotary_base: float = 10000.0
    rotary_scaling: Scaling | None = None
    window: int | None = None
    epsilon: float = 1e-5
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "silu"
    dtype: DTypeLike | None = None
    compute: DTypeLike | None = None
    remat: bool = False

    def __post_init__(self) -> None:
        """Raises TypeError or ValueError for sizes that no model can have."""
        fields.check(self)
        if self.head_width is None and self.width % self.heads:
            raise ValueError(
                f"{self.heads} heads do not divide a width of {self.width}; use a divisor"
            )
        if self.heads % (self.groups or 1):
            raise ValueError(
                f"{self.groups} groups do not divide {self.heads} heads; use a divisor"
            )
        if self.kind == "llama" and self.each_head % 2:
            raise ValueError(
                f"heads of width {self.each_head} cannot be turned in pairs; use an even width"
            )
        super().__post_init__()

    @property
    def each_head(self) -> int:
        """The width of a head, h."""
        return self.head_width or self.width // self.heads

    def __call__(self, tokens: jax.Array, segments: jax.Array | None = None) -> jax.Array:
        """Logits [B, L, vocabulary]."""
        length = tokens.shape[-1]
        self._check_length(length)
        if segments is None:
            segments = jnp.ones((1, length), jnp.int32)
        places, slots = within(segments), jnp.arange(length)
        allowed = self._allowed(slots, places, segments, places, segments)
        return self._logits(tokens, places, allowed)[0]

    def extend(
        self,
        tokens: jax.Array,
        places: jax.Array,
        segments: jax.Array,
        cache: Cache,
        at: jax.Array,
        read: jax.Array,
    ) -> tuple[jax.Array, Cache]:
        """(logits [B, vocabulary] at column `read` [B], the cache with these tokens in it).

        The tokens [B, Q], with their places and segments, take the slots from `at` on; use
        apply(..., method="extend").
        """
        self._check_length(cache.places.shape[-1])
        update = jax.lax.dynamic_update_slice_in_dim
        known = update(cache.places, places, at, axis=1), update(cache.segments, segments, at, 1)
        slots = at + jnp.arange(tokens.shape[-1])
        allowed = self._allowed(slots, places, segments, *known)
        past = cache.keys, cache.values
        logits, new = self._logits(tokens, places, allowed, past, at, read)
        keys, values = (update(old, z, at, axis=2) for old, z in zip(past, new, strict=True))
        return logits, Cache(keys, values, *known)

    def cache(self, batch: int, size: int) -> Cache:
        """An empty cache of `size` slots for so many rows."""
        shape = (self.depth, batch, size, self.groups or self.heads, self.each_head)
        dtype = self.compute or self.dtype or jnp.float32
        none = jnp.zeros((batch, size), jnp.int32)
        return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), none, none)

    def _check_length(self, length: int) -> None:
        if length > self.positions:
            raise ValueError(
                f"texts of {length} tokens do not fit the model's {self.positions} positions; "
                "truncate them"
            )

    def _allowed(self, slots, places, segments, known_places, known_segments) -> jax.Array:
        """Which slots each token may attend to, bool [B, 1, Q, T]."""
        allowed = segments[:, :, None] == known_segments[:, None]  # [B, Q, T]
        allowed &= slots[:, None] >= jnp.arange(known_places.shape[-1])
        if self.window is not None:
            allowed &= places[:, :, None] - known_places[:, None] < self.window
        return allowed[:, None]

    @nn.compact
    def _logits(self, tokens, places, allowed, past=None, at=0, read=None):
        table = Table(
            self.vocabulary, self.width, param_dtype=self.dtype or jnp.float32, name="token"
        )
        x = table(tokens).astype(jnp.float32)  # [B, Q, d]
        if self.kind == "gpt2":
            x += nn.Embed(self.positions, self.width, name="position")(places)
        layers = nn.scan(
            nn.remat(Layer, prevent_cse=False) if self.remat else Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast),
            length=self.depth,
            # A CPU then copies nothing into and out of the stacks, and takes 14 % less time. Not
            # with `remat`: outside of a loop, XLA would keep what is to be computed again.
            unroll=self.depth if self.depth <= FEW and not self.remat else 1,
        )
        names = inspect.get_annotations(Layer).keys() - {"name", "parent"}
        of = {name: getattr(self, name) for name in names}
        x, new = layers(**of, name="layers")(x, past, places, allowed, at)
        if read is not None:
            x = jnp.take_along_axis(x, read[:, None, None], axis=1)[:, 0]  # [B, d]
        x = norm(self, "norm", x)
        if self.tied:
            return table.attend(x), new
        head = nn.Dense(self.vocabulary, use_bias=False, name="head", **stored_as(self.dtype))
        return head(x), new


def within(segments: jax.Array) -> jax.Array:
    """Each token's place in its own segment, from 0: int32 [B, L]."""
    i = jnp.arange(segments.shape[-1], dtype=jnp.int32)
    begins = segments != jnp.roll(segments, 1, axis=-1)
    first = jax.lax.cummax(jnp.where(begins & (i > 0), i, 0), axis=segments.ndim - 1)
    return i - first
