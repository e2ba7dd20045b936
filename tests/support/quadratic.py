"""A task whose gradients can be written down: least squares, its clients' data made by hand."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import oracle

from jaxfed.tasks import Task

FEATURES = 3


class Quadratic(NamedTuple):
    """1/2 mean (x . w - y)^2, from w = start."""

    task: Task
    world: oracle.World
    start: np.ndarray

    def rows(self, i):
        """Client i's x [n, d] and y [n]."""
        mine = slice(self.world.start[i], self.world.start[i] + self.world.count[i])
        return self.world.examples["x"][mine], self.world.examples["y"][mine]

    def gradient(self, w, x, y):
        return x.T @ (x @ w - y) / len(y)


def quadratic(count, seed=0) -> Quadratic:
    rng, rows = np.random.default_rng(seed), int(np.sum(count))
    examples = {"x": rng.normal(size=(rows, FEATURES)), "y": rng.normal(size=rows)}
    start = rng.normal(size=FEATURES)

    def loss(base, theta, batch, key):
        squared = (batch["x"] @ theta - batch["y"]) ** 2 / 2
        return jnp.sum(squared * batch["mask"]) / jnp.sum(batch["mask"])

    task = Task(lambda key: ((), jnp.asarray(start)), loss, None)
    return Quadratic(task, oracle.World(examples, np.asarray(count)), start)
