"""A teacher of full rank: FedLoRA cannot come nearer than its rank allows; FedLoRU does."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import tiers

from jaxfed import local
from jaxfed.algorithms import fedavg, fedloru
from jaxfed.lowrank import Factors, Theta, product, restarts
from jaxfed.tasks import Task

SIDE, RANK, CLIENTS, ROWS, ROUNDS = 12, 4, 6, 40, 800


@pytest.fixture(scope="module")
def teacher():
    return np.random.default_rng(0).normal(size=(SIDE, SIDE)) / SIDE**0.5


@pytest.fixture(scope="module")
def world(teacher):
    x = np.random.default_rng(1).normal(size=(CLIENTS * ROWS, SIDE))
    return oracle.World({"x": x, "y": x @ teacher}, np.full(CLIENTS, ROWS))


def student():
    def init(key):
        down, up = jax.random.split(key)
        a = jax.random.uniform(down, (SIDE, RANK), float, -1, 1) / SIDE**0.5
        b = jax.random.uniform(up, (RANK, SIDE), float, -1, 1) / RANK**0.5
        return {"w": jnp.zeros((SIDE, SIDE))}, Theta({}, {"w": Factors(a, b, 2.0)})

    def loss(base, theta, batch, key):
        error = batch["x"] @ (base["w"] + product(theta.factors["w"])) - batch["y"]
        return jnp.sum(jnp.sum(error**2, 1) * batch["mask"]) / jnp.sum(batch["mask"]) / 2

    return Task(init, loss, None)


def distance(algorithm, world, teacher):
    """|W - W*| / |W*| after the rounds, all of them in one call."""
    on = oracle.on_engine(algorithm, world)
    everyone = np.tile(np.arange(CLIENTS), (ROUNDS, 1))
    server, _, _ = oracle.engine_rounds(on, world, everyone, fused=True)
    weight = server.base["w"] + product(server.theta.factors["w"])
    return float(jnp.linalg.norm(weight - teacher) / np.linalg.norm(teacher))


WORK = local.Work(ROWS, steps=5, shuffle=False)


@pytest.fixture(scope="module")
def bound(teacher):
    """The distance of the nearest matrix of rank RANK (Eckart and Young)."""
    sigma = np.linalg.svd(teacher, compute_uv=False)
    return np.linalg.norm(sigma[RANK:]) / np.linalg.norm(sigma)


def test_fedlora_ends_at_the_best_of_its_rank(world, teacher, bound):
    fed = fedavg(student(), WORK, client_optimizer=optax.sgd(0.05))
    assert bound * 0.999 < distance(fed, world, teacher) < bound * 1.1


RESTARTS = ("keep", "reinit", "residual", "balanced")


@pytest.mark.parametrize("name", tiers.usual(RESTARTS, "reinit", "balanced"))
def test_every_restart_ends_below_half_of_it(name, world, teacher, bound):
    restart = getattr(restarts, name)  # residual has a floor, as it returns to the same two spaces
    fed = fedloru(student(), WORK, every=20, restart=restart, client_optimizer=optax.sgd(0.05))
    assert distance(fed, world, teacher) < bound / 2
