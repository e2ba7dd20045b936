"""A server or client that keeps random keys: saved and resumed in every bit, and its own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import experiment

import jaxfed
from jaxfed import local
from jaxfed.algorithms import fedavg
from jaxfed.simulation import keys

HELD = jax.random.key(7, impl="rbg")
WEIGHT = jnp.ones(3)
HOST = jaxfed.Host(devices=2, chunk=3, fuse=2)


class Server(NamedTuple):
    base: Any
    theta: Any
    opt: Any  # the inner server's
    key: jax.Array  # the same array that the test holds
    weight: jax.Array  # likewise
    noise: Any


def noisy(inner):
    """The algorithm with noise on its server, by keys that it keeps; each client keeps one too."""
    noise = optax.add_noise(0.01, 0.5, key=3)

    def init(key):
        server = inner.init(key)
        return Server(*server, HELD, WEIGHT, noise.init(server.theta))

    def init_client(server, key):
        return {"key": key, "drawn": jnp.zeros(())}

    def run_round(server, cohort, for_each_client):
        after, _, metrics = inner.run_round(server, cohort._replace(state=()), for_each_client)
        key, here = jax.random.split(server.key)
        change, state = noise.update(optax.tree.sub(after.theta, server.theta), server.noise)
        shift = 1e-3 * jax.random.normal(here)
        theta = jax.tree.map(lambda x, d: x + d + shift, server.theta, change)
        drawn = cohort.state["drawn"] + jax.vmap(jax.random.normal)(cohort.state["key"])
        kept = jax.vmap(lambda key: jax.random.split(key)[0])(cohort.state["key"])
        server = server._replace(
            theta=theta, opt=after.opt, key=key, weight=server.weight * 2, noise=state
        )
        return server, {"key": kept, "drawn": drawn}, metrics

    def deploy(server, state):
        return server.base, jax.tree.map(lambda x: x + state["drawn"], server.theta)

    return inner._replace(init=init, init_client=init_client, run_round=run_round, deploy=deploy)


def kept_keys():
    e = experiment(rounds=6)
    inner = fedavg(e.task, local.Work(10, epochs=1), client_optimizer=optax.sgd(0.03))
    return jaxfed.Experiment(e.data, noisy(inner), rounds=6, cohort=5, evaluate_every=3)


def settled(records):
    return [{n: v for n, v in r.items() if n != "seconds"} for r in records]


@pytest.mark.full
@pytest.mark.parametrize("population", ["device", "mapped"])
def test_kept_keys_are_resumed_in_every_bit(population, tmp_path):
    e, host = kept_keys(), jaxfed.Host(devices=2, chunk=3, fuse=1, population=population)
    unbroken = settled(jaxfed.run(e, host=host))
    running = jaxfed.run(e, tmp_path, host)
    first = [next(running) for _ in range(4)]
    running.close()
    assert settled([*first, *jaxfed.run(e, tmp_path, host, resume=True)]) == unbroken
    server = jaxfed.load(tmp_path, experiment=e).server
    assert server.key.dtype == HELD.dtype


@pytest.mark.full
def test_arrays_and_keys_that_the_user_holds_outlive_the_run():
    list(jaxfed.run(kept_keys(), host=HOST))
    np.testing.assert_array_equal(WEIGHT, 1)
    assert jax.random.key_data(HELD).shape == (4,)


def test_an_algorithm_without_keys_is_left_as_it_is():
    algorithm = experiment().algorithm
    assert keys.as_numbers(algorithm) is algorithm


def test_numbers_are_keys_again():
    tree = {"key": jax.random.split(HELD, 3), "x": WEIGHT}
    held = keys.numbers(tree)
    assert held["key"].dtype == np.uint32
    again = keys.keys(held, jax.eval_shape(lambda: tree))
    assert (again["key"] == tree["key"]).all()
    assert again["x"] is WEIGHT
