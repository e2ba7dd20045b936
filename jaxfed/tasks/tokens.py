"""What tasks on tokens share: how weights begin, how a model is called, and what is checked."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxfed import lowrank, trees
from jaxfed.algorithm import PyTree
from jaxfed.tasks import calls
from jaxfed.tasks.task import begun_at, check_share, one_each


def began(
    model: Any,
    examples: dict,
    check: Callable[[dict], None],
    *,
    select: lowrank.Select,
    params: PyTree | None,
    dropout: float,
    inputs: Sequence[str],
) -> tuple[Callable, Callable, Callable]:
    """(init, predict, check_others) of a Task whose model is called with the arrays in `inputs`.

    `check(examples)` says whether examples fit the task; both given ones and others go through it.
    Raises TypeError or ValueError for a model, weights or a selection that cannot be used.
    """
    calls.check_kind(model)
    check_share("dropout", dropout)
    given = {} if params is None else trees.by_path(params)

    def init(key):
        model_key, factor_key = jax.random.split(key)
        x = [jnp.asarray(examples[name][:1]) for name in inputs]
        quiet = calls.options(model, False, jnp.ones(1))
        params = begun_at(model, model_key, x, given, quiet)
        return lowrank.split(params, lowrank.layers(model, *x, **quiet), select, factor_key)

    def predict(base, theta, batch, key=None):
        x = [batch[name] for name in inputs]
        noise = {} if key is None else {"dropout": dropout, "key": key, "rngs": {"dropout": key}}
        switches = calls.options(model, key is not None, batch["mask"])
        return lowrank.apply(model, base, theta, *x, **switches, **noise)

    def of_one(examples):
        return list(one_each(examples, inputs).values())

    check(examples)
    base, theta = jax.eval_shape(init, jax.random.key(0))
    calls.check(model, base, theta, of_one(examples))

    def check_others(examples):
        check(examples)
        calls.check_weights(model, base, theta, of_one(examples))

    return init, predict, check_others
