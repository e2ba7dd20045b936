"""FedPer: which part is shared, and that the other stays with its client."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from bilinear import Adapter, bilinear
from quadratic import quadratic

from jaxfed import local, trees
from jaxfed.algorithms import fedavg, fedper
from jaxfed.algorithms.general.fedper import divide, united
from jaxfed.lowrank import Factors, Theta
from jaxfed.simulation import ledger

COUNT = np.array([4, 6, 5])
DRAWS = [[0, 1], [1, 2], [2, 0]]
WORK = local.Work(8, epochs=2, shuffle=False)
SGD = {"client_optimizer": optax.sgd(0.1)}


@pytest.mark.parametrize(("personal", "kept"), [("w/b$", "b"), ("factors/w/a", "a")])
def test_rounds_are_those_of_a_loop_that_keeps_one_part_apart(x64, personal, kept):
    """Either factor as the head; both are trained together, one is averaged."""
    problem = bilinear(COUNT)
    fed = fedper(problem.task, WORK, personal=personal, **SGD)
    server, states, _ = oracle.rounds(fed, problem.world, DRAWS)
    shared = "ab".replace(kept, "")
    body = getattr(problem.start, shared)
    heads = dict.fromkeys(range(3), getattr(problem.start, kept))
    for ids in DRAWS:
        begun = [Adapter(**{shared: body, kept: heads[i]}, scale=0.5) for i in ids]
        trained = [problem.trained(i, f, 0.1, 2) for i, f in zip(ids, begun, strict=True)]
        heads |= {i: getattr(f, kept) for i, f in zip(ids, trained, strict=True)}
        bodies = np.stack([getattr(f, shared) for f in trained])
        body = np.tensordot(COUNT[ids] / COUNT[ids].sum(), bodies, axes=1)
    for i, head in heads.items():
        _, theta = fed.deploy(server, states[i])
        np.testing.assert_allclose(getattr(theta.factors["w"], kept), head, rtol=1e-6)
        np.testing.assert_allclose(getattr(theta.factors["w"], shared), body, rtol=1e-6)


def test_only_the_shared_part_crosses_the_wire_and_only_the_rest_is_kept():
    problem = bilinear(COUNT)
    fed = fedper(problem.task, WORK, personal="/b$", **SGD)
    server = fed.init(jax.random.key(0))
    state = fed.init_client(server, jax.random.key(0))
    a, b = trees.nbytes(problem.start.a) // 2, trees.nbytes(problem.start.b) // 2  # float32
    cohort = oracle.cohort(problem.world, [state] * 2, [0, 1], 0)
    assert ledger.most(fed, server, cohort)[0] == ledger.Wire(a, a)
    assert trees.nbytes(state) == b


def test_the_only_client_of_a_population_does_fedavg(x64):
    problem = bilinear([5])
    fed, plain = (
        fedper(problem.task, WORK, personal="/a$", **SGD),
        fedavg(problem.task, WORK, **SGD),
    )
    server, states, _ = oracle.rounds(fed, problem.world, [[0]] * 3)
    expected, _, _ = oracle.rounds(plain, problem.world, [[0]] * 3)
    oracle.assert_close(fed.deploy(server, states[0])[1], expected.theta, rtol=1e-12)


def test_each_client_draws_its_own_head():
    """From its own key, as the task would begin it."""
    problem = quadratic(COUNT)
    task = problem.task._replace(init=lambda key: ((), {"head": jax.random.normal(key), "w": 1.0}))
    fed = fedper(task, WORK, personal="head", **SGD)
    first, second = (fed.init_client(None, jax.random.key(i))["head"] for i in range(2))
    assert first != second


def test_what_is_divided_is_whole_again():
    theta = Theta({"head/bias": jnp.ones(2)}, {"w": Factors(jnp.ones(3), jnp.zeros(4), 2.0)})
    for personal, mine in (("head", 1), ("/a$", 1), ("^factors", 2), (".", 3)):
        shared, own = divide(theta, personal)
        assert len(jax.tree.leaves(own)) == mine == 3 - len(jax.tree.leaves(shared))
        oracle.assert_close(united(shared, own), theta)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="personal='haed' matches none of: factors/w/a, factors/w"):
        fedper(bilinear(COUNT).task, WORK, personal="haed", **SGD).init(jax.random.key(0))
