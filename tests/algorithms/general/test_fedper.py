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
    first, second = (fed.init_client(None, jax.random.key(i)).own["head"] for i in range(2))
    assert first != second


def test_with_a_common_start_it_is_fedavg_whose_heads_stay_at_home(x64):
    """HOMLoRA with personal heads: all start at one head, each trains it, nobody averages it."""
    problem = bilinear(COUNT)
    task = problem.task._replace(
        init=lambda key: ((), {"body": jnp.ones(2), "head": jax.random.normal(key, (2,))}),
        loss=lambda base, theta, batch, key: (
            jnp.sum(
                (batch["x"][:, :2] @ theta["body"] + jnp.sum(theta["head"]) - batch["y"][:, 0]) ** 2
                * batch["mask"]
            )
            / jnp.sum(batch["mask"])
        ),
    )
    fed = fedper(task, WORK, personal="head", common_start=True, **SGD)
    server, states, _ = oracle.rounds(fed, problem.world, DRAWS)
    head = task.init(jax.random.key(0))[1]["head"]
    heads, body = dict.fromkeys(range(3), head), jnp.ones(2)
    plain = fedavg(task, WORK, **SGD)
    for ids in DRAWS:
        ends = []
        for i in ids:
            start = {"body": body, "head": heads[i]}
            alone = plain._replace(
                init=lambda key, start=start: plain.init(key)._replace(theta=start)
            )
            ends.append(oracle.rounds(alone, problem.world, [[i]])[0].theta)
            heads[i] = ends[-1]["head"]
        body = sum(c * e["body"] for c, e in zip(COUNT[ids] / COUNT[ids].sum(), ends, strict=True))
    np.testing.assert_allclose(server.theta["body"], body, rtol=1e-10)
    for i, own in heads.items():
        np.testing.assert_allclose(fed.deploy(server, states[i])[1]["head"], own, rtol=1e-10)


def test_with_a_common_start_every_client_begins_as_fedavg_does():
    problem = bilinear(COUNT)
    draws = problem.task._replace(
        init=lambda key: ((), {"head": jax.random.normal(key), "w": jnp.ones(())})
    )
    fed = fedper(draws, WORK, personal="head", common_start=True, **SGD)
    server = fed.init(jax.random.key(3))
    plain = fedavg(draws, WORK, **SGD).init(jax.random.key(3)).theta
    for i in range(2):
        begun = fed.deploy(server, fed.init_client(server, jax.random.key(i)))[1]
        oracle.assert_close(begun, plain, rtol=0, atol=0)


@pytest.mark.parametrize("keep", [True, False])
def test_moments_are_kept_across_an_average_or_restart(x64, keep):
    """Of a population of one: two rounds of two steps are four steps with kept momentum."""
    problem = bilinear([5])
    options = {"client_optimizer": optax.sgd(0.1, momentum=0.9), "keep_moments": keep}
    fed = fedper(problem.task, WORK, personal="/b$", **options)
    plain = fedavg(problem.task, WORK, **options)
    longer = local.Work(8, epochs=4, shuffle=False)
    unbroken = fedavg(problem.task, longer, client_optimizer=optax.sgd(0.1, momentum=0.9))
    once = oracle.rounds(unbroken, problem.world, [[0]])[0].theta
    server, states, _ = oracle.rounds(fed, problem.world, [[0]] * 2)
    found = fed.deploy(server, states[0])[1]
    averaged, _, _ = oracle.rounds(plain, problem.world, [[0]] * 2)
    oracle.assert_close(found, averaged.theta, rtol=1e-12)
    same = np.allclose(found.factors["w"].a, once.factors["w"].a, rtol=1e-10)
    assert same is keep


def test_what_is_divided_is_whole_again():
    theta = Theta({"head/bias": jnp.ones(2)}, {"w": Factors(jnp.ones(3), jnp.zeros(4), 2.0)})
    for personal, mine in (("head", 1), ("/a$", 1), ("^factors", 2), (".", 3)):
        shared, own = divide(theta, personal)
        assert len(jax.tree.leaves(own)) == mine == 3 - len(jax.tree.leaves(shared))
        oracle.assert_close(united(shared, own), theta)


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ValueError, match="personal='haed' matches none of: factors/w/a, factors/w"):
        fedper(bilinear(COUNT).task, WORK, personal="haed", **SGD).init(jax.random.key(0))
