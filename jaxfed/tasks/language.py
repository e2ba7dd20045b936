"""Language modelling: the loss of the next token, perplexity, and the share of tokens predicted."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jaxfed import lowrank
from jaxfed.algorithm import PyTree
from jaxfed.tasks import calls
from jaxfed.tasks.task import Task, check_complete, one_each
from jaxfed.tasks.tokens import began


def next_token(
    model: Any,
    examples: dict,
    *,
    select: lowrank.Select = lowrank.everything,
    params: PyTree | None = None,
    dropout: float = 0.0,
    inputs: Sequence[str] = ("tokens",),
    scored: str = "scored",
) -> Task:
    """The next token's loss under a model that maps tokens [B, L] to logits [B, L, vocabulary].

    `examples` have the tokens under the first name in `inputs`, int [n, L], and under `scored`
    [n, L] a 1 for each token that is to be predicted from those before it, and a 0 for the others:
    the source, padding, and the first token of a text. The model is called with the arrays in
    `inputs`, in that order (such as "tokens" and "segments"), and as in `classification` otherwise;
    `params` and `dropout` are as there. With s = scored and mask m [B],

        loss = sum_bt m_b s_bt (-log p(token_bt | tokens before)) / sum_bt m_b s_bt

    so in a batch every token counts the same, however long its text. Evaluations give that loss
    over all tokens, "perplexity" exp(loss), and "accuracy", the share of the tokens that were the
    likeliest. ValueError if the model's outputs are no such logits, tokens are outside its
    vocabulary, a row has no token to predict, or as in `classification`.
    """

    def check(examples):
        check_complete(examples, inputs, scored)
        tokens, weight = np.asarray(examples[inputs[0]]), np.asarray(examples[scored])
        _check_tokens(tokens, weight, inputs[0], scored)
        logits = calls.output(model, list(one_each(examples, inputs).values()), keeps=False).shape
        if len(logits) != 3 or logits[:2] != (1, tokens.shape[1]):
            raise ValueError(
                f"the model makes {logits} of tokens {(1, *tokens.shape[1:])}; next_token wants a "
                "model of logits [B, L, vocabulary], such as models.Decoder"
            )
        least, most = (tokens.min(), tokens.max()) if tokens.size else (0, 0)
        if not 0 <= least <= most < logits[2]:
            raise ValueError(
                f"tokens run from {least} to {most}, but the model's vocabulary has {logits[2]}; "
                "use the tokenizer that belongs to the model"
            )

    init, predict, check_others = began(
        model, examples, check, select=select, params=params, dropout=dropout, inputs=inputs
    )

    def compared(logits, batch):
        """(losses [B, L - 1], targets, weights of each) of the tokens from the second on."""
        target = batch[inputs[0]][:, 1:]
        weight = batch[scored][:, 1:] * batch["mask"][:, None]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], target)
        return losses, target, weight.astype(losses.dtype)

    def loss(base, theta, batch, key):
        losses, _, weight = compared(predict(base, theta, batch, key), batch)
        return jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1)

    def evaluate(base, theta, batch):
        logits = predict(base, theta, batch)
        losses, target, weight = compared(logits, batch)
        right = jnp.argmax(logits[:, :-1], axis=-1) == target
        return {
            "loss": jnp.sum(losses * weight),
            "accuracy": jnp.sum(right * weight),
            "tokens": jnp.sum(weight),
        }

    def summary(sums, count):
        tokens = np.maximum(sums["tokens"], 1)
        mean = sums["loss"] / tokens
        return {"loss": mean, "accuracy": sums["accuracy"] / tokens, "perplexity": np.exp(mean)}

    return Task(init, loss, evaluate, check_others, summary, predict, inputs)


def _check_tokens(tokens: np.ndarray, weight: np.ndarray, name: str, scored: str) -> None:
    if tokens.ndim != 2 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"{name} is {tokens.dtype} {tokens.shape}; give integers [n, L]")
    if weight.shape != tokens.shape:
        raise ValueError(
            f"{scored} is {weight.shape} beside {name} {tokens.shape}; give one number a token"
        )
    if (weight < 0).any():
        raise ValueError(f"{scored} has {weight.min()}; give 0 for tokens that do not count, or 1")
    if len(silent := np.flatnonzero(~weight[:, 1:].any(axis=1))):
        raise ValueError(
            f"row {silent[0]} has no token to predict after its first ({len(silent)} such rows); "
            f"leave it out, or mark some in {scored!r}"
        )
