"""An accumulation that is kept as a list beside an untouched base."""

import algorithms
import bilinear as bl
import jax
import numpy as np
import optax
import oracle
import pytest

from jaxfed import combine, local, lowrank
from jaxfed.algorithms import fedavg
from jaxfed.combine import listing
from jaxfed.lowrank import Theta, restarts

COUNT, ROUNDS = [4, 6, 10], [[0, 1, 2]] * 7
WORK = local.Work(10, steps=3, shuffle=False)


def inner(task):
    return fedavg(task, WORK, client_optimizer=optax.sgd(0.1))


@pytest.mark.parametrize(("merges", "folded"), [(3, 0), (2, 1)])
def test_a_list_computes_what_reinit_computes(x64, merges, folded):
    """Of three merges, those that find room leave W untouched; the oldest gives way."""
    problem = bl.bilinear(COUNT, rank=1)
    merged = combine.accumulate(inner(problem.task), every=2, restart=restarts.reinit)
    fed = combine.accumulate_list(inner, problem.task, every=2, merges=merges)
    expected, _, _ = oracle.rounds(merged, problem.world, ROUNDS)
    server, states, _ = oracle.rounds(fed, problem.world, ROUNDS)
    oracle.assert_close(server.theta, expected.theta)
    weights, chain = listing.parted(server.base, server.theta.factors)
    assert chain["w"].rank == merges
    whole = lowrank.merge(weights, Theta({}, chain))
    np.testing.assert_allclose(whole["w"], expected.base["w"], rtol=1e-10)
    untouched = np.allclose(weights["w"], problem.weight, rtol=0, atol=0)
    assert untouched == (folded == 0)
    base, theta = fed.deploy(server, states[0])
    oracle.assert_close((base, theta), (expected.base, expected.theta))


def test_what_is_deployed_has_no_list():
    fed = algorithms.ALGORITHMS["fedloru-list"](0.1)
    server = jax.eval_shape(fed.init, jax.random.key(0))
    base, _ = jax.eval_shape(fed.deploy, server, ())
    assert set(base) == {p for p in server.base if not p.startswith(listing.LIST)}
    assert server.base["list/head/kernel/a"].shape == (5, 3 * 2)


def test_a_list_without_room_is_refused():
    with pytest.raises(ValueError, match="merges=0"):
        combine.accumulate_list(inner, bl.bilinear(COUNT).task, every=2, merges=0)
