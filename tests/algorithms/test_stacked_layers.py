"""Rounds over stacked layers (nn.scan) are rounds over the same layers written out."""

import dataclasses
from functools import cache, partial

import algorithms
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiers

from jaxfed import lowrank, tasks
from jaxfed.algorithms.row import Setting
from jaxfed.algorithms.shared import mfedloru
from jaxfed.algorithms.zoo import ROWS
from jaxfed.analysis import gradients
from jaxfed.combine.measure import discrepancy
from jaxfed.lowrank.gates import Gated

LAYERS, WIDTH = 2, algorithms.FEATURES
WORLD = algorithms.world([4, 6, 3])
SETTING = Setting(algorithms.ONE_EPOCH, 0.2, clients=3, cohort=3, rank=2, rounds=2)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(WIDTH, name="dense")(x)), None


class Blocks(nn.Module):
    """Blocks and a head; the blocks are stacked, or written out."""

    stacked: bool

    @nn.compact
    def __call__(self, x):
        if self.stacked:
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x = nn.scan(Block, length=LAYERS, **axes)(name="blocks")(x, None)[0]
        else:
            for i in range(LAYERS):
                x = Block(name=f"blocks_{i}")(x, None)[0]
        return nn.Dense(algorithms.CLASSES, name="head")(x)


def layer(held, i):
    """Layer i of a stack: of an array, of factors, or of a gated adapter."""
    one = jax.tree.map(lambda x: x[i], held)
    if isinstance(one, Gated):
        return dataclasses.replace(one, factors=dataclasses.replace(one.factors, stack=0))
    return dataclasses.replace(one, stack=0) if isinstance(one, lowrank.Factors) else one


def apart(tree):
    """A state of the stacked model as one of the model written out."""
    if isinstance(tree, dict):
        rest = {p: apart(x) for p, x in tree.items() if "blocks/" not in p}
        return rest | {
            p.replace("blocks/", f"blocks_{i}/"): layer(x, i)
            for p, x in tree.items()
            for i in range(LAYERS)
            if "blocks/" in p
        }
    return tree._make(map(apart, tree)) if hasattr(tree, "_make") else tree


@cache
def algorithm(name, stacked):
    row = next(row for row in ROWS if row.name == name)
    starts = {"base": "zero"} if row.trains == "scratch" else {}
    select = lowrank.Select(factors="blocks", full="head", rank=2, up="random", **starts)
    task = tasks.classification(Blocks(stacked), WORLD.examples, select=select)
    return row.make(task, SETTING)


def deployed(algorithm, server, state):
    """The model of a client: its weights, and its gated adapters if it has such."""
    base, theta = algorithm.deploy(server, state)
    gated = {p: f for p, f in theta.factors.items() if isinstance(f, Gated)}
    plain = {p: f for p, f in theta.factors.items() if p not in gated}
    return {**lowrank.merge(base, theta._replace(factors=plain)), **theta.full, "gated": gated}


NAMES = ("florist", "lora-a2", "fedsb", "hetlora", "fedalt", "frlora", "fedloru-list", "fedpara")
NAMES += ("pfedpara", "ravan", "fedhm", "fedms", "flexlora")


@pytest.mark.parametrize("name", tiers.usual(NAMES, "lora-a2", "hetlora"))
def test_rounds_over_a_stack_are_rounds_over_its_layers_written_out(name):
    """The clients' models, and the bytes that cross."""
    stacked, plain = algorithm(name, True), algorithm(name, False)
    draws = [(0, 1, 2)] * (1 if name == "florist" else 2)  # whose next factors are drawn by path
    server, state = oracle.start(stacked)
    found = oracle.Loop(lambda _: stacked, WORLD).rounds((server, state), draws)
    expected = oracle.Loop(lambda _: plain, WORLD).rounds((apart(server), apart(state)), draws)
    for i in range(2):
        one = apart(deployed(stacked, found[0], found[1][i]))
        other = deployed(plain, expected[0], expected[1][i])
        oracle.assert_close(one, other, rtol=1e-3, atol=1e-5)
    for one, other in zip(found[2], expected[2], strict=True):
        for sizes in ("up", "down"):
            np.testing.assert_array_equal(one[sizes], other[sizes])
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-4)


@cache
def theta():
    task = algorithm("flexlora", True).task
    return jax.jit(task.init)(jax.random.key(0))[1]


def test_nested_factors_of_a_stack_are_those_of_its_layers():
    drawn = partial(lowrank.beside, mfedloru.around(theta()), 2, alpha=2.0, up="random")
    nested = lowrank.Theta(theta().full, drawn(jax.random.key(1)))
    found = apart(mfedloru.recovered(theta(), nested))
    expected = mfedloru.recovered(apart(theta()), apart(nested))
    oracle.assert_close(found, expected, rtol=1e-5)
    assert mfedloru.around(apart(theta())).keys() == apart(mfedloru.around(theta())).keys()


def test_gaps_and_inner_products_of_a_stack_are_sums_over_its_layers():
    """Factors [K, L, ...] of K clients beside [K, ...] of each layer."""
    many = jax.tree.map(lambda x: np.stack([x, 2 * x, x - 1]), theta())
    each = [jax.tree.map(lambda x, k=k: x[k], many) for k in range(3)]
    alone = jax.tree.map(lambda *x: np.stack(x), *map(apart, each))
    weight = np.array([0.5, 0.3, 0.2], np.float32)

    @jax.jit
    def measured(x):
        return discrepancy(x.factors, weight), gradients.inner_of_products(x)

    oracle.assert_close(measured(many), measured(alone), rtol=1e-5)


@pytest.mark.full
def test_two_predictions_an_example_diverge_by_their_mean():
    """FedDAT over logits [B, 2, classes], twice the same, is FedDAT over logits [B, classes]."""
    (row,) = (row for row in ROWS if row.name == "feddat")
    task = algorithm("flexlora", False).task
    twice = task._replace(predict=lambda *x: jnp.stack([task.predict(*x)] * 2, axis=1))
    found, expected = (
        oracle.rounds(row.make(t, SETTING), WORLD, [(0, 1, 2)])[0] for t in (twice, task)
    )
    oracle.assert_close(found, expected, rtol=1e-5)
