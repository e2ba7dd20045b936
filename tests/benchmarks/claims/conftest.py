"""Tiny problems for the scripts of the claims."""

import json
import sys

import numpy as np
import optax
import pytest
import sweep
import trained

from jaxfed import local, lowrank, models, tasks

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
def sizes():
    """Settings of a run of `problem` that takes seconds."""
    return {
        "train": 500,
        "scored": 250,
        "epochs": 1,
        "batch": 25,
        "rank": 1,
        "rates": [0.3, 1.0],
        "seeds": [1, 2],
        "marks": 2,
    }


@pytest.fixture
def problem(sizes):
    """Three classes that differ in their brightest pixel, and one hidden layer."""
    rng = np.random.default_rng(0)

    def examples(n):
        label = rng.integers(3, size=n).astype(np.int32)
        image = rng.normal(size=(n, 3)) + 3 * np.eye(3)[label]
        return {"image": image.astype(np.float32), "label": label}

    train, held_out, test = (examples(sizes[n]) for n in ("train", "scored", "scored"))
    factored = lowrank.Select(
        factors="dense_0/kernel", full="head|bias", rank=1, base="zero", up="random"
    )
    whole, factored = (
        tasks.classification(models.MLP((4,), 3), test, select=select)
        for select in (lowrank.everything, factored)
    )
    return sweep.Problem(
        train=train,
        held_out=held_out,
        test=test,
        whole=whole,
        factored=factored,
        work=local.Work(sizes["batch"], epochs=sizes["epochs"]),
        optimizer=lambda rate, rounds: optax.sgd(rate),
    )
