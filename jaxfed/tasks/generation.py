"""Text from a decoder, inside jit, with a cache of keys and values.

    tokens = jax.jit(partial(generate, model, most=20, choose=greedy, key=key))(base, theta, prompt)

One call serves many clients: with factors of each, [K, ...], over one base,

    jax.vmap(partial(generate, model, base, most=20, choose=greedy, key=key))(thetas, prompts)

multiplies by the base's weights once for all of them. Prompts are int [B, P]; `real` [B, P] is
False for padding, which may stand on either side of a prompt. A row of the result [B, most] has the
new tokens; from the first that is `end` on, `fill`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfed import lowrank, values
from jaxfed.algorithm import PyTree

NEVER = -1e9  # the score of a beam that there is not


def greedy(logits: jax.Array, key: jax.Array) -> jax.Array:
    """The likeliest token [...] by logits [..., vocabulary]."""
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def sampled(
    *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(logits, key) -> a token drawn from softmax(logits / temperature), cut by `kept`."""
    if values.number("temperature", temperature) <= 0:
        raise ValueError(f"temperature={temperature}; use a number above 0, or tasks.greedy")
    if top_k is not None:
        values.whole("top_k", top_k, 1)
    if top_p is not None and not 0 < values.number("top_p", top_p) <= 1:
        raise ValueError(f"top_p={top_p}; use a share above 0, up to 1")

    def choose(logits, key):
        return jax.random.categorical(key, kept(logits / temperature, top_k, top_p))

    return choose


def kept(logits: jax.Array, top_k: int | None, top_p: float | None) -> jax.Array:
    """The logits [..., vocabulary] with -inf for tokens that cannot be drawn.

    First all but the `top_k` likeliest go, then those behind the fewest that have `top_p` of the
    remaining probability (nucleus sampling: Holtzman et al., ICLR 2020).
    """
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        share = jax.nn.softmax(ordered)
        inside = jnp.cumsum(share, axis=-1) - share < top_p  # what came before is not enough
        least = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits


def generate(
    model: Any,
    base: PyTree,
    theta: lowrank.Theta,
    prompt: jax.Array,
    *,
    most: int,
    choose: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    end: int | None = None,
    fill: int = 0,
    real: jax.Array | None = None,
) -> jax.Array:
    """New tokens [B, most], each by choose(logits [B, vocabulary], a key of its own).

    `choose` is `greedy`, or made by `sampled`; `model` is a models.Decoder. ValueError if prompt
    and new tokens do not fit the model's positions.
    """
    logits, cache, read = _begun(model, base, theta, prompt, real, most)

    def chosen(logits, t, ended):
        token = jnp.where(ended, fill, choose(logits, jax.random.fold_in(key, t)))
        return token, ended if end is None else ended | (token == end)

    def step(carry, t):
        cache, token, ended = carry
        logits, cache = read(cache, token, t - 1)
        token, ended = chosen(logits, t, ended)
        return (cache, token, ended), token

    first, ended = chosen(logits, 0, jnp.zeros(len(prompt), bool))
    _, rest = jax.lax.scan(step, (cache, first, ended), jnp.arange(1, most))
    return jnp.concatenate([first[None], rest]).T


def beam_search(
    model: Any,
    base: PyTree,
    theta: lowrank.Theta,
    prompt: jax.Array,
    *,
    most: int,
    beams: int,
    length_penalty: float = 1.0,
    no_repeat: int | None = None,
    end: int | None = None,
    fill: int = 0,
    real: jax.Array | None = None,
) -> jax.Array:
    """New tokens [B, most] of the best of the texts that a search with so many beams ends.

    A text's score is its log probability divided by n^length_penalty, for n new tokens, `end`
    included. Each step extends the beams to the 2 `beams` likeliest texts; those that end among the
    first half compete for the `beams` best ended ones, and the likeliest others go on. A row stops
    once it has as many ended texts and its likeliest open one, scored as if it ended there, is no
    better than the worst of them. These are the rules of transformers' `generate` by default.
    With `no_repeat` n, no n tokens in a row occur twice in a prompt and its text.
    """
    values.whole("beams", beams, 1)
    values.number("length_penalty", length_penalty)
    if no_repeat is not None:
        values.whole("no_repeat", no_repeat, 1)
    rows = len(prompt)
    logits, cache, read = _begun(model, base, theta, prompt, real, most, copies=beams)
    none = jnp.full((rows, beams, most), fill, jnp.int32)
    likely = jnp.full((rows, beams), NEVER).at[:, 0].set(0)  # the copies are one text at first
    never = jnp.full((rows, beams), NEVER)
    search = Search(none, likely, none, never, jnp.ones(rows, bool))
    barred = None if no_repeat is None else _barring(prompt, real, no_repeat)
    advance = partial(_advanced, length_penalty=length_penalty, end=end, barred=barred)

    def step(carry, t):
        search, cache, logits = carry
        search, parent = advance(search, logits, t)
        parents = (parent + beams * jnp.arange(rows)[:, None]).reshape(-1)
        logits, cache = read(_rows(cache, parents), search.tokens[..., t].reshape(-1), t)
        return (search, cache, logits), None

    carry, _ = jax.lax.scan(step, (search, cache, logits), jnp.arange(most - 1))
    search, _ = advance(carry[0], carry[2], most - 1, last=True)
    return search.ended[:, 0]


class Search(NamedTuple):
    """The state of a beam search, best first."""

    tokens: jax.Array  # [B, beams, most], of texts that go on
    likely: jax.Array  # [B, beams], their log probabilities
    ended: jax.Array  # [B, beams, most], texts that ended
    score: jax.Array  # [B, beams], of those
    better: jax.Array  # bool [B], whether one that goes on may still be


def _advanced(
    search: Search,
    logits: jax.Array,
    t: jax.Array | int,
    *,
    length_penalty: float,
    end: int | None,
    barred: Callable | None,
    last: bool = False,
) -> tuple[Search, jax.Array]:
    """(the search with new token t, which beam each text that goes on came from [B, beams])."""
    rows, beams, _ = search.tokens.shape
    each = jax.nn.log_softmax(logits).reshape(rows, beams, -1)  # [B, beams, vocabulary]
    if barred is not None:
        each = jnp.where(barred(search.tokens, t, each.shape[-1]), -jnp.inf, each)
    total = (search.likely[..., None] + each).reshape(rows, -1)
    likely, best = jax.lax.top_k(total, min(2 * beams, total.shape[-1]))
    parent, token = best // each.shape[-1], (best % each.shape[-1]).astype(jnp.int32)
    tokens = _taken(search.tokens, parent).at[..., t].set(token)
    over = jnp.full(token.shape, last) if end is None or last else token == end

    size = jnp.asarray(t + 1, jnp.float32) ** length_penalty
    counts = over & (jnp.arange(token.shape[-1]) < beams) & search.better[:, None]
    score = jnp.concatenate([search.score, jnp.where(counts, likely / size, NEVER)], axis=1)
    score, first = jax.lax.top_k(score, beams)
    ended = _taken(jnp.concatenate([search.ended, tokens], axis=1), first)

    likely, on = jax.lax.top_k(likely + jnp.where(over, NEVER, 0), beams)
    open_still = (score[:, -1] <= NEVER / 2) | (likely[:, 0] / size > score[:, -1])
    found = Search(_taken(tokens, on), likely, ended, score, search.better & open_still)
    return found, jnp.take_along_axis(parent, on, axis=1)


def _barring(prompt: jax.Array, real: jax.Array | None, n: int) -> Callable:
    """(tokens [B, beams, most], t, vocabulary) -> bool [B, beams, vocabulary].

    True for what would repeat n tokens of the prompt and the first t new ones.
    """
    length = prompt.shape[1]
    real = jnp.ones(prompt.shape, bool) if real is None else jnp.asarray(real, bool)
    ahead = jnp.take_along_axis(prompt, jnp.argsort(real, axis=1, stable=True), axis=1)
    first = length - jnp.sum(real, axis=1)  # [B], after the padding

    def barred(tokens, t, vocabulary):
        ours = jnp.broadcast_to(ahead[:, None], (*tokens.shape[:2], length))
        text = jnp.concatenate([ours.astype(tokens.dtype), tokens], axis=-1)
        each = partial(repeating, last=length + t, n=n, vocabulary=vocabulary)
        return jax.vmap(jax.vmap(each, in_axes=(0, None)))(text, first)

    return barred


def repeating(
    text: jax.Array, first: jax.Array, last: jax.Array | int, n: int, vocabulary: int
) -> jax.Array:
    """bool [vocabulary]: what would repeat n tokens in a row of text[first:last], if it came next.

    `text` is int [T]; `first` and `last` may be traced.
    """
    if n > len(text):
        return jnp.zeros(vocabulary, bool)
    begin = jnp.arange(len(text) - n + 1)
    window = text[begin[:, None] + jnp.arange(n)]  # [T - n + 1, n]
    tail = jax.lax.dynamic_slice(text, (last - n + 1,), (n - 1,))
    same = jnp.all(window[:, :-1] == tail, axis=1) & (begin >= first) & (begin + n <= last)
    return jnp.zeros(vocabulary, bool).at[window[:, -1]].max(same)


def _taken(x: jax.Array, rows: jax.Array) -> jax.Array:
    """x [B, n, ...] at rows [B, m] -> [B, m, ...]."""
    return jax.vmap(lambda x, rows: x[rows])(x, rows)


def _rows(cache: Any, rows: jax.Array) -> Any:
    """The cache with these rows of its own."""
    places, segments = cache.places[rows], cache.segments[rows]
    return type(cache)(cache.keys[:, rows], cache.values[:, rows], places, segments)


def _begun(
    model: Any,
    base: PyTree,
    theta: lowrank.Theta,
    prompt: jax.Array,
    real: jax.Array | None,
    most: int,
    copies: int = 1,
) -> tuple[jax.Array, Any, Callable]:
    """(logits [B copies, vocabulary] after the prompts, the cache, read).

    read(cache, token [B copies], t) -> (logits after it, the cache with it as new token t).
    """
    values.whole("most", most, 1)
    if prompt.ndim != 2 or not jnp.issubdtype(prompt.dtype, jnp.integer):
        raise ValueError(f"the prompt is {prompt.dtype} {prompt.shape}; give integers [B, P]")
    rows, length = prompt.shape
    extend = partial(lowrank.apply, model, base, theta, method="extend")
    real = jnp.ones((rows, length), bool) if real is None else jnp.asarray(real, bool)
    segments, first = real.astype(jnp.int32), jnp.argmax(real, axis=1)  # [B]
    count = jnp.sum(segments, axis=1)
    places = jnp.where(real, jnp.arange(length) - first[:, None], 0)
    cache = model.cache(rows, length + most - 1)
    logits, cache = extend(prompt, places, segments, cache, 0, first + count - 1)
    repeated = jnp.repeat(jnp.arange(rows), copies)
    count = count[repeated]

    def read(cache, token, t):
        one, zero = jnp.ones((len(token), 1), jnp.int32), jnp.zeros_like(token)
        return extend(token[:, None], (count + t)[:, None], one, cache, length + t, zero)

    return logits[repeated], _rows(cache, repeated), read
