"""Classification: cross-entropy, accuracy and measures of a confusion matrix."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfed import lowrank
from jaxfed.algorithm import PyTree
from jaxfed.tasks.task import Task, begun_at, by_path, check_complete, means


def classification(
    model: Any,
    examples: dict,
    *,
    select: lowrank.Select = lowrank.everything,
    params: PyTree | None = None,
    measures: Sequence[Callable[[np.ndarray], np.ndarray]] = (),
    preprocess: Callable | None = None,
    augment: Callable | None = None,
    dropout: float = 0.0,
    inputs: Sequence[str] = ("image",),
    label: str = "label",
) -> Task:
    """Cross-entropy and accuracy of a flax.linen model that maps inputs [B, ...] to logits [B, C].

    `examples` tells shapes, types and labels ({"image": [n, ...], "label": [n]}, say the test set).
    The model is called with the arrays named in `inputs`, in this order (such as "tokens" and
    "types"), with train=... and mask=... if it has such arguments, and with an rng "dropout" in
    training. Of the inputs, `preprocess(x, key)` is applied to the first always, `augment(x, key)`
    before it in training only, both inside the jitted round. `dropout` acts on the low-rank path.

    The model starts at `params`, as far as they go (pretrained ones, say, without the head); what
    they lack is drawn. `measures` are functions of the confusion matrix, such as `matthews` and
    `f1`, evaluated beside loss and accuracy under their own names. Raises ValueError if labels do
    not fit the model's outputs, `params` not its weights, or the selection does not fit.
    """
    accepted = inspect.signature(model.__call__).parameters
    given = {} if params is None else by_path(params)

    def arguments(batch, key):
        first, *others = (batch[name] for name in inputs)
        return (first if preprocess is None else preprocess(first, key), *others)

    def options(train: bool, mask: jax.Array) -> dict:
        return {n: v for n, v in (("train", train), ("mask", mask)) if n in accepted}

    def init(key):
        model_key, factor_key = jax.random.split(key)
        x = arguments({name: jnp.asarray(examples[name][:1]) for name in inputs}, key)
        params = begun_at(model, model_key, x, given)
        return lowrank.split(params, lowrank.layers(model, *x), select, factor_key)

    def loss(base, theta, batch, key):
        augment_key, dropout_key, preprocess_key = jax.random.split(key, 3)
        if augment is not None:
            batch = {**batch, inputs[0]: augment(batch[inputs[0]], augment_key)}
        logits = lowrank.apply(
            model,
            base,
            theta,
            *arguments(batch, preprocess_key),
            dropout=dropout,
            key=dropout_key,
            rngs={"dropout": dropout_key},
            **options(True, batch["mask"]),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[label])  # [B]
        return jnp.sum(losses * batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1)

    def evaluate(base, theta, batch):
        x = arguments(batch, jax.random.key(0))
        logits = lowrank.apply(model, base, theta, *x, **options(False, batch["mask"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[label])  # [B]
        said, mask = jnp.argmax(logits, axis=-1), batch["mask"]
        sums = {"loss": jnp.sum(losses * mask), "accuracy": jnp.sum((said == batch[label]) * mask)}
        if measures:
            truth, said = (jax.nn.one_hot(x, logits.shape[-1]) for x in (batch[label], said))
            sums["confusion"] = jnp.einsum("b,bt,bs->ts", mask, truth, said)  # [C, C]
        return sums

    def summary(sums, count):
        found = means({name: sums[name] for name in ("loss", "accuracy")}, count)
        return found | {measure.__name__: measure(sums["confusion"]) for measure in measures}

    def check(examples):
        def logits(batch, key):
            return model.init_with_output(key, *arguments(batch, key))[0]

        classes = _check(logits, examples, inputs, label)
        for measure in measures:
            measure(np.zeros((classes, classes)))  # raises ValueError if it is of fewer

    check(examples)
    jax.eval_shape(init, jax.random.key(0))  # raises ValueError if the selection does not fit
    return Task(init, loss, evaluate, check, summary)


def _check(logits: Callable, examples: dict, inputs: Sequence[str], label: str) -> int:
    """How many classes `logits`, a function of a batch and a key, tells apart.

    Raises ValueError if the examples do not fit it.
    """
    check_complete(examples, inputs, label)
    labels = np.asarray(examples[label])
    found = {name: examples[name] for name in inputs}
    one = {n: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for n, x in found.items()}
    shape = jax.eval_shape(logits, one, jax.random.key(0)).shape
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
    return shape[1]
