"""The arms of PF2LoRA on text, whole on a tiny checkpoint: what is run, kept and said."""

import json
import sys
from pathlib import Path

import glue_table
import pf2lora_text
import pytest
import tiny_bert


@pytest.fixture
def called(tmp_path, monkeypatch, forking):
    """called(*more): (its runs, its page) of a tiny run on CoLA."""
    folders = [
        *("--model", str(tiny_bert.write(tmp_path / "bert"))),
        *("--data-dir", str(tiny_bert.write_cola(tmp_path / "data"))),
    ]

    def call(*more):
        given = ["--results", str(tmp_path / "found"), "--tiny", "--task", "cola"]
        given += ["--out", str(tmp_path / "runs")]
        monkeypatch.setattr(sys, "argv", ["pf2lora_text.py", *folders, *given, *more])
        pf2lora_text.main()
        found = Path(tmp_path / "found.json")
        return json.loads(found.read_text()), found.with_suffix(".md").read_text()

    return call


@pytest.mark.full
def test_arms_are_run_once_and_their_differences_are_paired(called, monkeypatch):
    asked = ["--arms", "homlora", "heads", "--seeds", "0", "1"]
    content, page = called(*asked)
    assert set(content["runs"]) == {"homlora/0", "homlora/1", "heads/0", "heads/1"}
    assert "personal heads alone (HOMLoRA with them - HOMLoRA): " in page
    assert "| each client's commonest label |" in page
    assert "Sensitivity" not in page
    monkeypatch.setattr(glue_table, "swept", lambda *job, **how: pytest.fail("it is made again"))
    assert called(*asked)[0] == content


def record(score):
    last = {"personal": {"accuracy": {"mean": score}}, "accuracy": 0.5, "up": 8e3, "clients": 8}
    return {"last": last, "loss": [1.0], "seconds": [2.0]}


def test_a_gain_is_paired_by_seed():
    runs = {"homlora/0": 0.7, "homlora/1": 0.8, "heads/0": 0.75, "heads/1": 0.87, "head/0": 0.9}
    content = {
        "settings": {**pf2lora_text.SETTINGS},
        "runs": {key: record(score) for key, score in runs.items()},
        "data": {"commonest": {"accuracy": 0.85, "matthews": 0.0}},
    }
    assert pf2lora_text.gain(content, "heads", "homlora") == pytest.approx([0.05, 0.07])
    assert pf2lora_text.gain(content, "head", "heads") == pytest.approx([0.15])
    assert "HOMLoRA): +6.0 [" in pf2lora_text.finding(content)
    assert "+15.0 (one seed)" in pf2lora_text.finding(content)
    assert "| each client's commonest label | 85.0 |" in pf2lora_text.table(content, "question")


@pytest.mark.parametrize("part", pf2lora_text.ARMS)
def test_every_arm_is_a_setting_of_the_config_and_no_two_are_equal(part):
    config = glue_table.runpy.run_path(str(glue_table.CONFIG))["experiment"]
    names = set(config.__code__.co_varnames[: config.__code__.co_argcount])
    made = []
    for name, (_, arm) in pf2lora_text.ARMS[part].items():
        settings = pf2lora_text.settings_of(pf2lora_text.SETTINGS, name, arm)
        assert set(settings) <= names
        made.append(settings)
    assert all(made.count(one) == 1 for one in made)
