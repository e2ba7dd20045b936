"""Tiny problems for the scripts of the claims."""

import json
import sys

import kept
import launched
import numpy as np
import pytest
import sweep
import trained
from forked import Forked

from jaxfed import models

SMALL = ["--networks", "mlp", "--data", "fashion_mnist", "--seeds", "2", "--workers", "1"]


@pytest.fixture
def called(tmp_path, monkeypatch):
    """called(script, *more) runs it as the command line does: (its runs, its page).

    The data are two classes of 4 x 4 images, dark and bright, for an MLP of one small hidden layer.
    """
    rng = np.random.default_rng(0)
    small = trained.NETWORKS["mlp"]._replace(model=lambda classes: models.MLP((4,), classes))
    monkeypatch.setitem(trained.NETWORKS, "mlp", small)
    made = {}
    for split in ("train", "test"):
        label = np.arange(60) % 2
        image = rng.integers(0, 128, (60, 4, 4)) + 100 * label[:, None, None]
        made |= {f"{split}_image": image.astype(np.uint8), f"{split}_label": label}
    np.savez(tmp_path / "fashion_mnist.npz", **made)
    path = tmp_path / "found"

    def call(script, *more):
        given = ["--data-dir", str(tmp_path), "--results", str(path), *SMALL, *more]
        monkeypatch.setattr(sys, "argv", ["script", *given])
        script.main()
        assert path.with_suffix(".png").exists()
        content = json.loads(path.with_suffix(".json").read_text())
        return content, path.with_suffix(".md").read_text()

    return call


@pytest.fixture
def small():
    """Settings of digits that take seconds; a claim has others beside them."""
    return {
        **{"data": "digits", "widths": [8], "concentration": 0.5, "train": 300, "scored": 250},
        **{"clients": 6, "cohort": 3, "rounds": 4, "epochs": 1, "batch": 10},
        **{"rank": 2, "scale": 2.0, "clip": 1.0, "rates": [0.3, 1.0], "seeds": [1, 2], "marks": 2},
    }


@pytest.fixture
def forking(monkeypatch):
    """Sweeps run in forked processes, which need not import anew."""

    def command(*words):
        launched.finished(Forked(*words))

    monkeypatch.setattr(sweep, "command", command)


@pytest.fixture
def swept(tmp_path, forking):
    """swept(script, settings, names) makes these cells of a claim: its kept runs."""

    def make(script, settings, names):
        made, cells = kept.Kept(tmp_path / "found.json", settings), script.cells(settings)
        options = {"chunk": 3, "cpu_devices": 1}
        how = sweep.How(script.__name__, settings, None, tmp_path / "runs", options)
        collect = getattr(script, "collected", sweep.collected)
        tuned = getattr(script, "tuned", sweep.tuned)
        tuned(made, {n: cells[n] for n in names}, how, collect)
        return made

    return make
