"""A task of a user's own: sums that are none are refused before a round."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import models, tasks
from jaxfed.tasks import task

EXAMPLES = {"x": np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)}


def made(evaluate):
    return tasks.Task(lambda key: ((), jnp.ones(2)), None, evaluate)


def squares(theta, batch):
    return jnp.sum((batch["x"] - theta) ** 2, -1)


def sums(base, theta, batch):
    values = squares(theta, batch) * batch["mask"]
    return {"loss": values.sum(), "largest": jnp.sum(values > 1)}


def means(base, theta, batch):
    return {"loss": jnp.sum(squares(theta, batch) * batch["mask"]) / batch["mask"].sum()}


def unmasked(base, theta, batch):
    return {"loss": squares(theta, batch).sum()}


def counted_once(base, theta, batch):
    return {**sums(base, theta, batch), "batches": jnp.ones(())}


def test_sums_are_taken():
    task.check_sums(made(sums), EXAMPLES)


@pytest.mark.parametrize(
    ("evaluate", "match"),
    [
        (means, "evaluate gives 'loss' = .* let it return sums over the batch's real examples"),
        (unmasked, r"'loss' = .* jnp.sum\(values \* batch\[.mask"),
        (counted_once, "'batches' = 1 for 4 examples and 1 for the same ones twice"),
    ],
)
def test_what_does_not_add_up_over_examples_is_refused(evaluate, match):
    with pytest.raises(ValueError, match=match):
        task.check_sums(made(evaluate), EXAMPLES)


def test_the_package_s_own_tasks_sum():
    """So that they need no check."""
    for make in (tasks.classification, tasks.regression):
        rows = {"x": EXAMPLES["x"], "y": np.zeros((6, 3), np.float32)}
        options = {"inputs": ("x",)}
        if make is tasks.classification:
            rows, options = {**rows, "y": np.arange(6) % 3}, {**options, "label": "y"}
        own = make(models.MLP((), 3), rows, **options)
        renamed = own._replace(evaluate=lambda *model, own=own: own.evaluate(*model))
        task.check_sums(own, rows)
        task.check_sums(renamed, rows)
