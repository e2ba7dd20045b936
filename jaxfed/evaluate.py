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
