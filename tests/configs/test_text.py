"""The arms of FedPETuning: what each trains, and that a run of the small encoder is whole."""

import runpy
import typing
from pathlib import Path

import jax
import numpy as np
import optax
import oracle
import pytest
import tiers

from jaxfed import local, run, trees
from jaxfed.algorithms import fedavg, zoo

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs/zoo/text.py"))

HEAD = 32 * 2 + 2
LAYER = 2 * (32 * 8 + 8 * 32)  # factors on query and value
WIDE = 2 * (32 * 4 + 4 + 4 * 32 + 32)  # two bottlenecks
WHOLE = HEAD + 32 * 32 + 32 + 16 * 32 + 16 * 32 + 2 * 32 + 2 * 32  # and what precedes the layers
WHOLE += 2 * (4 * (32 * 32 + 32) + 32 * 64 + 64 + 64 * 32 + 32 + 2 * 64)
TRAINED = {
    "fedft": WHOLE,
    "fedbf": HEAD + 2 * (4 * 32 + 64 + 32 + 2 * 32) + 32 + 32,
    "fedlr": HEAD + 2 * LAYER,
    "fedap": HEAD + 2 * WIDE,
    "fedpf": HEAD + 2 * 2 * 3 * 32,
    "pftt": HEAD + 2 * WIDE,  # shared; the factors are the clients'
}


@pytest.mark.parametrize("method", tiers.usual(TRAINED, "fedlr", "pftt"))
def test_an_arm_sends_what_it_trains_and_the_head(method):
    made = CONFIG["experiment"](method, adapter=4, prefix=3, clients=20)
    server = jax.eval_shape(made.algorithm.init, jax.random.key(0))
    assert trees.size(server.theta) == TRAINED[method]


def test_sentences_hold_one_of_two_words():
    made = CONFIG["sentences"](10, 0)
    counts = np.stack([(made["tokens"] == word).sum(1) for word in (2, 3)], axis=1)
    np.testing.assert_array_equal(counts, 3 * np.eye(2, dtype=int)[made["label"]])


def test_its_methods_are_the_arms_of_the_zoo_and_pftt():
    methods = typing.get_args(CONFIG["Method"])
    assert methods == (*(row.name for row in zoo.ARMS), "pftt")
    assert set(CONFIG["RATES"]) == set(methods)


@pytest.mark.full
@pytest.mark.parametrize("method", ["fedap", "fedpf", "fedbf"])
def test_a_round_of_an_arm_is_that_of_a_loop(method):
    """By SGD, as AdamW makes a step of what rounding leaves of a gradient; on 1 and 4 devices."""
    task = CONFIG["experiment"](method, adapter=4, prefix=3, clients=20).algorithm.task
    work = local.Work(4, epochs=1, shuffle=False)
    fed = fedavg(task, work, client_optimizer=optax.sgd(0.1))
    world, draws = oracle.World(CONFIG["sentences"](12, 0), np.array([2, 4, 6])), [[0, 2, 1]]
    expected = oracle.rounds(fed, world, draws)[0]
    for devices in (1, 4):
        on = oracle.on_engine(fed, world, devices=devices, chunk=1)
        found = oracle.engine_rounds(on, world, draws)[0]
        oracle.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda x, y: float(abs(x - y).max()), found.theta, on.server.theta)
    assert max(jax.tree.leaves(moved)) > 1e-3


@pytest.mark.full
def test_a_short_run_learns():
    *_, last = run(CONFIG["experiment"]("fedap", clients=20, cohort=4, rounds=12))
    assert last["accuracy"] > 0.8
