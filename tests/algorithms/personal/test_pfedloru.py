"""pFedLoRU: global factors first, then the client's own; merges take the global ones alone."""

import jax
import numpy as np
import optax
import oracle
from bilinear import adapter, assert_adapter, bilinear, mean

from jaxfed import local
from jaxfed.algorithms import fedloru, pfedloru
from jaxfed.lowrank import restarts

COUNT = np.array([4, 6, 5])
DRAWS = [[0, 1], [1, 2], [2, 0], [0, 1]]
WORK, PERSONAL = (local.Work(8, epochs=n, shuffle=False) for n in (4, 1))
MERGES = {"every": 2, "restart": restarts.keep}


def made(problem, rate=0.2):
    return pfedloru(
        problem.task,
        WORK,
        rank=1,
        alpha=0.8,
        personal_work=PERSONAL,
        client_optimizer=optax.sgd(0.1),
        personal_optimizer=optax.sgd(rate),
        **MERGES,
    )


def test_rounds_with_merges_are_those_of_a_loop(x64):
    """Merged at the start of the third round: W + s L U, and L and U stay (restarts.keep)."""
    problem = bilinear(COUNT)
    fed = made(problem)
    server, states, metrics = oracle.rounds(fed, problem.world, DRAWS)
    begun = adapter(fed.init_client(fed.init(jax.random.key(0)), jax.random.key(1)))
    shared, own, w = problem.start, dict.fromkeys(range(3), begun), problem.weight
    for t, ids in enumerate(DRAWS):
        w, trained = w + (t == 2) * shared.product, []
        for i in ids:
            f = problem.trained(i, shared, 0.1, 4, frozen=own[i].product, weight=w)
            own[i] = problem.trained(i, own[i], 0.2, 1, frozen=f.product, weight=w)
            trained.append(f)
            p, q = f.product, own[i].product
            cosine = np.sum(p * q) / np.linalg.norm(p) / np.linalg.norm(q)
            place = list(ids).index(i)
            np.testing.assert_allclose(metrics[t]["cosine"][place], cosine, rtol=1e-6)
        shared = mean(trained, COUNT[ids] / COUNT[ids].sum())
    np.testing.assert_allclose(server.base["w"], w, rtol=1e-6)
    assert_adapter(server.theta.factors, shared, rtol=1e-6)
    for i in range(3):
        assert_adapter(states[i], own[i], rtol=1e-6)
        base, theta = fed.deploy(server, states[i])
        found = base["w"] + adapter(theta.factors).product
        np.testing.assert_allclose(found, w + shared.product + own[i].product, rtol=1e-6)


def test_where_the_personal_factors_learn_nothing_it_is_fedloru(x64):
    problem = bilinear(COUNT)
    plain = fedloru(problem.task, WORK, client_optimizer=optax.sgd(0.1), **MERGES)
    server, states, _ = oracle.rounds(made(problem, rate=0.0), problem.world, DRAWS)
    expected, _, _ = oracle.rounds(plain, problem.world, DRAWS)
    oracle.assert_close((server.base, server.theta), (expected.base, expected.theta), rtol=1e-10)
    np.testing.assert_array_equal(states[0]["w"].b, 0)
