"""Ditto: two trainings that do not meet at lambda = 0, and the proximal point otherwise."""

import jax
import numpy as np
import optax
import oracle
import pytest
from quadratic import FEATURES, quadratic

from jaxfed import local
from jaxfed.algorithms import ditto, fedavg

COUNT = [4, 6, 5]
DRAWS = [[0, 1], [2, 0], [1, 0]]
ONE_STEP, THREE_STEPS = (local.Work(8, epochs=n, shuffle=False) for n in (1, 3))


def made(problem, lam, work=ONE_STEP, personal_work=THREE_STEPS):
    return ditto(
        problem.task,
        work,
        lam=lam,
        personal_work=personal_work,
        client_optimizer=optax.sgd(0.1),
        personal_optimizer=optax.sgd(0.2),
    )


def test_without_lambda_it_is_fedavg_beside_training_alone(x64):
    problem = quadratic(COUNT)
    server, states, _ = oracle.rounds(made(problem, 0.0), problem.world, DRAWS)
    plain = fedavg(problem.task, ONE_STEP, client_optimizer=optax.sgd(0.1))
    averaged, _, _ = oracle.rounds(plain, problem.world, DRAWS)
    np.testing.assert_allclose(server.theta, averaged.theta, rtol=1e-12)
    for i, drawn in ((0, 3), (1, 2), (2, 1)):
        v = problem.start
        for _ in range(3 * drawn):
            v = v - 0.2 * problem.gradient(v, *problem.rows(i))
        np.testing.assert_allclose(states[i], v, rtol=1e-10)


def test_a_personal_model_goes_to_the_proximal_point_of_the_theta_received(x64):
    """argmin F_k(v) + lambda/2 |v - w|^2 = (H + lambda I)^-1 (H v* + lambda w)."""
    problem, lam = quadratic(COUNT), 0.7
    long = local.Work(8, steps=400, shuffle=False)
    fed = made(problem, lam, personal_work=long)
    _, _, states = _rounds(fed, problem, [[0, 1]])
    received, _, after = _rounds(fed, problem, [[0, 1], [1, 2]])
    for i, w, v in (
        (0, problem.start, states[0]),
        (1, received, after[1]),
        (0, problem.start, after[0]),
    ):
        x, y = problem.rows(i)
        hessian = x.T @ x / len(y)
        expected = np.linalg.solve(hessian + lam * np.eye(FEATURES), x.T @ y / len(y) + lam * w)
        np.testing.assert_allclose(v, expected, atol=1e-8)


def _rounds(fed, problem, draws):
    """(theta before the last round, after it, states)."""
    before, _, _ = oracle.rounds(fed, problem.world, draws[:-1])
    server, states, _ = oracle.rounds(fed, problem.world, draws)
    return before.theta, server.theta, states


def test_a_client_runs_its_own_model():
    problem = quadratic(COUNT)
    fed = made(problem, 0.3)
    server = fed.init(jax.random.key(0))
    assert fed.deploy(server, "v_k") == ((), "v_k")
    np.testing.assert_array_equal(fed.init_client(server, jax.random.key(1)), server.theta)


def test_a_pull_away_from_the_server_is_refused():
    with pytest.raises(ValueError, match=r"lam=-0\.1"):
        made(quadratic(COUNT), -0.1)
