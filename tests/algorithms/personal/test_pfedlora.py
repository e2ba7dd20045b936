"""pFedLoRA: the client's own adapter first, then the shared one, against a loop in numpy."""

import jax
import numpy as np
import optax
import oracle
import pytest
from bilinear import adapter, assert_adapter, bilinear, mean

from jaxfed import local
from jaxfed.algorithms import fedavg, pfedlora

COUNT = np.array([4, 6, 5])
DRAWS = [[0, 1], [1, 2], [2, 0]]
WORK, PERSONAL = (local.Work(8, epochs=n, shuffle=False) for n in (2, 3))


def made(problem, rate=0.2, **options):
    return pfedlora(
        problem.task,
        WORK,
        personal_work=PERSONAL,
        client_optimizer=optax.sgd(0.1),
        personal_optimizer=optax.sgd(rate),
        **{"rank": 1, "alpha": 0.8, **options},
    )


def test_rounds_are_those_of_a_loop(x64):
    problem = bilinear(COUNT)
    fed = made(problem)
    server, states, _ = oracle.rounds(fed, problem.world, DRAWS)
    begun = adapter(fed.init_client(fed.init(jax.random.key(0)), jax.random.key(1)))
    assert begun.scale == 0.8
    shared, own = problem.start, dict.fromkeys(range(3), begun)
    for ids in DRAWS:
        trained = []
        for i in ids:
            own[i] = problem.trained(i, own[i], 0.2, 3, frozen=shared.product)
            trained.append(problem.trained(i, shared, 0.1, 2, frozen=own[i].product))
        shared = mean(trained, COUNT[ids] / COUNT[ids].sum())
    assert_adapter(server.theta.factors, shared, rtol=1e-6)
    for i in range(3):
        assert_adapter(states[i], own[i], rtol=1e-6)
        base, theta = fed.deploy(server, states[i])
        found = base["w"] + adapter(theta.factors).product
        np.testing.assert_allclose(
            found, problem.weight + shared.product + own[i].product, rtol=1e-6
        )


def test_where_the_personal_adapter_learns_nothing_it_is_fedlora(x64):
    problem = bilinear(COUNT)
    plain = fedavg(problem.task, WORK, client_optimizer=optax.sgd(0.1))
    server, states, _ = oracle.rounds(made(problem, rate=0.0), problem.world, DRAWS)
    expected, _, _ = oracle.rounds(plain, problem.world, DRAWS)
    oracle.assert_close(server.theta, expected.theta, rtol=1e-10)
    np.testing.assert_array_equal(states[0]["w"].b, 0)


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ValueError, match="rank=0"):
        made(bilinear(COUNT), rank=0)
