"""Evaluation: the global model on the test set, every client's deployed model on its own.

Both are client procedures run by the engine's verb, so they use every device: the test set is cut
into as many pieces as there are devices, and each piece plays a client.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import local
from jaxfed.algorithm import Algorithm, Cohort, Data, Reply
from jaxfed.data.federated import Split
from jaxfed.task import Task

PERCENTILES = (10, 50, 90)


def sums(algorithm: Algorithm, task: Task, verb: Callable, batch_size: int) -> Callable:
    """(server, states [K, ...], data, count [K]) -> {name: sum over each one's examples [K]}.

    Not jitted yet; see engine.compiled.
    """
    work = local.Work(batch_size, epochs=1, shuffle=False)

    def client(base, server, k):
        model = algorithm.deploy(server, k.state)

        def add(total, batch, key):
            return jax.tree.map(jnp.add, total, task.evaluate(*model, batch))

        shapes = jax.eval_shape(partial(task.evaluate, *model), _batch(k.data, batch_size))
        zero = jax.tree.map(lambda s: jnp.zeros(s.shape, jnp.float32), shapes)
        return Reply((), (), local.each_step(add, zero, k, work))

    def run(server, states, data, count):
        keys = jnp.broadcast_to(jax.random.key(0), count.shape)
        cohort = Cohort(states, data, count, count, keys, jnp.arange(len(count)), 0, keys[0])
        return verb(client, (), server, cohort).metrics

    return run


def _batch(data: Data, size: int) -> dict:
    examples = jax.tree.map(lambda x: x[:1].repeat(size, axis=0), data.examples)
    return {**examples, "mask": jnp.ones(size)}


def global_model(
    algorithm: Algorithm, task: Task, verb: Callable, examples: int, parts: int, batch_size: int
) -> Callable:
    """(server, states, test examples [examples, ...]) -> {name: sum over `parts` pieces of them}.

    It is the model of a client that was never drawn, whatever the states. Not jitted yet.
    """
    start, size = pieces(examples, parts, batch_size)
    summed = sums(algorithm, task, verb, batch_size)

    def run(server, states, test):
        keys = jax.random.split(jax.random.key(0), parts)
        fresh = jax.vmap(algorithm.init_client, in_axes=(None, 0))(server, keys)
        return summed(server, fresh, Data(test, jnp.asarray(start), examples), jnp.asarray(size))

    return run


def personal_models(
    algorithm: Algorithm,
    task: Task,
    verb: Callable,
    split: Split,
    order: np.ndarray,
    batch_size: int,
) -> Callable:
    """(server, states [N, ...], examples) -> {name: sum over own examples of client order[i] [K]}.

    The states are every client's; -1 in `order` is padding. Not jitted yet.
    """
    known, own = np.maximum(order, 0), counts(split.count, order)
    summed = sums(algorithm, task, verb, batch_size)

    def run(server, states, examples):
        ordered = jax.tree.map(lambda s: s[known], states)
        data = Data(examples, jnp.asarray(split.start[known]), split.most)
        return summed(server, ordered, data, jnp.asarray(own))

    return run


def counts(count: np.ndarray, order: np.ndarray) -> np.ndarray:
    """How many examples the clients at each place of `order` have; none where that is -1."""
    return np.where(order >= 0, count[np.maximum(order, 0)], 0)


def pieces(examples: int, count: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(start [count], size [count]) of `count` consecutive pieces made of whole batches."""
    width = -(-examples // (batch_size * count)) * batch_size
    start = np.minimum(np.arange(count) * width, examples)
    return start, np.minimum(width, examples - start)


def means(sums: dict, count: int | np.ndarray) -> dict:
    """{name: mean over all examples} of sums over pieces."""
    return {
        n: float(np.sum(np.asarray(v, np.float64)) / count)
        for n, v in sums.items()
        if n != "finite"
    }


def spread(sums: dict, count: np.ndarray) -> dict:
    """{name: {mean, min, p10, p50, p90}} over the clients that have examples of their own."""
    has = count > 0
    rates = {
        n: np.asarray(v, np.float64)[has] / count[has] for n, v in sums.items() if n != "finite"
    }
    return {
        n: {
            "mean": float(r.mean()),
            "min": float(r.min()),
            **{f"p{q}": float(np.percentile(r, q)) for q in PERCENTILES},
        }
        for n, r in rates.items()
    }
