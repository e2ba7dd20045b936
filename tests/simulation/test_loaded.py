"""A run that is read back is the run as it was, and stays so."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from small import experiment

import jaxfed
from jaxfed import local, lowrank
from jaxfed.algorithms import fedper

HOST = jaxfed.Host(devices=1, chunk=5, fuse=1, checkpoint_every=2)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(the folder, its experiment, its records)."""
    folder, e = tmp_path_factory.mktemp("run"), experiment(rounds=4)
    return folder, e, list(jaxfed.run(e, folder, HOST))


@pytest.fixture(scope="module")
def personal(tmp_path_factory):
    """(the folder, its experiment, its last record) of FedPer, whose clients have names."""
    folder, e = tmp_path_factory.mktemp("personal"), experiment(rounds=2)
    names = tuple(f"user {k:02d}" for k in range(e.data.clients))
    algorithm = fedper(
        e.task,
        local.Work(10, epochs=1),
        personal="^full/",
        client_optimizer=optax.sgd(0.1),
        common_start=False,
        keep_moments=False,
    )
    data = dataclasses.replace(e.data, names=names)
    e = dataclasses.replace(e, data=data, algorithm=algorithm, cohort=20)
    return folder, e, list(jaxfed.run(e, folder, HOST))[-1]


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


def test_predictions_are_those_that_the_run_was_scored_by(finished):
    folder, e, records = finished
    found, test = jaxfed.load(folder, experiment=e), e.data.test
    logits = found.predict(test)
    assert logits.shape == (len(test["label"]), 10)
    accuracy = np.mean(logits.argmax(-1) == test["label"])
    assert accuracy == pytest.approx(records[-1]["accuracy"], abs=1e-6)
    some = found.predict(test["image"][:3])  # one array, and a part of a batch
    np.testing.assert_allclose(some, logits[:3], atol=1e-4)


@pytest.mark.full
def test_a_clients_predictions_are_those_of_its_own_model(personal):
    folder, e, record = personal
    found, own = jaxfed.load(folder, experiment=e), e.data.personal
    accuracies, rows = [], {}
    for k in np.flatnonzero(own.count):
        rows = {n: x[own.start[k] : own.start[k] + own.count[k]] for n, x in own.examples.items()}
        said = found.predict(rows, client=f"user {k:02d}").argmax(-1)
        accuracies.append(np.mean(said == rows["label"]))
    assert np.mean(accuracies) == pytest.approx(record["personal"]["accuracy"]["mean"], abs=1e-6)
    newest = found.clients[-1]
    named = [f"user {k:02d}" for k in np.flatnonzero(own.count)]
    assert (newest["round"], newest["client"]) == (2, named)
    np.testing.assert_array_equal(newest["examples"], own.count[own.count > 0])
    np.testing.assert_allclose(newest["accuracy"], accuracies, atol=1e-6)
    assert np.min(accuracies) == pytest.approx(record["personal"]["accuracy"]["min"], abs=1e-6)
    last = e.data.clients - 1
    common = found.predict(rows)
    assert np.abs(found.predict(rows, last) - common).max() > 1e-3  # who keeps something else


def test_inputs_that_are_not_the_runs_are_refused(finished):
    folder, e, _ = finished
    found = jaxfed.load(folder, experiment=e)
    for wrong, sentence in (
        ({"picture": np.zeros(2)}, "no 'image'; they have"),
        (np.zeros((2, 8, 8), np.uint8), r"image is uint8 \(2, 8, 8\); .* uint8 \(n, 8, 8, 1\)"),
        (np.zeros((2, 8, 8, 1)), "image is float64"),
        (np.zeros((0, 8, 8, 1), np.uint8), "0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            found.predict(wrong)


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
