"""Centralised training is gradient descent on the union of all clients' data."""

import numpy as np
import optax
import oracle
import pytest
from quadratic import quadratic

from jaxfed.algorithms import centralised

COUNT = [1, 3, 4, 8]  # they add up to a power of two: shares are exact in float32


@pytest.mark.parametrize("optimizer", [optax.sgd(0.2, momentum=0.9), optax.adamw(0.1)])
def test_rounds_with_all_clients_are_steps_of_the_optimizer_on_the_union(x64, optimizer):
    """Moments go on from round to round, as on a machine that has all the data."""
    problem = quadratic(COUNT)
    fed = centralised(problem.task, batch_size=8, optimizer=optimizer)
    server, _, _ = oracle.rounds(fed, problem.world, [range(4)] * 5)
    x, y = problem.world.examples.values()
    w, opt = problem.start, optimizer.init(problem.start)
    for _ in range(5):
        updates, opt = optimizer.update(problem.gradient(w, x, y), opt, w)
        w = optax.apply_updates(w, updates)
    np.testing.assert_allclose(server.theta, w, rtol=1e-10)


def test_clients_batches_make_one_batch_where_each_counts_by_its_share(x64):
    """Two examples of each client; with equal clients that is a plain batch of eight."""
    problem = quadratic([2, 2, 2, 2])
    fed = centralised(problem.task, batch_size=2, optimizer=optax.sgd(0.3))
    server, _, _ = oracle.rounds(fed, problem.world, [[3, 1, 2, 0]])
    x, y = problem.world.examples.values()
    expected = problem.start - 0.3 * problem.gradient(problem.start, x, y)
    np.testing.assert_allclose(server.theta, expected, rtol=1e-12)
