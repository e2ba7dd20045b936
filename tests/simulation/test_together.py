"""Trials as the leading axis of arrays: what they share is there once."""

import math
import re

import algorithms
import at_once
import jax
import jax.numpy as jnp
import pytest

from jaxfed import trees
from jaxfed.simulation import engine, loop, together


def test_a_base_that_no_round_changes_and_examples_are_there_once():
    """A further trial needs its theta, its plan and a few numbers; nothing has its base twice."""
    first, second = at_once.prepared(
        [at_once.experiment("fedlora", s, 0.1 + s, at_once.GIVEN, split=0) for s in (0, 1)]
    )
    members = [first, together.sharing(second, first)]
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
