"""Least squares in W + s A B, whose gradients by A and B can be written down: by hand, in numpy."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import oracle

from jaxfed.lowrank import Factors, Theta
from jaxfed.tasks import Task

INPUTS, OUTPUTS = 3, 2


class Adapter(NamedTuple):
    a: np.ndarray
    b: np.ndarray
    scale: float

    @property
    def product(self):
        return self.scale * self.a @ self.b


class Bilinear(NamedTuple):
    """1/2 mean |x (W + s A B) - y|^2."""

    task: Task
    world: oracle.World
    weight: np.ndarray  # W
    start: Adapter

    def rows(self, i):
        """Client i's x [n, inputs] and y [n, outputs]."""
        mine = slice(self.world.start[i], self.world.start[i] + self.world.count[i])
        return self.world.examples["x"][mine], self.world.examples["y"][mine]

    def loss(self, i, weight):
        x, y = self.rows(i)
        return np.sum((x @ weight - y) ** 2) / len(y) / 2

    def gradient(self, i, weight):
        """Of client i's loss by the whole weight."""
        x, y = self.rows(i)
        return x.T @ (x @ weight - y) / len(y)

    def trained(self, i, adapter, rate, steps, *, frozen=0.0, weight=None):
        """`adapter` after so many full-batch steps of client i, with `frozen` added to W."""
        a, b, s = adapter
        rest = (self.weight if weight is None else weight) + frozen
        for _ in range(steps):
            g = self.gradient(i, rest + s * a @ b)
            a, b = a - rate * s * g @ b.T, b - rate * s * a.T @ g
        return Adapter(a, b, s)


def bilinear(count, rank=2, seed=0) -> Bilinear:
    rng, rows = np.random.default_rng(seed), int(np.sum(count))
    examples = {"x": rng.normal(size=(rows, INPUTS)), "y": rng.normal(size=(rows, OUTPUTS))}
    weight = rng.normal(size=(INPUTS, OUTPUTS))
    start = Adapter(rng.normal(size=(INPUTS, rank)), rng.normal(size=(rank, OUTPUTS)), 0.5)

    def init(key):
        return {"w": jnp.asarray(weight)}, Theta(
            {}, {"w": Factors(*map(jnp.asarray, start[:2]), 0.5)}
        )

    def loss(base, theta, batch, key):
        f = theta.factors["w"]
        found = f.scale * (batch["x"] @ f.a) @ f.b
        if "w" in base:  # FedHM's clients have no weight
            found = batch["x"] @ base["w"] + found
        squared = jnp.sum((found - batch["y"]) ** 2, axis=1) / 2
        return jnp.sum(squared * batch["mask"]) / jnp.sum(batch["mask"])

    world = oracle.World(examples, np.asarray(count))
    return Bilinear(Task(init, loss, None), world, weight, start)


def adapter(factors) -> Adapter:
    """The adapter of {"w": Factors}."""
    f = factors["w"]
    return Adapter(np.asarray(f.a), np.asarray(f.b), f.scale)


def mean(adapters, shares) -> Adapter:
    """A and B averaged separately."""
    a, b = (sum(p * x[i] for p, x in zip(shares, adapters, strict=True)) for i in range(2))
    return Adapter(a, b, adapters[0].scale)


def assert_adapter(factors, expected, rtol=1e-10):
    found = adapter(factors)
    np.testing.assert_allclose(found.a, expected.a, rtol=rtol, atol=1e-12)
    np.testing.assert_allclose(found.b, expected.b, rtol=rtol, atol=1e-12)
    assert found.scale == expected.scale
