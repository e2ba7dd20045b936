"""APFL against a loop in numpy, and at its two ends."""

import jax
import numpy as np
import optax
import oracle
import pytest
from quadratic import quadratic

from jaxfed import local
from jaxfed.algorithms import apfl, fedavg

COUNT = [4, 6, 5]
DRAWS = [[0, 1], [2, 0], [1, 0]]
WORK = local.Work(8, epochs=3, shuffle=False)


def made(problem, share, share_rate):
    return apfl(
        problem.task,
        WORK,
        share=share,
        share_rate=share_rate,
        client_optimizer=optax.sgd(0.1),
        personal_optimizer=optax.sgd(0.2),
    )


@pytest.mark.parametrize("share_rate", [0.0, 0.3])
def test_all_three_move_at_once_in_every_local_step(x64, share_rate):
    problem = quadratic(COUNT)
    fed = made(problem, 0.4, share_rate)
    server, states, metrics = oracle.rounds(fed, problem.world, DRAWS)
    w, v, a = problem.start, dict.fromkeys(range(3), problem.start), dict.fromkeys(range(3), 0.4)
    for ids in DRAWS:
        ends = []
        for i in ids:
            w_k, rows = w, problem.rows(i)
            for _ in range(3):
                h = problem.gradient(a[i] * v[i] + (1 - a[i]) * w_k, *rows)
                g, slope = problem.gradient(w_k, *rows), (v[i] - w_k) @ h
                w_k, v[i] = w_k - 0.1 * g, v[i] - 0.2 * a[i] * h
                a[i] = np.clip(a[i] - share_rate * slope, 0, 1)
            ends.append(w_k)
        w = np.mean(ends, axis=0)
    np.testing.assert_allclose(server.theta, w, rtol=1e-10)
    for i in range(3):
        np.testing.assert_allclose(states[i].v, v[i], rtol=1e-10)
        np.testing.assert_allclose(states[i].share, a[i], rtol=1e-10)
        _, deployed = fed.deploy(server, states[i])
        np.testing.assert_allclose(deployed, a[i] * v[i] + (1 - a[i]) * w, rtol=1e-10)
    np.testing.assert_allclose(metrics[-1]["share"], [a[i] for i in DRAWS[-1]], rtol=1e-10)
    assert (len(set(a.values())) > 1) == (share_rate > 0)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_at_its_ends_a_client_has_the_shared_model_or_learns_alone(x64, share):
    problem = quadratic(COUNT)
    fed = made(problem, share, 0.0)
    server, states, _ = oracle.rounds(fed, problem.world, DRAWS)
    uniform = quadratic(COUNT).task
    plain = fedavg(uniform, WORK, client_optimizer=optax.sgd(0.1), mean=lambda x, w: x.mean(0))
    shared, _, _ = oracle.rounds(plain, problem.world, DRAWS)
    np.testing.assert_allclose(server.theta, shared.theta, rtol=1e-12)
    alone = problem.start
    for _ in range(3 * 3):  # client 0 takes part in all three rounds
        alone = alone - 0.2 * problem.gradient(alone, *problem.rows(0))
    expected = alone if share else shared.theta
    np.testing.assert_allclose(fed.deploy(server, states[0])[1], expected, rtol=1e-10)


def test_the_share_stays_a_share(x64):
    problem = quadratic(COUNT)
    _, states, _ = oracle.rounds(made(problem, 0.5, 1e3), problem.world, DRAWS)
    assert all(0 <= s.share <= 1 for s in states.values())


def test_a_share_above_one_is_refused():
    with pytest.raises(ValueError, match=r"share=1\.2"):
        made(quadratic(COUNT), 1.2, 0.0)


def test_a_new_client_deploys_the_servers_model():
    fed = made(quadratic(COUNT), 0.5, 0.1)
    server = fed.init(jax.random.key(0))
    _, theta = fed.deploy(server, fed.init_client(server, jax.random.key(1)))
    np.testing.assert_allclose(theta, server.theta, rtol=1e-6)
