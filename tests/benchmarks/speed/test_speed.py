"""One workload from the command line to its files."""

import json
import sys

import pytest
import speed


@pytest.mark.full
def test_what_is_timed_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    asked = ["W8 tiny", "--repeats", "1", "--modes", "--chunk", "2", "--write"]
    monkeypatch.setattr(sys, "argv", ["speed.py", *asked])
    monkeypatch.setattr(speed.jax.config, "update", lambda *_: None)  # devices are there already
    speed.main()
    kept = json.loads((tmp_path / "w8_tiny.json").read_text())
    assert len(kept["seconds"]["W8 tiny"]["jaxfed"]["all"]) == 1
    assert "| W8 tiny | jaxfed |" in capsys.readouterr().out
    assert "| W8 tiny | jaxfed |" in (tmp_path / "w8_tiny.md").read_text()
