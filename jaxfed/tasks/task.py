"""A task: a model, its loss, and what of it is trained."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import lowrank, trees, values
from jaxfed.algorithm import PyTree
from jaxfed.lowrank.factors import STATISTICS


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

    predict: Callable[..., jax.Array] | None = None
    """(base, theta, batch, key) -> the model's outputs [B, ...], such as logits; None: it has none.

    With the key of a loss it has that loss's augmentation and dropout; without, it evaluates."""

    inputs: Sequence[str] = ()
    """The names of the arrays that `predict` reads, in the model's order."""

    features: Callable[[PyTree, PyTree, dict], jax.Array] | None = None
    """(base, theta, batch) -> the inputs of the model's last layer [B, d]; None: it has none."""

    example: Callable[[], dict[str, jax.ShapeDtypeStruct]] | None = None
    """() -> {name: shape} of one example [1, ...], as `features` reads it."""


def having(task: Task, what: str) -> Any:
    """The task's `predict`, `features` or `example`; raises ValueError if it has none."""
    found = getattr(task, what)
    if found is None:
        raise ValueError(
            f"the task has no `{what}`, which this algorithm needs; give one, as in "
            f"Task(init, loss, evaluate, {what}=...), or use tasks.classification"
        )
    return found


def through(task: Task, change: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]) -> Task:
    """The task of models that `change(base, theta)` turns into the task's own."""

    def changed(run):
        return run and (lambda base, theta, *given: run(*change(base, theta), *given))

    names = ("loss", "evaluate", "predict", "features")
    return task._replace(**{name: changed(getattr(task, name)) for name in names})


def begun_at(
    model: Any, key: jax.Array, inputs: Sequence, given: Mapping[str, Any], options: Mapping
) -> dict[str, Any]:
    """The model's parameters {path: array}: those given, and the others drawn.

    Its running statistics are among them, as trees.Running. What is given is copied, as rounds
    donate their arrays. Only the drawing is compiled, or what is given would become a constant of
    the program.
    """
    init = partial(model.init, **options)

    def flat(held):
        return trees.by_path(held["params"]) | trees.by_path(held.get(STATISTICS, {}))

    held = jax.eval_shape(init, key, *inputs)
    shapes, kept = flat(held), trees.by_path(held.get(STATISTICS, {}))
    if unknown := set(given) - set(shapes):
        raise ValueError(f"params have {sorted(unknown)}; the model has {sorted(shapes)}")
    for path, w in given.items():
        if w.shape != shapes[path].shape:
            raise ValueError(f"params have {path} {w.shape}; the model has {shapes[path].shape}")

    @jax.jit
    def drawn(key, *inputs):
        return {p: w for p, w in flat(init(key, *inputs)).items() if p not in given}

    begun = {
        **{path: jax.tree.map(jnp.array, w) for path, w in given.items()},
        **drawn(key, *inputs),
    }
    return {p: trees.Running(w) if p in kept else w for p, w in begun.items()}


def moving(loss: jax.Array, theta: lowrank.Theta, new: Mapping[str, jax.Array]) -> jax.Array:
    """The loss, whose gradient by each running statistic s of theta is s - new, that of
    h = 1/2 ||s - new||^2 with `new` held fixed; the value does not change.
    """
    if not new:
        return loss
    kept = {p: theta.full[p].value for p in new}
    far = sum(jnp.sum((s - jax.lax.stop_gradient(new[p])) ** 2) for p, s in kept.items()) / 2
    return loss + (far - jax.lax.stop_gradient(far))


def without_running(task: Task, why: str) -> Task:
    """The task; its `init` raises ValueError, with the reason, if there are running statistics."""

    def init(key):
        base, theta = task.init(key)
        trees.refuse_running(theta, why)
        return base, theta

    return task._replace(init=init)


def one_each(examples: Mapping[str, Any], names: Sequence[str]) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of one example [1, ...]; of 64-bit numbers the type that JAX keeps them in."""
    return {
        n: jax.ShapeDtypeStruct((1, *x.shape[1:]), jax.dtypes.canonicalize_dtype(x.dtype))
        for n, x in ((n, np.asarray(examples[n])) for n in names)
    }


def check_share(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a number from 0 to below 1."""
    number = isinstance(value, float | int | np.number) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:
        raise ValueError(f"{name}={value!r} is no share; use a number from 0 to below 1")


def check_complete(examples: dict, inputs: Sequence[str], label: str) -> None:
    """Raises ValueError if an array that a task reads is missing or holds no numbers."""
    values.kind("examples", examples, Mapping, "arrays by name, such as source.test")
    if not inputs:
        raise ValueError(f"inputs={inputs!r} names no array for the model; give one or more")
    if isinstance(inputs, str):
        raise TypeError(f"inputs={inputs!r} is one name; give a sequence, ({inputs!r},)")
    if missing := {*inputs, label} - set(examples):
        raise ValueError(f"the examples have no {sorted(missing)}; they have {sorted(examples)}")
    for name in (*inputs, label):
        dtype = np.asarray(examples[name]).dtype
        if not (jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool)):
            raise ValueError(f"{name} is {dtype}; give numbers, such as {NUMBERED}")


NUMBERED = "np.unique(x, return_inverse=True)[1] of names, or tokens of text"


def check_sums(task: Task, examples: Mapping[str, Any]) -> None:
    """Raises ValueError unless `evaluate` sums over examples: twice as much for all of them twice.

    A mean would be added up over batches as if it were a sum. jaxfed's own tasks are right.
    """
    if getattr(task.evaluate, "__module__", "").startswith("jaxfed.tasks."):
        return
    rows = {name: np.asarray(x[:4]) for name, x in examples.items()}
    count = len(next(iter(rows.values())))
    twice = {name: np.concatenate([x, x]) for name, x in rows.items()}
    model, evaluate = jax.jit(task.init)(jax.random.key(0)), jax.jit(task.evaluate)
    masks = (np.repeat(np.array([1, last], np.float32), count) for last in (0, 1))
    once, both = (jax.device_get(evaluate(*model, {**twice, "mask": mask})) for mask in masks)
    for name, total in once.items():
        if not np.allclose(both[name], 2 * total, rtol=1e-2, equal_nan=True):
            raise ValueError(
                f"evaluate gives {name!r} = {total:.6g} for {count} examples and {both[name]:.6g} "
                "for the same ones twice; let it return sums over the batch's real examples, "
                'jnp.sum(values * batch["mask"])'
            )
