"""What a notebook shows of a run: one line while it goes on, then a table and curves."""

import base64
import contextlib
import io
import re

import numpy as np
import optax
import pytest

import jaxfed
from jaxfed import Experiment, local, models, run, tasks
from jaxfed.algorithms import fedavg
from jaxfed.cli import notebook
from jaxfed.data import federate, sources


@pytest.fixture(scope="module")
def experiment():
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    rows = {"image": x, "label": (x.sum(1) > 0).astype(np.int32)}
    task = tasks.classification(models.MLP((4,), classes=2), rows)
    algorithm = fedavg(task, local.Work(4, epochs=1), client_optimizer=optax.sgd(0.1))
    data = federate(sources.Source(rows, rows), np.split(np.arange(16), 4))
    return Experiment(data, algorithm, rounds=6, cohort=2, seed=3, evaluate_every=2)


@pytest.fixture(scope="module")
def followed(experiment, tmp_path_factory):
    """(folder, records, states of the line), as in a notebook whose clock stands still."""
    folder, lines = tmp_path_factory.mktemp("followed") / "r", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebook, "_line", lambda: lines.append)
        patch.setattr(notebook, "EVERY", 1e9)
        return folder, jaxfed.follow(experiment, folder), lines


def without_seconds(records):
    return [{n: v for n, v in record.items() if n != "seconds"} for record in records]


def test_followed_records_are_those_of_a_run(experiment, followed):
    _, records, _ = followed
    assert without_seconds(records) == without_seconds(run(experiment))


def test_the_line_changes_at_its_rate_and_at_the_end(followed):
    _, records, lines = followed
    assert len(lines) == 2
    assert '<progress value="6" max="6"></progress> round 6 of 6  accuracy' in lines[-1]
    assert f"{records[-1]['loss']:.4f}" in lines[-1]


def test_outside_of_a_notebook_nothing_but_a_terminal_gets_a_bar(experiment):
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        jaxfed.follow(experiment)
    assert error.getvalue() == ""


def test_records_an_experiment_and_a_loaded_run_are_short(experiment, followed):
    folder, records, _ = followed
    assert repr(experiment) == ("Experiment(clients 4, examples 16, cohort 2, rounds 6, seed 3)")
    assert re.fullmatch(
        r"Records\(rounds 6, accuracy [\d.]+, test_loss [\d.]+, loss [\d.]+, megabytes 0.0\)",
        repr(records),
    )
    loaded = jaxfed.load(folder, experiment=experiment)
    assert repr(loaded).startswith(f"Loaded(folder {folder}, model after round 6, rounds 6 of 6, ")
    for thing in (experiment, records, loaded):
        assert thing._repr_html_().startswith(f"<table><caption>{type(thing).__name__}</caption>")


def test_records_show_their_curves(followed):
    _, records, _ = followed
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', records._repr_html_())
    assert len(images) == 2
    assert all(base64.b64decode(image).startswith(b"\x89PNG") for image in images)
    assert notebook.Records()._repr_html_().startswith("<table>")
