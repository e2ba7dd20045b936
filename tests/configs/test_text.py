"""The arms of FedPETuning: what each trains, and that a run of the small encoder is whole."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxfed import run, trees

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs/zoo/text.py"))

HEAD = 32 * 2 + 2
LAYER = 2 * (32 * 8 + 8 * 32)  # factors on query and value
WIDE = 2 * (32 * 4 + 4 + 4 * 32 + 32)  # two bottlenecks
TRAINED = {
    "fedbf": HEAD + 2 * (4 * 32 + 64 + 32 + 2 * 32) + 32 + 32,
    "fedlr": HEAD + 2 * LAYER,
    "fedap": HEAD + 2 * WIDE,
    "fedpf": HEAD + 2 * 2 * 3 * 32,
    "pftt": HEAD + 2 * WIDE,  # shared; the factors are the clients'
}


@pytest.mark.parametrize("method", TRAINED)
def test_an_arm_sends_what_it_trains_and_the_head(method):
    made = CONFIG["experiment"](method, adapter=4, prefix=3, clients=20)
    server = jax.eval_shape(made.algorithm.init, jax.random.key(0))
    assert trees.size(server.theta) == TRAINED[method]


def test_sentences_hold_one_of_two_words():
    made = CONFIG["sentences"](10, 0)
    counts = np.stack([(made["tokens"] == word).sum(1) for word in (2, 3)], axis=1)
    np.testing.assert_array_equal(counts, 3 * np.eye(2, dtype=int)[made["label"]])


@pytest.mark.full
def test_a_short_run_learns():
    *_, last = run(CONFIG["experiment"]("fedap", clients=20, cohort=4, rounds=12))
    assert last["accuracy"] > 0.8
