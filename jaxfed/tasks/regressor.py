"""Regression: least squares."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import lowrank
from jaxfed.tasks import calls
from jaxfed.tasks.task import Task, begun_at, check_complete, moving, one_each


def regression(
    model: Any,
    examples: dict,
    *,
    select: lowrank.Select = lowrank.everything,
    inputs: Sequence[str] = ("x",),
    target: str = "y",
) -> Task:
    """Least squares with a flax.linen model that maps inputs [B, ...] to predictions [B, n].

    The loss is 1/2 ||model(x) - y||^2, averaged over examples. `examples` tells shapes and types.
    The model gets the arrays named in `inputs`, and its switch, mask and rng "dropout" as in
    `classification`. Raises ValueError if the targets do not have the shape of the predictions, the
    selection does not fit, or `calls.check` refuses the model.
    """
    calls.check_kind(model)
    options = partial(calls.options, model)

    def init(key):
        model_key, factor_key = jax.random.split(key)
        x, quiet = [jnp.asarray(examples[name][:1]) for name in inputs], options(False, jnp.ones(1))
        params = begun_at(model, model_key, x, {}, quiet)
        return lowrank.split(params, lowrank.layers(model, *x, **quiet), select, factor_key)

    def called(run, base, theta, batch, key=None):
        given = options(key is not None, batch["mask"])
        rngs = {} if key is None else {"rngs": {"dropout": key}}
        return run(model, base, theta, *(batch[name] for name in inputs), **rngs, **given)

    def training(base, theta, batch, key):
        return called(partial(lowrank.trained, real=batch["mask"]), base, theta, batch, key)

    def predict(base, theta, batch, key=None):
        if key is None:
            return called(lowrank.apply, base, theta, batch)
        return training(base, theta, batch, key)[0]

    def features(base, theta, batch):
        found = called(lowrank.features, base, theta, batch)
        return found.reshape(len(found), -1)

    def halved_squares(said, batch):
        """Their sum over the batch's real examples."""
        return jnp.sum(jnp.sum((said - batch[target]) ** 2, axis=-1) * batch["mask"]) / 2

    def loss(base, theta, batch, key):
        said, statistics = training(base, theta, batch, key)
        mean = halved_squares(said, batch) / jnp.maximum(jnp.sum(batch["mask"]), 1)
        return moving(mean, theta, statistics)

    def evaluate(base, theta, batch):
        return {"loss": halved_squares(predict(base, theta, batch), batch)}

    def check(examples):
        check_complete(examples, inputs, target)
        one = calls.output(model, list(one_each(examples, inputs).values())).shape
        targets = np.shape(examples[target])
        found = (*targets[:1], *one[1:])
        if len(one) != 2 or found != targets:
            raise ValueError(
                f"regression wants predictions [B, n] and targets like them; got {found} and "
                f"targets {targets}"
            )

    check(examples)
    x = list(one_each(examples, inputs).values())
    base, theta = jax.eval_shape(init, jax.random.key(0))
    calls.check(model, base, theta, x)

    def check_others(examples):
        check(examples)
        calls.check_weights(model, base, theta, list(one_each(examples, inputs).values()))

    return Task(
        init,
        loss,
        evaluate,
        check_others,
        predict=predict,
        inputs=inputs,
        features=features,
        example=partial(dict, one_each(examples, inputs)),
    )
