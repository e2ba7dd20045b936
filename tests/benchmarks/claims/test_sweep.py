"""Cells of a claim as sweeps: what their trials are, and what is kept of them."""

import itertools
import json

import binding_rank
import numpy as np
import pytest
import sweep

from jaxfed import Host, run


@pytest.mark.full
def test_a_cell_is_tuned_on_held_out_examples_and_runs_its_seeds(swept, small, tmp_path):
    """A seed's accuracy and bytes are those of the library's run at the best rate."""
    settings = {**binding_rank.QUICK, **small, "ranks": [2], "tau": [2]}
    found = swept(binding_rank, settings, ["2/balanced/2"])
    assert set(found.runs) == {
        f"2/balanced/2/{k}" for k in ("grid/0.3", "grid/1.0", "seed/1", "seed/2")
    }
    best = max((0.3, 1.0), key=lambda rate: found.runs[f"2/balanced/2/grid/{rate}"]["accuracy"][-1])
    problem = sweep.problem(json.dumps(settings), None)
    cell = binding_rank.cells(settings)["2/balanced/2"]
    made = sweep.experiment(problem, cell, rate=best, seed=2, marks=2)
    np.testing.assert_array_equal(made.data.validated().test["image"], problem.held_out["image"])
    records = list(run(made, host=Host(devices=1, chunk=3)))
    kept = found.runs["2/balanced/2/seed/2"]
    sent = list(itertools.accumulate(r["down"] + r["up"] + r["broadcast"] for r in records))
    assert kept["rate"] == best
    assert kept["round"] == [2, 4]
    assert kept["sent"] == [sent[1], sent[3]]
    accuracy = [r["accuracy"] for r in records if "accuracy" in r]
    assert kept["accuracy"] == pytest.approx(accuracy)
    again = swept(binding_rank, settings, ["2/balanced/2"])  # nothing is run again
    assert again.runs == found.runs


def test_what_is_kept_of_a_run():
    records = [
        {"round": t, "sent": 10 * t, "sent up": 4 * t, "seconds": 0.5} | scored
        for t, scored in enumerate([{}, {"accuracy": 0.5}, {}, {"accuracy": 0.75}], start=1)
    ]
    whole = {"round": [2, 4], "accuracy": [0.5, 0.75], "sent": [20, 40], "up": [8, 16]}
    assert sweep.collected({"marks": 2}, records, True) == {**whole, "seconds": 2.0}
    end = {"round": [4], "accuracy": [0.75], "sent": [40], "up": [16], "seconds": 2.0}
    assert sweep.collected({"marks": 2}, records, False) == end


@pytest.mark.parametrize(("tried", "words"), [(2, "the grid"), (1, "the grid, climbed from its")])
def test_it_is_told_whether_all_of_a_grid_was_tried(tried, words):
    runs = {f"a/b/grid/{i}": {} for i in range(tried)} | {"c/grid/0": {}, "c/grid/1": {}}
    assert sweep.grid({"settings": {"rates": [1, 2]}, "runs": runs}).startswith(words)


def test_cifar100_is_scored_by_batches_of_the_authors(tmp_path):
    rng = np.random.default_rng(0)
    made = {}
    for split in ("train", "test"):
        made[f"{split}_image"] = rng.integers(0, 256, (100, 32, 32, 3)).astype(np.uint8)
        made[f"{split}_label"] = np.arange(100)
    np.savez(tmp_path / "cifar100.npz", **made)
    settings = {"size": 32, "rank": 2, "scale": 1.0, "clip": 0.1, "least": 0.01}
    settings |= {"train": 60, "scored": 40, "batch": 32, "epochs": 1}
    assert sweep.cifar100(str(tmp_path / "cifar100.npz"), settings).scored == 32
