"""Classification: cross-entropy, accuracy and measures of a confusion matrix."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfed import lowrank, trees, values
from jaxfed.algorithm import PyTree
from jaxfed.tasks import calls
from jaxfed.tasks.task import (
    Task,
    begun_at,
    check_complete,
    check_share,
    means,
    moving,
    one_each,
)


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
    "types"), with mask=... and a switch (train, training, is_training or deterministic) if it has
    such arguments, and with an rng "dropout" in training. Of the inputs, `preprocess(x, key)` is
    applied to the first always, `augment(x, key)` before it in training only, both inside the
    jitted round; if `preprocess` has a method `check(x)`, it sees the examples as they are.
    `dropout`, from 0 to below 1, acts on the low-rank path.

    The model starts at `params`, as far as they go (pretrained ones, say, without the head); what
    they lack is drawn. `measures` are functions of the confusion matrix, such as `matthews` and
    `f1`, evaluated beside loss and accuracy under their own names. Raises ValueError if labels do
    not fit the model's outputs, `params` not its weights, the selection does not fit, a layer's
    factors are not what they seem (`lowrank.check`), or the model's own dropout has no switch.
    """
    calls.check_kind(model)
    check_share("dropout", dropout)
    values.kind("measures", measures, Sequence, "several, such as (tasks.f1,)")
    for measure in measures:
        values.function("a measure", measure, "a function of the confusion matrix")
    for name, change in (("preprocess", preprocess), ("augment", augment)):
        if change is not None:
            values.function(name, change, "a function of images and a key")
    given = {} if params is None else trees.by_path(params)

    def arguments(batch, key):
        first, *others = (batch[name] for name in inputs)
        return (first if preprocess is None else preprocess(first, key), *others)

    options = partial(calls.options, model)

    def init(key):
        model_key, factor_key = jax.random.split(key)
        x = arguments({name: jnp.asarray(examples[name][:1]) for name in inputs}, key)
        quiet = options(False, jnp.ones(1))
        params = begun_at(model, model_key, x, given, quiet)
        return lowrank.split(params, lowrank.layers(model, *x, **quiet), select, factor_key)

    def quietly(run, base, theta, batch):
        x = arguments(batch, jax.random.key(0))
        return run(model, base, theta, *x, **options(False, batch["mask"]))

    def training(base, theta, batch, key):
        augment_key, dropout_key, preprocess_key = jax.random.split(key, 3)
        if augment is not None:
            batch = {**batch, inputs[0]: augment(batch[inputs[0]], augment_key)}
        return lowrank.trained(
            model,
            base,
            theta,
            *arguments(batch, preprocess_key),
            real=batch["mask"],
            dropout=dropout,
            key=dropout_key,
            rngs={"dropout": dropout_key},
            **options(True, batch["mask"]),
        )

    def predict(base, theta, batch, key=None):
        if key is None:
            return quietly(lowrank.apply, base, theta, batch)
        return training(base, theta, batch, key)[0]

    def features(base, theta, batch):
        found = quietly(lowrank.features, base, theta, batch)
        return found.reshape(len(found), -1)

    def loss(base, theta, batch, key):
        logits, statistics = training(base, theta, batch, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[label])  # [B]
        mean = jnp.sum(losses * batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1)
        return moving(mean, theta, statistics)

    def evaluate(base, theta, batch):
        logits = predict(base, theta, batch)
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

    def shapes(examples):
        x, key = one_each(examples, inputs), jax.random.key(0)
        if augment is not None:
            x = {**x, inputs[0]: calls.transformed("augment", augment, x[inputs[0]], key)}
        first, *others = (x[name] for name in inputs)
        if preprocess is not None:
            first = calls.transformed("preprocess", preprocess, first, key)
        return (first, *others)

    def check(examples):
        check_complete(examples, inputs, label)
        if looks := getattr(preprocess, "check", None):
            looks(examples[inputs[0]])
        classes = _classes(calls.output(model, shapes(examples)).shape, examples[label])
        for measure in measures:
            measure(np.zeros((classes, classes)))  # raises ValueError if it is of fewer

    check(examples)
    base, theta = jax.eval_shape(init, jax.random.key(0))
    calls.check(model, base, theta, shapes(examples))

    def check_others(examples):
        check(examples)
        calls.check_weights(model, base, theta, shapes(examples))

    one: Callable[[], dict] = partial(dict, one_each(examples, inputs))
    return Task(init, loss, evaluate, check_others, summary, predict, inputs, features, one)


def _classes(logits: tuple[int, ...], labels: Any) -> int:
    """How many classes logits of this shape tell apart; raises ValueError if labels do not fit."""
    labels = np.asarray(labels)
    if len(logits) != 2 or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"classification wants logits [B, C] and integer labels [n]; got logits {logits} and "
            f"labels {labels.shape} of {labels.dtype}"
        )
    least, most = (labels.min(), labels.max()) if labels.size else (0, 0)
    if least >= 0 and most < logits[1]:
        return logits[1]
    if least < 0:
        remedy = "leave such rows out, or number the labels from 0"
    elif most - least < logits[1]:
        remedy = f"subtract {least} from them, as they count from 0"
    else:
        remedy = "give the model as many classes as there are labels"
    raise ValueError(
        f"labels run from {least} to {most}, but the model has {logits[1]} outputs; {remedy}"
    )
