"""A task: a model, its loss, and what of it is trained."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfed.algorithm import PyTree


def means(sums: Mapping[str, Any], count: Any) -> dict[str, Any]:
    """{name: sum / count}: what sums over examples say if they say no more than their means."""
    return {name: total / count for name, total in sums.items()}


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

    summary: Callable[[dict, Any], dict] = means
    """(what `evaluate` gave, added up over examples; how many) -> {name: number}.

    On the host; with leading axes [K] on both, of sums over K clients' examples, also on numbers.
    """


def begun_at(
    model: Any, key: jax.Array, inputs: Sequence, given: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The model's parameters {path: array}: those given, and the others drawn.

    What is given is copied, as rounds donate their arrays. Only the drawing is compiled, or what is
    given would become a constant of the program.
    """
    shapes = by_path(jax.eval_shape(model.init, key, *inputs)["params"])
    if unknown := set(given) - set(shapes):
        raise ValueError(f"params have {sorted(unknown)}; the model has {sorted(shapes)}")
    for path, w in given.items():
        if w.shape != shapes[path].shape:
            raise ValueError(f"params have {path} {w.shape}; the model has {shapes[path].shape}")

    @jax.jit
    def drawn(key, *inputs):
        return {
            p: w for p, w in by_path(model.init(key, *inputs)["params"]).items() if p not in given
        }

    return {**{path: jnp.array(w) for path, w in given.items()}, **drawn(key, *inputs)}


def by_path(params: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): w for path, w in leaves}


def check_complete(examples: dict, inputs: Sequence[str], label: str) -> None:
    """Raises ValueError if one of the arrays that a task reads is not there."""
    if missing := {*inputs, label} - set(examples):
        raise ValueError(f"the examples have no {sorted(missing)}; they have {sorted(examples)}")
