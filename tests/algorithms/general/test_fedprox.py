"""FedProx's local problem, solved: its fixed point on a quadratic."""

import numpy as np
import optax
import oracle
import pytest
from quadratic import FEATURES, quadratic

from jaxfed import local
from jaxfed.algorithms import fedavg, fedprox


@pytest.mark.parametrize("mu", [0.0, 0.3, 5.0])
def test_a_client_ends_at_the_proximal_point(x64, mu):
    """argmin F_k(w) + mu/2 |w - w_t|^2 = (H + mu I)^-1 (H w_k + mu w_t), after many steps."""
    problem = quadratic([8, 8])
    work = local.Work(batch_size=8, steps=3000)
    fed = fedprox(problem.task, work, mu=mu, client_optimizer=optax.sgd(0.1))
    server, _, _ = oracle.rounds(fed, problem.world, [[1], [0]])
    w = problem.start
    for i in (1, 0):
        x, y = problem.rows(i)
        hessian = x.T @ x / 8
        w = np.linalg.solve(hessian + mu * np.eye(FEATURES), x.T @ y / 8 + mu * w)
    np.testing.assert_allclose(server.theta, w, atol=1e-9)


def test_without_a_pull_it_is_fedavg():
    problem, work = quadratic([4, 7]), local.Work(batch_size=2, epochs=2)
    ours, plain = (
        make(problem.task, work, client_optimizer=optax.adam(0.1), **options)
        for make, options in ((fedprox, {"mu": 0.0}), (fedavg, {}))
    )
    found, expected = (oracle.rounds(f, problem.world, [[0, 1]])[0].theta for f in (ours, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_pull_away_from_the_server_is_refused():
    with pytest.raises(ValueError, match=r"mu=-0\.1"):
        fedprox(None, None, mu=-0.1, client_optimizer=optax.sgd(0.1))
