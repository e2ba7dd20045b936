"""The table of GLUE, one row of it on a tiny checkpoint: it is a sweep over seeds."""

import json
import sys

import glue_table
import pf2lora_text
import pytest
import tiny_bert


@pytest.mark.full
def test_a_row_is_a_sweep_and_a_run_is_kept_as_its_folder_has_it(tmp_path, monkeypatch, forking):
    monkeypatch.setattr(glue_table, "SETTINGS", glue_table.SETTINGS | pf2lora_text.TINY)
    given = ["--model", str(tiny_bert.write(tmp_path / "bert")), "--seeds", "0", "1"]
    given += ["--data-dir", str(tiny_bert.write_cola(tmp_path / "data")), "--rounds", "2"]
    given += ["--out", str(tmp_path / "runs"), "--results", str(tmp_path / "found")]
    given += ["--tasks", "cola", "--methods", "homlora"]
    monkeypatch.setattr(sys, "argv", ["glue_table.py", *given])
    glue_table.main()
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["runs"]) == {"cola/homlora/0", "cola/homlora/1"}
    for seed in (0, 1):
        run = found["runs"][f"cola/homlora/{seed}"]
        lines = (tmp_path / f"runs/cola, homlora/seed={seed}/metrics.jsonl").read_text()
        records = [json.loads(line) for line in lines.splitlines()]
        assert run["loss"] == [record["loss"] for record in records]
        assert (run["last"], len(records)) == (records[-1], 2)
        assert run["rates"] == [0.002]
    assert "| HOMLoRA | 0.002 | " in (tmp_path / "found.md").read_text()


@pytest.mark.quick
def test_one_seed_is_refused(monkeypatch, capsys):
    given = ["--data-dir", "d", "--out", "o", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", ["glue_table.py", *given])
    with pytest.raises(SystemExit):
        glue_table.main()
    assert "--seeds 0: give two or more" in capsys.readouterr().err
