"""Every row of the zoo is an experiment on digits; two of them are run."""

import importlib.util

import jax
import numpy as np
import pytest
from pages import ROOT

from jaxfed import Host, run
from jaxfed.algorithms import zoo

HOST = Host(devices=1, chunk=3, fuse=1, checkpoint_every=0)


def config():
    path = ROOT / "configs" / "zoo" / "digits.py"
    spec = importlib.util.spec_from_file_location("digits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("row", zoo.ROWS, ids=lambda row: row.name)
def test_every_row_makes_an_experiment_whose_model_deploys(row):
    e = config().experiment(method=row.name)
    server = jax.eval_shape(e.algorithm.init, jax.random.key(0))
    state = jax.eval_shape(e.algorithm.init_client, server, jax.random.key(0))
    assert len(jax.eval_shape(e.algorithm.deploy, server, state)) == 2
    assert e.algorithm.clients in (None, e.data.train.clients)


@pytest.mark.full
@pytest.mark.parametrize("method", ["fedex", "fedper"])
def test_methods_of_two_families_learn(method):
    e = config().experiment(method=method, clients=6, cohort=3, rounds=3, epochs=1)
    losses = [record["loss"] for record in run(e, host=HOST)]
    assert np.all(np.isfinite(losses))
    assert losses[-1] < losses[0]


def test_a_method_that_is_no_row_is_refused():
    with pytest.raises(ValueError, match="the zoo has no row 'fedavgg'"):
        config().experiment(method="fedavgg")
