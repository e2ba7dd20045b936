"""Fine-tuning at deployment: what a client runs, and that nothing else changes."""

import algorithms
import jax
import numpy as np
import optax
import oracle
import pytest
import tiers
from bilinear import adapter, assert_adapter, bilinear, mean

from jaxfed import combine, local
from jaxfed.algorithms import fedavg
from jaxfed.simulation import ledger

COUNT = np.array([4, 6, 5])
DRAWS = [[0, 1], [1, 2], [2, 0]]
WORK = local.Work(8, epochs=2, shuffle=False)
TUNING = {"work": local.Work(8, steps=3, shuffle=False), "optimizer": optax.sgd(0.2)}


def homlora(problem):
    return fedavg(problem.task, WORK, client_optimizer=optax.sgd(0.1))


def test_homlora_scored_after_local_steps_is_a_loop(x64):
    """Each client's steps start from the average of the round that it took part in last."""
    problem = bilinear(COUNT)
    fed = combine.fine_tuned(homlora(problem), **TUNING)
    server, states, _ = oracle.rounds(fed, problem.world, DRAWS)
    shared, change = problem.start, {}
    for ids in DRAWS:
        trained = [problem.trained(i, shared, 0.1, 2) for i in ids]
        shared = mean(trained, COUNT[ids] / COUNT[ids].sum())
        for i in ids:
            own = problem.trained(i, shared, 0.2, 3)
            change[i] = own.a - shared.a, own.b - shared.b
    for i in range(3):
        _, theta = fed.deploy(server, states[i])
        expected = shared._replace(a=shared.a + change[i][0], b=shared.b + change[i][1])
        assert_adapter(theta.factors, expected, rtol=1e-9)
    assert_adapter(server.theta.factors, shared, rtol=1e-9)


def test_a_client_that_was_never_drawn_deploys_the_servers_model(x64):
    problem = bilinear(COUNT)
    fed = combine.fine_tuned(homlora(problem), **TUNING)
    server, states, _ = oracle.rounds(fed, problem.world, [[0, 1]])
    oracle.assert_close(fed.deploy(server, states[2])[1], server.theta, rtol=0, atol=0)


@pytest.mark.full
def test_steps_are_made_in_the_rounds_that_are_asked_for(x64):
    """After the second and fourth round; in between, the last change stays."""
    problem, everyone = bilinear(COUNT), [range(3)] * 5
    fed, always = (combine.fine_tuned(homlora(problem), **TUNING, every=every) for every in (2, 1))
    states = [oracle.rounds(fed, problem.world, everyone[:t])[1] for t in range(6)]
    expected = [oracle.rounds(always, problem.world, everyone[:t])[1] for t in range(6)]
    for t, at in ((1, None), (2, 2), (3, 2), (4, 4), (5, 4)):
        change = adapter(states[t][0].change.factors)
        if at is None:
            assert not np.any(change.a)
        else:
            assert_adapter(expected[at][0].change.factors, change, rtol=1e-12)


EACH = tiers.usual(("fedloru", "pf2lora", "scaffold", "hetlora", "fedper", "ditto"), "scaffold")


@pytest.mark.parametrize("name", EACH)
def test_training_and_bytes_are_those_of_the_inner_algorithm(x64, name):
    inner = algorithms.ALGORITHMS[name](algorithms.RATE)
    tuning = {"optimizer": optax.sgd(0.1)}
    fed = combine.fine_tuned(inner, algorithms.ONE_EPOCH, **tuning)
    draws = algorithms.DRAWS[:2]
    server, states, metrics = oracle.rounds(fed, algorithms.UNEQUAL, draws)
    expected, kept, theirs = oracle.rounds(inner, algorithms.UNEQUAL, draws)
    oracle.assert_close(server, expected)
    oracle.assert_close({i: s.inner for i, s in states.items()}, kept)
    for ours, plain in zip(metrics, theirs, strict=True):
        oracle.assert_close(ours, plain)
    moved = jax.tree.map(
        lambda x, y: bool(np.any(x != y)),
        fed.deploy(server, states[int(draws[1][0])])[1],
        inner.deploy(expected, kept[int(draws[1][0])])[1],
    )
    assert any(jax.tree.leaves(moved))
    cohorts = [
        oracle.cohort(algorithms.UNEQUAL, [s[i] for i in range(3)], range(3), 0)
        for s in (states, kept)
    ]
    wires = [
        ledger.most(f, s, c)
        for f, s, c in zip((fed, inner), (server, expected), cohorts, strict=True)
    ]
    assert wires[0] == wires[1]


def test_what_makes_no_sense_is_refused():
    fed = homlora(bilinear(COUNT))
    with pytest.raises(ValueError, match="every=0"):
        combine.fine_tuned(fed, **TUNING, every=0)
    with pytest.raises(TypeError, match="optimizer is a float"):
        combine.fine_tuned(fed, TUNING["work"], optimizer=0.1)
    with pytest.raises(TypeError, match="work is a int"):
        combine.fine_tuned(fed, 3, optimizer=optax.sgd(0.1))
