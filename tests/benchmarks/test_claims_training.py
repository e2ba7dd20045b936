"""benchmarks/claim_clients_gap.py and claim_merging.py, whole, on a tiny problem."""

import importlib
from pathlib import Path

import numpy as np
import optax
import pytest

from jaxfed import Host, local, lowrank, models, run, tasks

pytestmark = pytest.mark.full

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = {
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
def benchmark(monkeypatch):
    """Imports a module of benchmarks/."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def problem(benchmark):
    """Three classes told apart by their brightest pixel, and one hidden layer."""
    rng = np.random.default_rng(0)

    def examples(n):
        label = rng.integers(3, size=n).astype(np.int32)
        image = rng.normal(size=(n, 3)) + 3 * np.eye(3)[label]
        return {"image": image.astype(np.float32), "label": label}

    train, held_out, test = (examples(SIZES[n]) for n in ("train", "scored", "scored"))
    factored = lowrank.Select(
        factors="dense_0/kernel", full="head|bias", rank=1, base="zero", up="random"
    )
    whole, factored = (
        tasks.classification(models.MLP((4,), 3), test, select=select)
        for select in (lowrank.everything, factored)
    )
    return benchmark("sweep").Problem(
        train=train,
        held_out=held_out,
        test=test,
        whole=whole,
        factored=factored,
        work=local.Work(SIZES["batch"], epochs=SIZES["epochs"]),
        optimizer=lambda rate, rounds: optax.sgd(rate),
    )


def test_a_program_is_the_librarys_run(benchmark, problem):
    sweep = benchmark("sweep")
    cell = sweep.Cell("fedloru", clients=6, cohort=3, rounds=4, every=2, restart="keep")
    mine = list(sweep.rounds(sweep.program(problem, cell, 2), problem, seed=5, rate=1.0))
    records = list(run(sweep.experiment(problem, cell, 5), host=Host(devices=1, chunk=2, fuse=1)))
    score = sweep.scorer(problem.factored)(mine[-1][1].base, mine[-1][1].theta, problem.test)
    assert score["accuracy"] == pytest.approx(records[-1]["accuracy"])
    assert score["loss"] == pytest.approx(records[-1]["test_loss"], rel=1e-5)
    sent = sum(r[n] for r in records for n in ("up", "down", "broadcast"))
    assert mine[-1][2] == sent
    assert any(r["broadcast"] for r in records)


def test_the_best_rate_is_climbed_to(benchmark):
    climb, tried = benchmark("sweep").climb, []

    def score(rate):
        tried.append(rate)
        return -abs(rate - 4)

    assert climb([1, 2, 3, 4, 5], score) == 4
    assert tried == [3, 4, 5]
    assert climb([5, 6, 7, 8, 9], score) == 5
    assert climb([7], score) == 7


def test_a_run_is_made_once_and_other_settings_are_refused(benchmark, tmp_path):
    sweep = benchmark("sweep")
    kept = sweep.Kept(tmp_path / "x.json", "", {"a": (1,)})
    kept.once("cell", lambda: {"accuracy": [0.9], "seconds": 0.0})
    again = sweep.Kept(tmp_path / "x.json", "", {"a": [1]})
    again.once("cell", lambda: pytest.fail("made again"))
    assert again.runs["cell"]["accuracy"] == [0.9]
    with pytest.raises(SystemExit, match="use --results"):
        sweep.Kept(tmp_path / "x.json", "", {"a": [2]})


def invented(cells, settings, accuracy):
    """{key: run} of all the seeds, with `accuracy(cell's name, seed)` after the last round."""
    first = {"rate": 0.3, "round": [0, 2, 4], "sent": [0, 10, 20], "seconds": 1.0}
    return {
        f"{name}/seed/{seed}": {**first, "accuracy": [0.1, 0.3, accuracy(name, seed)]}
        for name in cells
        for seed in settings["seeds"]
    }


def test_the_gap_is_measured_and_told(benchmark, problem, tmp_path):
    sweep, claim = benchmark("sweep"), benchmark("claim_clients_gap")
    of_quick = {"clients": [4, 8], "participation": {"0.5": 4}, "parts": 2}
    settings = {**claim.QUICK, **SIZES, **of_quick}
    kept, cells = sweep.Kept(tmp_path / "gap.json", "", settings), claim.cells(settings)
    sweep.tuned(kept, problem, {n: cells[n] for n in ("0.5/4/fedloru",)}, 2, claim.one)
    made = kept.runs["0.5/4/fedloru/seed/1"]
    assert made["round"] == [0, 2, 4]
    assert made["sent"][0] == 0 < 2 * made["sent"][1] < made["sent"][2]  # a merge between
    assert made["rate"] in SIZES["rates"]

    def accuracy(name, seed):
        _, clients, method = name.split("/")
        return 0.5 + (method == "fedloru") * (int(clients) / 100 + seed / 1000)

    kept.content["runs"] = invented(cells, settings, accuracy)
    found = claim.Found(kept.content)
    assert found.slope("0.5", "fedloru").mean == pytest.approx(0.04)
    assert "the gap rises with K" in claim.trend(found, "0.5", "fedloru")
    assert "no trend" in claim.trend(found, "0.5", "fedlora")
    assert claim.reached(made | {"accuracy": [0.0, 0.4, 0.8]}, 0.6) == 3
    assert claim.trend(found, "0.5", "fedloru") in claim.page(kept.content, "gap.png")
    claim.draw(claim.Found(kept.content))


def test_keep_jumps_and_reinit_does_not(benchmark, problem, tmp_path):
    sweep, claim = benchmark("sweep"), benchmark("claim_merging")
    of_quick = {"clients": 4, "cohort": 2, "rounds": 4, "tau": [1], "layers": ["dense_0/kernel"]}
    settings = {**claim.QUICK, **SIZES, **of_quick}
    kept = sweep.Kept(tmp_path / "merging.json", "", settings)
    cells = claim.cells(settings)
    sweep.tuned(kept, problem, {n: cells[n] for n in ("keep/1", "reinit/1")}, 2, claim.one)
    for seed in settings["seeds"]:
        here = kept.runs[f"reinit/1/seed/{seed}"]
        kept.runs[f"residual/1/seed/{seed}"] = here
        kept.runs[f"never/seed/{seed}"] = {**here, "jumps": []}
    found = claim.Found(kept.content)
    assert [claim.merges(settings, n) for n in ("never", "keep/1", "keep/2")] == [0, 3, 1]
    for restart, least, most in (("keep", 1e-3, 9), ("reinit", 0, 1e-5)):
        rises = [b - a for r in found.runs[f"{restart}/1"] for _, a, b in r["jumps"]]
        assert len(rises) == 6
        assert least <= np.abs(rises).max() < most
    assert found.rank("reinit/1", "dense_0/kernel", 2) > 2  # rank 1, merged three times
    assert "keep changes the training loss" in claim.page(kept.content, "merging.png")
    claim.draw(claim.Found(kept.content))
