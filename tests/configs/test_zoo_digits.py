"""Every row of the zoo is an experiment on digits; two of them are run."""

import importlib.util

import algorithms
import jax
import numpy as np
import pytest
import tiers
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


USUAL = [row for row in zoo.ROWS if row.name in algorithms.KINDS]


@pytest.mark.parametrize("row", tiers.usual(zoo.ROWS, *USUAL), ids=lambda row: row.name)
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


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("fedavgg", "the zoo has no row 'fedavgg'"),
        ("fedap", "fedap trains a part of an encoder; use configs/zoo/text.py"),
    ],
)
def test_a_method_that_it_does_not_have_is_refused(method, sentence):
    with pytest.raises(ValueError, match=sentence):
        config().experiment(method=method)


OPTIONS = {
    "FedLoRU around FedProx": {"method": "fedprox", "merge_every": 5},
    "FedLoRU around SCAFFOLD": {"method": "scaffold", "merge_every": 5},
    "FedLoRU around FedAdam": {"method": "fedadam", "merge_every": 5},
    "FedLoRU around FedEx-LoRA": {"method": "fedex", "merge_every": 5},
    "FlexLoRA of mixed ranks": {"method": "flexlora", "mixture": "strong"},
    "FLoRA of mixed ranks": {"method": "flora", "mixture": "light"},
    "HETLoRA of mixed ranks": {"method": "hetlora", "mixture": "normal"},
    "absence": {"method": "scaffold", "unavailable": 0.2, "lost": 0.1},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_what_stands_around_a_method_is_an_option(options):
    e = config().experiment(**options)
    server = jax.eval_shape(e.algorithm.init, jax.random.key(0))
    if "merge_every" in options:
        assert e.algorithm.broadcast(server, 5) > 0
        assert e.algorithm.broadcast(server, 4) == 0 or options["method"] == "fedex"
    if options["method"] in ("flexlora", "flora"):
        assert e.algorithm.clients == 30


@pytest.mark.full
def test_a_record_has_epsilon_and_the_bytes_of_those_who_were_there():
    pytest.importorskip("dp_accounting")
    some = {"clients": 6, "cohort": 3, "rounds": 2, "epochs": 1}
    e = config().experiment("fedavg", **some, noise=1.0, unavailable=1.0)
    first, last = run(e, host=HOST)
    assert 0 < first["epsilon"] < last["epsilon"]
    assert first["up"] == first["down"] == 0
