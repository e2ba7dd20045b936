"""FedRep: the head first, then the body, against a loop in numpy."""

import jax
import numpy as np
import optax
import oracle
import pytest
from bilinear import Adapter, bilinear

from jaxfed import aggregate, local
from jaxfed.algorithms import fedper, fedrep

COUNT = np.array([4, 6, 5])
DRAWS = [[0, 1], [1, 2], [2, 0]]
ONE, THREE = (local.Work(8, epochs=n, shuffle=False) for n in (1, 3))
OPTIMIZERS = {"client_optimizer": optax.sgd(0.1), "personal_optimizer": optax.sgd(0.2)}


def test_the_head_is_trained_to_its_end_before_the_body_moves(x64):
    """A is the body, B the head; least squares in W + s A B, whose gradients are written down."""
    problem = bilinear(COUNT)
    fed = fedrep(problem.task, ONE, personal="/b$", personal_work=THREE, **OPTIMIZERS)
    server, states, _ = oracle.rounds(fed, problem.world, DRAWS)
    a, _, s = problem.start
    heads = dict.fromkeys(range(3), problem.start.b)
    for ids in DRAWS:
        bodies = []
        for i in ids:
            for _ in range(3):
                g = problem.gradient(i, problem.weight + s * a @ heads[i])
                heads[i] = heads[i] - 0.2 * s * a.T @ g
            g = problem.gradient(i, problem.weight + s * a @ heads[i])
            bodies.append(a - 0.1 * s * g @ heads[i].T)
        a = np.mean(bodies, axis=0)
    for i, head in heads.items():
        _, theta = fed.deploy(server, states[i])
        found, expected = theta.factors["w"], Adapter(a, head, s)
        np.testing.assert_allclose(found.a, expected.a, rtol=1e-9)
        np.testing.assert_allclose(found.b, expected.b, rtol=1e-9)


def test_a_head_at_rest_leaves_fedper_with_a_fixed_head(x64):
    problem = bilinear(COUNT)
    still = {**OPTIMIZERS, "personal_optimizer": optax.sgd(0.0)}
    fed = fedrep(problem.task, ONE, personal="/b$", personal_work=THREE, **still)
    plain = fedper(
        problem.task,
        ONE,
        personal="/b$",
        client_optimizer=optax.sgd(0.1),
        mean=aggregate.uniform_mean,
    )
    once = [DRAWS[0]]
    found, expected = (oracle.rounds(f, problem.world, once)[0] for f in (fed, plain))
    oracle.assert_close(found.theta, expected.theta, rtol=1e-12)


def test_a_pattern_that_matches_nothing_is_refused():
    fed = fedrep(bilinear(COUNT).task, ONE, personal="haed", personal_work=ONE, **OPTIMIZERS)
    with pytest.raises(ValueError, match="personal='haed' matches none of"):
        fed.init(jax.random.key(0))
