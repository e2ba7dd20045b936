"""SA-FedLoRA against a loop over clients, in numpy."""

import algorithms
import bilinear as bl
import jax
import numpy as np
import optax
import oracle
import pytest

from jaxfed import local
from jaxfed.algorithms import sa_fedlora

COUNT, STEPS, RATE, MU = [4, 6, 10], 3, 0.1, 0.5
SHARE = np.array(COUNT) / sum(COUNT)
WORK = local.Work(max(COUNT), steps=STEPS, shuffle=False)


def made(task, *, work=WORK, rate=RATE, **options):
    given = {"initiating": 2, "rounds": 4, "least": 2, "mu": MU, **options}
    return sa_fedlora(task, work, client_optimizer=optax.sgd(rate), **given)


def test_with_a_constant_rank_it_is_fedprox_and_then_fedlora(x64):
    problem = bl.bilinear(COUNT)
    server, _, _ = oracle.rounds(made(problem.task), problem.world, [[0, 1, 2]] * 4)
    w, f = problem.weight, problem.start
    for _ in range(2):
        trained = []
        for i in range(3):
            v = w
            for _ in range(STEPS):
                v = v - RATE * (problem.gradient(i, v + f.product) + MU * (v - w))
            trained.append(v)
        w = np.tensordot(SHARE, trained, 1)
    for _ in range(2):
        f = bl.mean([problem.trained(i, f, RATE, STEPS, weight=w) for i in range(3)], SHARE)
    np.testing.assert_allclose(server.base["w"], w, rtol=1e-9)
    bl.assert_adapter(server.theta.factors, f, rtol=1e-8)


def test_where_the_rank_falls_the_best_components_stay(x64):
    """Clients stand still: rank 2 in round 1, then the best of rank 1."""
    problem = bl.bilinear(COUNT)
    fed = made(problem.task, rate=0.0, initiating=0, rounds=2, least=1)
    server, _, metrics = oracle.rounds(fed, problem.world, [[0, 1, 2]] * 2)
    u, sigma, vt = np.linalg.svd(problem.start.product, full_matrices=False)
    found = bl.adapter(server.theta.factors)
    np.testing.assert_allclose(found.product, sigma[0] * np.outer(u[:, 0], vt[0]), rtol=1e-8)
    assert [set(m["up"].tolist()) for m in metrics] == [{8 * 2 * (3 + 2)}, {8 * (3 + 2)}]


def test_bytes_are_those_of_the_stage():
    """The whole model for two rounds; once more what it ended at; then the factors of the rank."""
    task = algorithms.classifier(algorithms.LORA)
    fed = made(task, work=algorithms.WORK, initiating=2, rounds=5, least=1)
    _, _, metrics = oracle.rounds(fed, algorithms.UNEQUAL, algorithms.DRAWS)
    kernel, bias, component = 5 * 3, 3, 5 + 3
    ranks = [2, 2, 1]  # 1 + (1 + cos(pi x)) / 2 for x = 0, 1/2, 1, where 1.5 rounds to even
    up = [kernel + bias] * 2 + [bias + r * component for r in ranks]
    assert [set(m["up"].tolist()) for m in metrics] == [{4 * n} for n in up]
    down = [*up[:2], up[2] + kernel, *up[3:]]
    assert [set(m["down"].tolist()) for m in metrics] == [{4 * n} for n in down]
    server = jax.eval_shape(fed.init, jax.random.key(0))
    assert [fed.broadcast(server, t) for t in range(4)] == [0, 0, 4 * kernel, 0]


def test_stages_and_ranks_that_do_not_fit_are_refused():
    task = bl.bilinear(COUNT).task
    with pytest.raises(ValueError, match="rounds=2 leaves none after initiating=2"):
        made(task, rounds=2)
    with pytest.raises(ValueError, match="at least least=3"):
        made(task, least=3).init(jax.random.key(0))
