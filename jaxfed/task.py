"""A task: a model, its loss, and what of it is trained."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfed import lowrank
from jaxfed.algorithm import PyTree


class Task(NamedTuple):
    """Pure functions of the frozen part `base`, the trained part `theta`, and a batch.

    A batch is a dict of example arrays [B, ...] and `mask` [B], one for a real example.
    """

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    """key -> (base, theta)."""

    loss: Callable[[PyTree, PyTree, dict, jax.Array], jax.Array]
    """(base, theta, batch, key) -> the mean loss over the batch's real examples."""

    evaluate: Callable[[PyTree, PyTree, dict], dict]
    """(base, theta, batch) -> {name: sum over the batch's real examples}."""

    check: Callable[[dict], None] = lambda examples: None
    """examples [n, ...] -> nothing; raises ValueError if they do not fit the model."""


def classification(
    model: Any,
    examples: dict,
    *,
    select: lowrank.Select = lowrank.everything,
    preprocess: Callable | None = None,
    augment: Callable | None = None,
    dropout: float = 0.0,
    image: str = "image",
    label: str = "label",
) -> Task:
    """Cross-entropy and accuracy of a flax.linen model that maps inputs [B, ...] to logits [B, C].

    `examples` tells shapes, types and labels ({"image": [n, ...], "label": [n]}, say the test set).
    `preprocess(x, key)` is applied always, `augment(x, key)` before it in training only, both
    inside the jitted round. `dropout` acts on the low-rank path. The model is called with
    train=... and mask=... if it has such arguments, and with an rng "dropout" in training.
    Raises ValueError if labels do not fit the model's outputs, or the selection does not fit.
    """
    accepted = inspect.signature(model.__call__).parameters

    def inputs(x, key):
        return x if preprocess is None else preprocess(x, key)

    def options(train: bool, mask: jax.Array) -> dict:
        return {n: v for n, v in (("train", train), ("mask", mask)) if n in accepted}

    def init(key):
        model_key, factor_key = jax.random.split(key)
        x = inputs(jnp.asarray(examples[image][:1]), key)
        params = model.init(model_key, x)["params"]
        return lowrank.split(params, lowrank.layers(model, x), select, factor_key)

    def loss(base, theta, batch, key):
        augment_key, dropout_key, preprocess_key = jax.random.split(key, 3)
        x = batch[image] if augment is None else augment(batch[image], augment_key)
        logits = lowrank.apply(
            model,
            base,
            theta,
            inputs(x, preprocess_key),
            dropout=dropout,
            key=dropout_key,
            rngs={"dropout": dropout_key},
            **options(True, batch["mask"]),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[label])  # [B]
        return jnp.sum(losses * batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1)

    def evaluate(base, theta, batch):
        x = inputs(batch[image], jax.random.key(0))
        logits = lowrank.apply(model, base, theta, x, **options(False, batch["mask"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[label])  # [B]
        right = jnp.argmax(logits, axis=-1) == batch[label]
        return {"loss": jnp.sum(losses * batch["mask"]), "accuracy": jnp.sum(right * batch["mask"])}

    def check(examples):
        def logits(x, key):
            return model.init_with_output(key, inputs(x, key))[0]

        _check(logits, examples, image, label)

    check(examples)
    jax.eval_shape(init, jax.random.key(0))  # raises ValueError if the selection does not fit
    return Task(init, loss, evaluate, check)


def _check(logits: Callable, examples: dict, image: str, label: str) -> None:
    """Raises ValueError if the examples do not fit `logits`, a function of inputs and a key."""
    if missing := {image, label} - set(examples):
        raise ValueError(f"the examples have no {sorted(missing)}; they have {sorted(examples)}")
    labels = np.asarray(examples[label])
    x = jax.ShapeDtypeStruct((1, *examples[image].shape[1:]), examples[image].dtype)
    shape = jax.eval_shape(logits, x, jax.random.key(0)).shape
    if len(shape) != 2 or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"classification wants logits [B, C] and integer labels [n]; got logits {shape} and "
            f"labels {labels.shape} of {labels.dtype}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < shape[1]:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but the model has {shape[1]} "
            "outputs; give the model as many classes as there are labels"
        )
