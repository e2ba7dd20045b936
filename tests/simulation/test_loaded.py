"""A run that is read back is the run as it was, and stays so."""

import json

import jax
import numpy as np
import pytest
from small import experiment

import jaxfed
from jaxfed import lowrank

HOST = jaxfed.Host(devices=1, chunk=5, fuse=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the folder, its experiment, its records)."""
    folder, e = tmp_path_factory.mktemp("run"), experiment(rounds=4)
    return folder, e, list(jaxfed.run(e, folder, HOST))


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_what_is_loaded_scores_what_was_recorded_and_no_file_changes(finished):
    folder, e, records = finished
    before = files(folder)
    found = jaxfed.load(folder, experiment=e)
    assert (found.round, found.records, found.config) == (4, records, None)
    base, theta = found.deployed()
    test = e.data.test
    batch = {**test, "mask": np.ones(len(test["label"]), np.float32)}
    correct = e.task.evaluate(base, theta, batch)["accuracy"]
    assert float(correct) / len(test["label"]) == pytest.approx(records[-1]["accuracy"], abs=1e-6)
    assert files(folder) == before


def test_an_earlier_round_is_loaded_by_its_number(finished):
    folder, e, _ = finished
    first, later = (jaxfed.load(folder, t, experiment=e) for t in (0, 2))
    drawn = e.algorithm.init(jax.random.key(e.seed))
    assert jax.tree.all(jax.tree.map(np.array_equal, first.server, drawn))
    assert not jax.tree.all(jax.tree.map(np.array_equal, later.theta, first.theta))
    with pytest.raises(ValueError, match="no checkpoint of round 3; it has 2, 4"):
        jaxfed.load(folder, 3, experiment=e)


def test_params_are_the_merged_weights(finished):
    folder, e, _ = finished
    found = jaxfed.load(folder, experiment=e)
    merged = lowrank.merged(*found.deployed(3))
    assert jax.tree.all(jax.tree.map(np.array_equal, found.params(3), merged))
    with pytest.raises(ValueError, match="no client 20; use 0 to 19"):
        found.params(20)


def test_without_its_experiment_there_are_records_and_settings(finished):
    folder, _, records = finished
    found = jaxfed.load(folder)
    assert (found.round, found.records) == (4, records)
    assert found.settings == json.loads((folder / "settings.json").read_text())
    with pytest.raises(ValueError, match="give the experiment"):
        found.params()


def test_another_experiment_is_refused(finished):
    folder, _, _ = finished
    with pytest.raises(ValueError, match=r"learning_rate=0.03, not 0.3: give the experiment"):
        jaxfed.load(folder, experiment=experiment(rounds=4, learning_rate=0.3))
    with pytest.raises(FileNotFoundError, match="settings"):
        jaxfed.load(folder / "checkpoints")
