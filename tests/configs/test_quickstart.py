"""A fresh clone: its quickstart, run by the console script, learns and leaves what it promises."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]


def cloned(to):
    """The repository as someone else gets it; its tracked files, where git is not to be had."""
    if (HERE / ".git").exists() and shutil.which("git"):
        subprocess.run(["git", "clone", "--quiet", HERE, to], check=True)
    else:
        ignored = shutil.ignore_patterns("__pycache__", ".*", "runs")
        shutil.copytree(HERE, to, ignore=ignored)
    return to


@pytest.mark.full
def test_quickstart_of_a_fresh_clone(tmp_path):
    clone, script = cloned(tmp_path / "clone"), Path(sys.executable).with_name("jaxfed")
    environment = {**os.environ, "PYTHONPATH": str(clone), "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [script, "run", "configs/quickstart.py", "--out", "run", "--cpu-devices", "2"],
        cwd=clone,
        env=environment,
        check=True,
    )
    folder = clone / "run"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in records] == list(range(1, 201))
    assert records[-1]["accuracy"] > 0.93
    assert 0 < records[-1]["personal"]["accuracy"]["p10"] <= 1
    assert (folder / "checkpoints" / "200").is_dir()
    assert (folder / "config.py").read_text() == (clone / "configs/quickstart.py").read_text()
    assert len(list((folder / "plots").glob("*.png"))) >= 4
    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))
    # Nothing is left beside the run.
    status = ["git", "status", "--porcelain", "--ignored=no"]
    if (clone / ".git").exists():
        seen = subprocess.run(status, cwd=clone, check=True, capture_output=True, text=True).stdout
        assert seen.split() in ([], ["??", "run/"])
