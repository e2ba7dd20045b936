"""SCAFFOLD against the paper's Algorithm 1, option II, written down in numpy."""

import jax
import numpy as np
import oracle
import pytest
from quadratic import quadratic

from jaxfed import local
from jaxfed.algorithms import scaffold
from jaxfed.algorithms.general.scaffold import Message

BATCH, EPOCHS = 3, 2
DRAWS = [[0, 3, 4], [3, 1, 5], [5, 4, 2], [0, 1, 2], [4, 3, 0]]
COUNT = [6, 2, 9, 4, 7, 3]


def by_hand(problem, eta_l, eta_g):
    """(x, c, {i: c_i}): lines 1 to 18 of the algorithm."""
    x, c = problem.start, np.zeros_like(problem.start)
    c_i = {i: np.zeros_like(x) for i in range(len(COUNT))}
    for drawn in DRAWS:
        delta_y, delta_c = [], []
        for i in drawn:
            y, (inputs, targets) = x, problem.rows(i)
            parts = [slice(b, b + BATCH) for b in range(0, COUNT[i], BATCH)] * EPOCHS
            for part in parts:
                y = y - eta_l * (problem.gradient(y, inputs[part], targets[part]) - c_i[i] + c)
            c_plus = c_i[i] - c + (x - y) / (len(parts) * eta_l)
            delta_y.append(y - x)
            delta_c.append(c_plus - c_i[i])
            c_i[i] = c_plus
        x = x + eta_g * np.mean(delta_y, axis=0)
        c = c + len(drawn) / len(COUNT) * np.mean(delta_c, axis=0)
    return x, c, c_i


@pytest.mark.parametrize("eta_g", [1.0, 0.5])
def test_rounds_with_partial_participation_are_those_of_the_paper(x64, eta_g):
    problem, work = quadratic(COUNT), local.Work(BATCH, epochs=EPOCHS, shuffle=False)
    fed = scaffold(
        problem.task, work, learning_rate=0.1, clients=len(COUNT), server_learning_rate=eta_g
    )
    server, states, _ = oracle.rounds(fed, problem.world, DRAWS)
    x, c, c_i = by_hand(problem, 0.1, eta_g)
    np.testing.assert_allclose(server.theta, x, rtol=1e-6)
    np.testing.assert_allclose(server.c, c, rtol=1e-5)
    for i, expected in c_i.items():
        np.testing.assert_allclose(states[i], expected, rtol=1e-5)
    np.testing.assert_allclose(server.c, np.mean(list(states.values()), axis=0), rtol=1e-5)


def test_client_drift_is_corrected_where_fedavg_is_biased(x64):
    """With all clients, many local steps and full batches, x goes to the minimum of their mean."""
    problem = quadratic([8, 8, 8])
    fed = scaffold(problem.task, local.Work(8, steps=10), learning_rate=0.05, clients=3)
    server, _, _ = oracle.rounds(fed, problem.world, [[0, 1, 2]] * 150)
    x, y = problem.world.examples.values()
    minimum = np.linalg.lstsq(x, y)[0]
    np.testing.assert_allclose(server.theta, minimum, atol=1e-6)


def test_a_client_without_examples_keeps_its_control_variate(x64):
    problem = quadratic([4, 0])
    fed = scaffold(problem.task, local.Work(2, epochs=1), learning_rate=0.1, clients=2)
    server = fed.init(jax.random.key(0))._replace(c=np.ones(3))
    cohort = oracle.cohort(problem.world, [np.full(3, 2.0)] * 2, [0, 1], 0)
    _, states, _ = fed.run_round(server, cohort, oracle.loop)
    np.testing.assert_array_equal(states[1], np.full(3, 2.0))
    assert (states[0] != 2).all()


def test_both_ways_carry_the_model_and_its_control_variate():
    problem, seen = quadratic([4, 4]), []

    def verb(client, base, message, cohort):
        reply = oracle.loop(client, base, message, cohort)
        seen.append((message, reply.upload))
        return reply

    fed = scaffold(problem.task, local.Work(2, epochs=1), learning_rate=0.1, clients=2)
    oracle.rounds(fed, problem.world, [[0, 1]], verb)
    ((message, upload),) = seen
    assert isinstance(message, Message)
    assert [m.shape for m in message] == [(3,), (3,)]
    assert [u.shape for u in upload] == [(2, 3), (2, 3)]


def test_a_learning_rate_that_option_two_cannot_divide_by_is_refused():
    with pytest.raises(ValueError, match=r"learning_rate=0\.0"):
        scaffold(None, None, learning_rate=0.0, clients=2)
