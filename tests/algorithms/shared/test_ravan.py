"""Ravan against a loop over clients, in numpy."""

import bilinear as bl
import numpy as np
import optax
import oracle

from jaxfed import local, lowrank
from jaxfed.algorithms import ravan

COUNT, STEPS, RATE = [4, 6, 10], 3, 0.1
WORK = local.Work(max(COUNT), steps=STEPS, shuffle=False)


def test_two_rounds_are_the_papers_loop(x64):
    """Two heads of rank 1; clients upload s_i H_i, and every round begins at s_i = 1."""
    problem = bl.bilinear(COUNT, rank=1)
    fed = ravan(problem.task, WORK, heads=2, client_optimizer=optax.sgd(RATE))
    server, states, metrics = oracle.rounds(fed, problem.world, [[0, 1, 2]] * 2)
    a, b = (np.asarray(server.base[f"fixed/w/{side}"]) for side in "ab")  # s a [3, 2], b [2, 2]
    w = problem.weight + problem.start.product
    core = np.zeros(2)
    for _ in range(2):
        sent = []
        for i in range(3):
            h, s = core.copy(), np.ones(2)
            for _ in range(STEPS):
                g = problem.gradient(i, w + (a * (s * h)) @ b)
                inside = np.diag(a.T @ g @ b.T)
                h, s = h - RATE * s * inside, s - RATE * h * inside
            sent.append(s * h)
        core = np.tensordot([0.2, 0.3, 0.5], sent, 1)
    np.testing.assert_allclose(server.theta.full["w@core"].ravel(), core, rtol=1e-9)
    deployed = lowrank.merge(*fed.deploy(server, states[0]))["w"]
    np.testing.assert_allclose(deployed, w + (a * core) @ b, rtol=1e-10)
    assert set(metrics[0]["up"].tolist()) == {8 * 2}  # one number for each head, no scales
