"""Regression: least squares."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import lowrank
from jaxfed.tasks.task import Task, begun_at, check_complete


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
    Raises ValueError if the targets do not have the shape of the predictions, or the selection does
    not fit.
    """

    def init(key):
        model_key, factor_key = jax.random.split(key)
        x = [jnp.asarray(examples[name][:1]) for name in inputs]
        params = begun_at(model, model_key, x, {})
        return lowrank.split(params, lowrank.layers(model, *x), select, factor_key)

    def halved_squares(base, theta, batch):
        """Their sum over the batch's real examples."""
        said = lowrank.apply(model, base, theta, *(batch[name] for name in inputs))
        return jnp.sum(jnp.sum((said - batch[target]) ** 2, axis=-1) * batch["mask"]) / 2

    def loss(base, theta, batch, key):
        return halved_squares(base, theta, batch) / jnp.maximum(jnp.sum(batch["mask"]), 1)

    def evaluate(base, theta, batch):
        return {"loss": halved_squares(base, theta, batch)}

    def check(examples):
        check_complete(examples, inputs, target)
        x = [examples[name] for name in inputs]
        said, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), *x)
        if said.ndim != 2 or said.shape != np.shape(examples[target]):
            raise ValueError(
                f"regression wants predictions [B, n] and targets like them; got {said.shape} and "
                f"targets {np.shape(examples[target])}"
            )

    check(examples)
    jax.eval_shape(init, jax.random.key(0))  # raises ValueError if the selection does not fit
    return Task(init, loss, evaluate, check)
