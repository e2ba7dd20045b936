"""A run again is the same run, or says what differs."""

import json

import numpy as np
import pytest

from jaxfed.cli import main, rerun

CONFIG = """
from pathlib import Path
import optax
from jaxfed import Experiment, local, models, tasks
from jaxfed.algorithms import fedavg
from jaxfed.data import federate, partition, sources

def experiment(data: Path = Path("data.npz"), rounds: int = 3, seed: int = 0) -> Experiment:
    source = sources.npz(data)
    task = tasks.classification(models.MLP((4,), classes=2), source.test)
    algorithm = fedavg(task, local.Work(4, epochs=1), client_optimizer=optax.sgd(0.1))
    parts = partition.iid(len(source.train["label"]), 4, seed=0)
    population = federate(source, parts)
    return Experiment(population, algorithm, rounds=rounds, cohort=2, seed=seed, evaluate_every=2)
"""


def command(*arguments):
    main.main(list(map(str, arguments)))


def write_data(folder, last):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (16, 2, 2, 1)).astype(np.uint8)
    image[-1] = last
    label = np.arange(16) % 2
    arrays = {"train_image": image, "train_label": label, "test_image": image, "test_label": label}
    np.savez(folder / "data.npz", **arrays)


@pytest.mark.full
def test_a_run_is_repeated_from_its_folder_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path, 1)
    (tmp_path / "mine.py").write_text(CONFIG)
    command("run", "mine.py", "--seed", 5, "--out", "r", "--devices", 1, "--population", "host")
    (tmp_path / "mine.py").unlink()
    capsys.readouterr()
    command("rerun", "r", "--out", "again")
    assert "all records are equal" in capsys.readouterr().out
    old, new = (json.loads((tmp_path / n / "settings.json").read_text()) for n in ("r", "again"))
    measured = ("chunk", "fuse", "convolutions")  # then given
    old["launch"] |= {name: new["launch"][name] for name in measured}
    assert old == new
    assert {"jax", "numpy"} <= set(old["environment"])
    assert old["settings"]["seed"] == 5

    write_data(tmp_path, 2)
    with pytest.raises(SystemExit):
        command("rerun", "r", "--out", "third")
    assert "another data" in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
    with pytest.raises(SystemExit):
        command("rerun", "r", "--out", "again")
    assert "again holds a run already" in capsys.readouterr().err


def test_the_first_difference_is_named(tmp_path):
    for name, losses in (("a", (1.0, 2.0)), ("b", (1.0, 3.0)), ("c", (1.0,))):
        (tmp_path / name).mkdir()
        lines = [
            json.dumps({"round": t + 1, "loss": x, "seconds": t}) for t, x in enumerate(losses)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join([*lines, ""]))
    a, b, c = (tmp_path / name for name in "abc")
    assert rerun.compared(a, a) == "compared  all records are equal, in every digit"
    assert rerun.compared(a, b).endswith("round 2 differs: loss was 2.0 and is 3.0")
    assert f"{c} has no round 2" in rerun.compared(a, c)


def test_a_number_that_is_null_differs_from_none_at_all(tmp_path):
    for name, more in (("a", {}), ("b", {"accuracy": None})):
        (tmp_path / name).mkdir()
        line = json.dumps({"round": 1, "loss": 1.0, **more})
        (tmp_path / name / "metrics.jsonl").write_text(f"{line}\n")
    words = "round 1 differs: accuracy was not there and is None"
    assert rerun.compared(tmp_path / "a", tmp_path / "b").endswith(words)


@pytest.mark.parametrize("records", [None, "", '{"round": 1, "lo'])
def test_a_run_without_a_record_is_not_repeated(records, tmp_path, capsys):
    about = {"arguments": [], "launch": {}, "experiment": {"rounds": 2}, "settings": {}}
    (tmp_path / "settings.json").write_text(json.dumps(about))
    (tmp_path / "config.py").write_text("raise RuntimeError('executed')")
    if records is not None:
        (tmp_path / "metrics.jsonl").write_text(records)
    with pytest.raises(SystemExit):
        command("rerun", tmp_path, "--out", tmp_path / "new")
    assert (
        "was stopped before its first round; go on with `jaxfed resume" in capsys.readouterr().err
    )
    assert not (tmp_path / "new").exists()
