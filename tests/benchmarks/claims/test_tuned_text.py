"""Arms on text at their own best rates: the commands are run, the page says what they found."""

import json
import sys

import launched
import pytest
import tiny_bert
import tuned_text


def run(rates, scores, personal):
    return {
        "rates": rates,
        "scores": scores,
        "personal": personal,
        "accuracy": [0.5, 0.6, 0.7],
        "loss": [1.0] * 3,
        "course": [[score - 0.1, score] for score in personal],
    }


def test_the_page_has_differences_in_pairs_and_rates_at_an_end():
    grid = {"0.001": 0.6, "0.003": 0.7}
    both = {"learning_rate": 0.003, "personal_learning_rate": 1e-4}
    content = {
        "command": "python benchmarks/claims/tuned_text.py",
        "machine": {},
        "settings": tuned_text.SETTINGS,
        "data": {
            **{"train": 9, "test": 9, "tokens": [16, 48], "padding": [0.1, 0.2]},
            "commonest": {"accuracy": 0.85, "matthews": 0.0},
        },
        "runs": {
            "homlora": run({"learning_rate": 0.003}, {"learning_rate": grid}, [0.7, 0.8, 0.9]),
            "adamw": run(both, {"learning_rate": grid}, [0.75, 0.86, 0.94]),
        },
    }
    page = tuned_text.page(content, "")
    assert (
        "| PF2LoRA, common head, AdamW below | 0.003 / 0.0001 | 75.0 ± 9.5 | 85.0 ± 9.5 | +5.0 ["
        in page
    )
    assert "which is not reported, after 32 rounds; of two rates" in page
    assert "At an end of its grid: PF2LoRA, common head, AdamW below (personal_lea" in page
    assert "HOMLoRA (" not in page
    content["runs"]["sgd"] = content["runs"]["adamw"]
    longer = tuned_text.page(content, "")
    assert "after 32 rounds (PF2LoRA, common head, SGD below: 100); of two rates" in longer
    assert "| each client's commonest label |  | 85.0 | 85.0 |" in page
    tried = "`learning_rate` was one of 0.001, 0.003 (HOMLoRA; PF2LoRA, common head, AdamW below)."
    assert tried in page


@pytest.mark.full
def test_an_arm_is_one_sweep_that_tunes_its_rate(tmp_path, monkeypatch, forking):
    arm = tuned_text.ARMS["homlora"]._replace(rates={"learning_rate": (1e-3, 1e-2)})
    monkeypatch.setattr(tuned_text, "ARMS", {"homlora": arm})
    given = ["--model", str(tiny_bert.write(tmp_path / "bert")), "--tiny", "--task", "cola"]
    given += ["--seeds", "0", "1"]
    given += ["--data-dir", str(tiny_bert.write_cola(tmp_path / "data"))]
    given += ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", ["tuned_text.py", *given])
    tuned_text.main()
    found = json.loads((tmp_path / "found.json").read_text())["runs"]["homlora"]
    scores, rate = found["scores"]["learning_rate"], found["rates"]["learning_rate"]
    assert set(scores) == {"0.001", "0.01"}
    assert scores[f"{rate:g}"] == max(scores.values())
    assert len(found["personal"]) == 2
    assert [len(course) for course in found["course"]] == [2, 2]
    assert [course[-1] for course in found["course"]] == found["personal"]
    folders = sorted((tmp_path / "runs/homlora").glob("seed=*"))
    tried = tmp_path / "runs/homlora/tune/learning_rate=0.01"
    assert [len(launched.records(folder)) for folder in (tried, *folders)] == [1, 2, 2]
