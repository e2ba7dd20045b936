"""FedLin against the paper's Algorithm 1, written down in numpy."""

import numpy as np
import optax
import oracle
from quadratic import quadratic

from jaxfed import local
from jaxfed.algorithms import fedavg, fedlin

RATE, STEPS = 0.1, 3
COUNT = [4, 6, 10]


def made(function, problem, batch, steps):
    work = local.Work(batch, steps=steps, shuffle=False)
    return function(problem.task, work, client_optimizer=optax.sgd(RATE))


def test_a_round_is_that_of_the_paper(x64):
    problem, share = quadratic(COUNT), np.array(COUNT) / sum(COUNT)
    server, _, _ = oracle.rounds(made(fedlin, problem, 10, STEPS), problem.world, [[0, 1, 2]] * 2)
    w = problem.start.copy()
    for _ in range(2):
        own = [problem.gradient(w, *problem.rows(i)) for i in range(3)]
        g = sum(p * x for p, x in zip(share, own, strict=True))
        solved = []
        for i in range(3):
            v = w.copy()
            for _ in range(STEPS):
                v = v - RATE * (problem.gradient(v, *problem.rows(i)) - own[i] + g)
            solved.append(v)
        w = sum(p * v for p, v in zip(share, solved, strict=True))
    np.testing.assert_allclose(server.theta, w, rtol=1e-10)


def test_the_gradient_is_that_of_all_examples_whatever_the_batch(x64):
    """In batches of 4, of which the last is short."""
    problem = quadratic([10])
    fed = made(fedlin, problem, 4, 1)
    heard = []

    def verb(client, base, message, cohort):
        heard.append(oracle.loop(client, base, message, cohort))
        return heard[-1]

    oracle.rounds(fed, problem.world, [[0]], verb)
    expected = problem.gradient(problem.start, *problem.rows(0))
    np.testing.assert_allclose(heard[0].upload[0], expected, rtol=1e-7)  # shares are float32


def test_it_ends_at_the_optimum_where_fedavg_does_not(x64):
    problem = quadratic([8, 8, 8], seed=1)
    x, y = problem.world.examples.values()
    minimum = np.linalg.lstsq(x, y)[0]

    def distance(function):
        fed = made(function, problem, 8, 10)
        server, _, _ = oracle.rounds(fed, problem.world, [[0, 1, 2]] * 150)
        return np.abs(np.asarray(server.theta) - minimum).max()

    assert distance(fedavg) > 1e-2
    assert distance(fedlin) < 1e-8
