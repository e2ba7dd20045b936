"""FedDyn against the paper's Algorithm 1, written down in numpy."""

import numpy as np
import optax
import oracle
import pytest
from quadratic import quadratic

from jaxfed import local
from jaxfed.algorithms import fedavg, feddyn

RATE, STEPS, PENALTY = 0.1, 3, 0.7
DRAWS = [[0, 2], [1, 3], [2, 1], [0, 3]]
COUNT = [4, 6, 10, 5]


def test_rounds_with_partial_participation_are_those_of_the_paper(x64):
    """Full batches, so that a local step is a step on F_k."""
    problem = quadratic(COUNT)
    fed = feddyn(
        problem.task,
        local.Work(max(COUNT), steps=STEPS, shuffle=False),
        penalty=PENALTY,
        clients=len(COUNT),
        client_optimizer=optax.sgd(RATE),
    )
    server, states, _ = oracle.rounds(fed, problem.world, DRAWS)
    w, h = problem.start.copy(), 0 * problem.start
    own = dict.fromkeys(range(len(COUNT)), 0 * problem.start)
    for ids in DRAWS:
        solved = []
        for i in ids:
            v, (x, y) = w.copy(), problem.rows(i)
            for _ in range(STEPS):
                v = v - RATE * (problem.gradient(v, x, y) - own[i] + PENALTY * (v - w))
            own[i] = own[i] - PENALTY * (v - w)
            solved.append(v)
        h = h - PENALTY / len(COUNT) * sum(v - w for v in solved)
        w = np.mean(solved, axis=0) - h / PENALTY
    np.testing.assert_allclose(server.theta, w, rtol=1e-10)
    for i, expected in own.items():
        np.testing.assert_allclose(states[i], expected, rtol=1e-9, atol=1e-12)


def test_it_ends_at_the_optimum_where_fedavg_does_not(x64):
    problem, work = quadratic([8, 8, 8], seed=1), local.Work(8, steps=10, shuffle=False)
    x, y = problem.world.examples.values()
    minimum = np.linalg.lstsq(x, y)[0]

    def distance(fed):
        server, _, _ = oracle.rounds(fed, problem.world, [[0, 1, 2]] * 150)
        return np.abs(np.asarray(server.theta) - minimum).max()

    sgd = {"client_optimizer": optax.sgd(RATE)}
    assert distance(fedavg(problem.task, work, **sgd)) > 1e-2
    assert distance(feddyn(problem.task, work, penalty=1.0, clients=3, **sgd)) < 1e-8


@pytest.mark.parametrize("penalty", [0.0, -1.0, float("nan")])
def test_a_penalty_that_the_server_cannot_divide_by_is_refused(penalty):
    with pytest.raises(ValueError, match="penalty="):
        feddyn(None, None, penalty=penalty, clients=3, client_optimizer=optax.sgd(RATE))
