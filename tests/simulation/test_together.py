"""Trials as the leading axis of arrays: what they share is there once."""

import dataclasses
import math
import re

import algorithms
import at_once
import jax
import jax.numpy as jnp
import pytest

from jaxfed import trees
from jaxfed.data import federate, partition
from jaxfed.simulation import engine, loop, pooling, together


def test_a_base_that_no_round_changes_and_examples_are_there_once():
    """A further trial needs its theta, its plan and a few numbers; nothing has its base twice."""
    members = at_once.prepared(
        [at_once.experiment("fedlora", s, 0.1 + s, at_once.GIVEN, split=0) for s in (0, 1)]
    )
    first, members = members[0], pooling.shared(members)
    server, examples = first.state.server, first.supply.examples
    base, theta = trees.nbytes(server.base), trees.nbytes(server.theta)
    block = first.supply.block(next(first.ranges()))
    trials = together.together(members, engine.machine(1))
    program = trials.compile({0: block.plan, 1: block.plan})
    own = trees.nbytes(block.plan) + 64
    argument = program.memory_analysis().argument_size_in_bytes
    assert base + trees.nbytes(examples) + 2 * theta < argument
    assert argument < base + trees.nbytes(examples) + 2 * (theta + own) < 2 * base + 2 * theta
    shapes = re.findall(r"f32\[([\d,]+)\]", program.as_text())
    most = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert most == max(x.size for x in (*server.base.values(), examples["image"]))


def test_examples_that_each_seed_deals_otherwise_are_there_once():
    """A trial has an order of 4 bytes a row, in training and in evaluations, also of its host.

    Each holds out rows of its own, so that no two have the same rows.
    """

    def dealt(seed):
        parts = partition.iid(48, at_once.CLIENTS, seed=seed)
        data = federate(at_once.SOURCE, parts, personal_fraction=0.25, seed=seed)
        made = at_once.experiment("fedlora", seed, params=at_once.GIVEN)
        return dataclasses.replace(made, data=data)

    whole = trees.nbytes(at_once.SOURCE.train)
    members = pooling.shared(at_once.prepared([dealt(seed) for seed in range(4)]))
    tests = [x for p in members for x in p.evaluate.examples.values()]
    sets = [p.supply.examples for p in members] + tests
    pool = {id(x): x.nbytes for s in sets for x in jax.tree.leaves(s.examples)}
    assert whole - 4 * 48 == sum(pool.values())  # labels have 32 bits there
    for p in members:
        data = p.experiment.data
        held = (data.train.examples, data.personal.examples, data.test)
        assert all(x.base.nbytes * len(x) == x.nbytes for x in jax.tree.leaves(held))
    trials = together.together(members, engine.machine(1))
    block = members[0].supply.block(next(members[0].ranges()))
    program = trials.compile(dict.fromkeys(range(4), block.plan))
    base = trees.nbytes(members[0].state.server.base)
    own = 4 * (trees.nbytes(members[0].state.server.theta) + trees.nbytes(block.plan) + 4 * 48 + 64)
    argument = program.memory_analysis().argument_size_in_bytes
    assert sum(pool.values()) + base < argument < sum(pool.values()) + base + own


@pytest.mark.full
@pytest.mark.parametrize(
    "name", ["ditto", "perfedavg", "flora", "hetlora", "fdlora", "fedavg-ef21"]
)
def test_a_round_has_a_form_for_several_trials(name):
    world = algorithms.UNIFORM
    on = loop.on_engine(algorithms.ALGORITHMS[name](algorithms.RATE), world)
    plan = jax.tree.map(jnp.asarray, loop.plan(world, algorithms.DRAWS[:1]))
    server, states, own = jax.tree.map(lambda x: jnp.stack([x, x]), (on.server, on.states, plan))
    rounds = jax.vmap(on.step, in_axes=(0, 0, None, together.PLAN))
    found, _, _ = jax.eval_shape(
        rounds, server, states, on.examples, own._replace(round=plan.round)
    )
    assert trees.shapes(found) == trees.shapes(server)
