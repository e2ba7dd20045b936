"""FedAdagrad, FedYogi and FedAdam against Algorithm 2 of Reddi et al., written down in numpy."""

import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from quadratic import quadratic

from jaxfed import local
from jaxfed.algorithms import fedavg
from jaxfed.algorithms.general import fedopt

ETA, B1, B2, TAU = 0.3, 0.8, 0.95, 1e-2
SECOND = {
    "adagrad": lambda v, d: v + d**2,
    "yogi": lambda v, d: v - (1 - B2) * d**2 * np.sign(v - d**2),
    "adam": lambda v, d: B2 * v + (1 - B2) * d**2,
}
OPTIMIZERS = {
    "adagrad": fedopt.adagrad(ETA, b1=B1, tau=TAU),
    "yogi": fedopt.yogi(ETA, b1=B1, b2=B2, tau=TAU),
    "adam": fedopt.adam(ETA, b1=B1, b2=B2, tau=TAU),
}


def by_hand(name, x, changes):
    """x after a step on each Delta_t; a change may depend on where x stands."""
    m, v = np.zeros_like(x), np.full_like(x, TAU**2)
    for change in changes:
        d = change(x)
        m = B1 * m + (1 - B1) * d
        v = SECOND[name](v, d)
        x = x + ETA * m / (np.sqrt(v) + TAU)
    return x


@pytest.mark.parametrize("name", SECOND)
def test_steps_are_those_of_the_paper(x64, name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=4)
    deltas = rng.normal(size=(8, 4)) * 10.0 ** rng.integers(-3, 2, size=(8, 4))
    expected = by_hand(name, x, [lambda _, d=d: d for d in deltas])
    theta, state = {"w": jnp.asarray(x)}, OPTIMIZERS[name].init({"w": jnp.asarray(x)})
    for d in deltas:
        updates, state = OPTIMIZERS[name].update({"w": -d}, state, theta)
        theta = optax.apply_updates(theta, updates)
    np.testing.assert_allclose(theta["w"], expected, rtol=1e-12)


@pytest.mark.parametrize("name", SECOND)
def test_rounds_are_those_of_the_paper(x64, name):
    """Delta_t is the mean change of the clients, here after one step on all their examples."""
    problem, count = quadratic([2, 6, 8]), np.array([2, 6, 8])
    fed = fedavg(
        problem.task,
        local.Work(8, epochs=1),
        client_optimizer=optax.sgd(0.1),
        server_optimizer=OPTIMIZERS[name],
    )
    server, _, _ = oracle.rounds(fed, problem.world, [range(3)] * 4)

    def change(x):
        steps = [-0.1 * problem.gradient(x, *problem.rows(i)) for i in range(3)]
        return count / 16 @ np.stack(steps)

    np.testing.assert_allclose(server.theta, by_hand(name, problem.start, [change] * 4), rtol=1e-10)


def test_the_defaults_are_those_of_the_paper():
    """b1 = 0.9 (0 for adagrad), b2 = 0.99, tau = 1e-3: after one step on D, m / (sqrt v + tau)."""
    d = 0.5
    expected = {
        "adagrad": d / (np.sqrt(1e-6 + d**2) + 1e-3),
        "yogi": 0.1 * d / (np.sqrt(1e-6 + 0.01 * d**2) + 1e-3),
        "adam": 0.1 * d / (np.sqrt(0.99 * 1e-6 + 0.01 * d**2) + 1e-3),
    }
    for name, step in expected.items():
        optimizer = getattr(fedopt, name)(1.0)
        found, _ = optimizer.update(jnp.array([-d]), optimizer.init(jnp.zeros(1)))
        np.testing.assert_allclose(found[0], step, rtol=1e-5)
