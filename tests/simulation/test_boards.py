"""W&B as an imitation sees it: no test reaches a network."""

import dataclasses
import json
import sys

import numpy as np
import optax
import pytest

import jaxfed
from jaxfed import Experiment, Host, local, models, run, tasks
from jaxfed.algorithms import fedavg
from jaxfed.data import federate, partition, sources

IMITATION = """
CALLS = []


class Run:
    def log(self, numbers, step):
        CALLS.append(("log", step, numbers))

    def finish(self):
        CALLS.append(("finish",))


def init(**given):
    CALLS.append(("init", given))
    return Run()
"""
HOST = Host(chunk=2, fuse=1, devices=1, log="wandb")


@pytest.fixture(scope="module")
def experiment():
    x = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    rows = {"image": x, "label": (x.sum(1) > 0).astype(np.int32)}
    task = tasks.classification(models.MLP((4,), classes=2), rows)
    algorithm = fedavg(task, local.Work(4, epochs=1), client_optimizer=optax.sgd(0.1))
    parts = partition.natural(np.repeat(["ada", "ben", "eve", "kim"], 4))
    data = federate(sources.Source(rows, rows), parts, personal_fraction=0.25)
    return Experiment(data, algorithm, rounds=4, cohort=2, evaluate_every=2)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """What an imitation of wandb is called with."""
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "wandb.py").write_text(IMITATION)
    monkeypatch.syspath_prepend(tmp_path / "beside")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    wandb = __import__("wandb")
    yield wandb.CALLS
    sys.modules.pop("wandb", None)


def test_wandb_gets_every_record_once_and_the_hyperparameters(experiment, calls, tmp_path):
    folder = tmp_path / "mine"
    records = list(run(dataclasses.replace(experiment, rounds=2), folder, HOST))
    (init,) = (call[1] for call in calls if call[0] == "init")
    assert (init["project"], init["name"], init["resume"]) == ("jaxfed", "mine", "allow")
    saved = json.loads((folder / "settings.json").read_text())
    assert saved["hyperparameters"].items() <= init["config"].items()
    assert init["config"]["cohort"] == 2
    logged = {step: numbers for kind, *rest in calls if kind == "log" for step, numbers in [rest]}
    assert [logged[r["round"]]["loss"] for r in records] == [r["loss"] for r in records]
    spread = records[-1]["personal"]["accuracy"]["mean"]
    assert logged[2]["personal/accuracy/mean"] == spread
    assert calls[-1] == ("finish",)

    calls.clear()
    list(run(experiment, folder, HOST, resume=True))
    (again,) = (call[1] for call in calls if call[0] == "init")
    assert again["id"] == init["id"]
    assert [call[1] for call in calls if call[0] == "log"] == [3, 4]


def test_without_wandb_a_sentence_comes_before_the_run(experiment, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"needs the package wandb .*'jaxfed\[wandb\]'"):
        run(experiment, tmp_path / "mine", HOST)
    assert not list((tmp_path / "mine").glob("*.json"))
    with pytest.raises(ValueError, match="log='wandb' needs a run's folder"):
        run(experiment, None, HOST)


def test_clients_stand_in_a_parquet_file_too(experiment, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    folder, host = tmp_path / "mine", dataclasses.replace(HOST, log="tensorboard")
    list(run(experiment, folder, host))
    table = parquet.read_table(folder / "clients.parquet").to_pydict()
    frame = jaxfed.results(folder, clients=True)
    assert table["client"] == frame["client"].tolist() == ["ada", "ben", "eve", "kim"] * 2
    for name in ("round", "examples", "loss", "accuracy"):
        assert table[name] == frame[name].tolist()
    longer = dataclasses.replace(experiment, rounds=2 * experiment.rounds)
    list(run(longer, folder, host, resume=True))
    again = parquet.read_table(folder / "clients.parquet").to_pydict()
    assert again["round"] == jaxfed.results(folder, clients=True)["round"].tolist()
    assert max(again["round"]) == longer.rounds
