"""Answers that are spans of a text: the loss of their ends, and how often they are right."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfed import lowrank
from jaxfed.algorithm import PyTree
from jaxfed.tasks import calls
from jaxfed.tasks.task import Task, check_complete, one_each
from jaxfed.tasks.tokens import began

NEVER = -1e9  # the logit of a token that no answer begins or ends at


def answer_span(
    model: Any,
    examples: dict,
    *,
    select: lowrank.Select = lowrank.everything,
    params: PyTree | None = None,
    dropout: float = 0.0,
    inputs: Sequence[str] = ("tokens", "types"),
) -> Task:
    """The loss of an answer's ends under a model of logits [B, L, 2], such as models.Span.

    `examples` have the arrays in `inputs`, the first of which is int [n, L]; "answerable" [n, L],
    1 for each token that an answer may have, and for the first, which stands for no answer; and
    "start" and "end", int [n], its first and last token. `squad.windows` makes them. The other
    arguments are as in `next_token`. With p(t) a softmax over answerable tokens and mask m [B],

        loss = sum_b m_b (-log p_start(start_b) - log p_end(end_b)) / (2 sum_b m_b)

    Evaluations give that loss; "exact", the share of examples of which the likeliest span is the
    marked one; and "overlap", the mean of 2 common / (tokens of both). They are of tokens in single
    windows: SQuAD's own measures are of texts, `squad.answers` and `scores.squad`. ValueError if
    the model's outputs are no such logits, an end is not answerable, or as in `next_token`.
    """

    def check(examples):
        for name in ("answerable", "start", "end"):
            check_complete(examples, inputs, name)
        _check_ends(*(np.asarray(examples[n]) for n in (inputs[0], "answerable", "start", "end")))
        logits = calls.output(model, list(one_each(examples, inputs).values()), keeps=False).shape
        if logits != (1, np.shape(examples[inputs[0]])[1], 2):
            raise ValueError(
                f"the model makes {logits} of tokens {(1, *np.shape(examples[inputs[0]])[1:])}; "
                "answer_span wants a model of logits [B, L, 2], such as models.Span(encoder)"
            )

    init, predict, check_others = began(
        model, examples, check, select=select, params=params, dropout=dropout, inputs=inputs
    )

    def compared(base, theta, batch, key=None):
        """(losses [B], logits of the first token [B, L], of the last)."""
        logits = predict(base, theta, batch, key)
        both = jnp.where(batch["answerable"][..., None] > 0, logits, NEVER)
        ends = zip((both[..., 0], both[..., 1]), ("start", "end"), strict=True)
        each = optax.softmax_cross_entropy_with_integer_labels
        losses = [each(z, batch[name]) for z, name in ends]
        return (losses[0] + losses[1]) / 2, both[..., 0], both[..., 1]

    def loss(base, theta, batch, key):
        losses, *_ = compared(base, theta, batch, key)
        return jnp.sum(losses * batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1)

    def evaluate(base, theta, batch):
        losses, first, last = compared(base, theta, batch)
        start, end = jax.vmap(likeliest)(first, last)
        exact = (start == batch["start"]) & (end == batch["end"])
        common = jnp.minimum(end, batch["end"]) - jnp.maximum(start, batch["start"]) + 1
        tokens = (end - start + 1) + (batch["end"] - batch["start"] + 1)
        sums = {"loss": losses, "exact": exact, "overlap": 2 * jnp.maximum(common, 0) / tokens}
        return {name: jnp.sum(x * batch["mask"]) for name, x in sums.items()}

    return Task(init, loss, evaluate, check_others, predict=predict, inputs=inputs)


def likeliest(first: jax.Array, last: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(i, j) of the largest first_i + last_j [L], with 1 <= i <= j, or i = j = 0: no answer."""
    inside = first.at[0].set(-jnp.inf)
    total = jax.lax.cummax(inside) + last  # [L], of the best span that ends there
    total = total.at[0].set(first[0] + last[0])
    end = jnp.argmax(total)
    place = jnp.arange(len(first))
    start = jnp.argmax(jnp.where((place > 0) & (place <= end), inside, -jnp.inf))
    return jnp.where(end == 0, 0, start), end


def _check_ends(
    tokens: np.ndarray, answerable: np.ndarray, start: np.ndarray, end: np.ndarray
) -> None:
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"tokens are {tokens.dtype} {tokens.shape}; give integers [n, L]")
    if answerable.shape != tokens.shape:
        raise ValueError(
            f"answerable is {answerable.shape} beside tokens {tokens.shape}; give 0 or 1 a token"
        )
    for name, place in (("start", start), ("end", end)):
        if place.shape != (len(tokens),) or not np.issubdtype(place.dtype, np.integer):
            raise ValueError(f"{name} is {place.dtype} {place.shape}; give one integer an example")
        inside = (place >= 0) & (place < tokens.shape[1])
        held = answerable[np.arange(len(tokens)), np.where(inside, place, 0)] > 0
        if len(wrong := np.flatnonzero(~(inside & held))):
            raise ValueError(
                f"{name} is {place[wrong[0]]} in row {wrong[0]}, where no answer can be "
                f"({len(wrong)} such rows); give an answerable token, or 0 for no answer"
            )
    if len(wrong := np.flatnonzero(end < start)):
        raise ValueError(
            f"the answer in row {wrong[0]} ends at {end[wrong[0]]}, before its start "
            f"{start[wrong[0]]}; give its first and its last token"
        )
