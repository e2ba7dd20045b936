"""The measurement on an accelerator, rehearsed without one."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import accelerator
import pytest
import timing
import workloads

SCRIPT = timing.ROOT / "benchmarks" / "speed" / "accelerator.py"
DONE = {
    "framework": "jaxfed",
    "workload": "W3",
    "how": "jitted round",
    "type": "float32",
    "clients": 100,
    "chunk": 50,
    "seconds": 0.5,
    "compiling": 2.0,
    "ready": 3.0,
    "memory": 4e9,
    "norm": 5.0,
}


def test_the_share_of_the_peak_is_of_the_faster_product_of_matrices_in_that_type():
    peaks = [
        {"framework": f, "workload": "peaks", "how": "float32", "work": 1e12, "seconds": s}
        for f, s in (("jaxfed", 0.5), ("torch", 0.25))
    ]  # 2 and 4 TFLOP/s
    counted = {"framework": "jaxfed", "workload": "W3", "flops": 5e9}
    text = accelerator.table([*peaks, DONE, counted])  # 100 clients of 5 GFLOP in half a second
    assert "| torch | float32 | 4 |" in text
    assert "| 0.5000 | 200.0 | 25.0% | 4.00 | 2.0 | 3.0 | 5.0000 |" in text


def test_what_failed_is_a_row_with_the_reason():
    failed = {"framework": "torch", "workload": "W2", "failed": "out of memory"}
    last = accelerator.table([DONE, failed]).splitlines()[-1]
    assert last.startswith("| W2 | torch |")
    assert "| out of memory |" in last
    assert last.count("|") == len(accelerator.HEAD) + 1


def test_a_job_over_its_limit_ends_with_a_line():
    (line,) = accelerator.lines(accelerator.Job("jaxfed", "W3", True), 0.1)
    assert line == {"failed": "over its limit of 0.1 s"}


def test_a_job_that_cannot_start_ends_with_the_last_line_of_its_error(monkeypatch):
    monkeypatch.setattr(accelerator.sys, "executable", "/bin/false")
    (line,) = accelerator.lines(accelerator.Job("jaxfed", "W3", True), 60)
    assert line == {"failed": "status 1"}


def test_every_workload_is_measured_and_large_ones_are_small_in_a_rehearsal():
    listed = {name for name in workloads.WORKLOADS if " " not in name}
    assert set(accelerator.ORDER) == listed
    assert accelerator.rehearsed("W6", True) == "W6 tiny"
    assert accelerator.rehearsed("W7", True) == "W7 tiny"
    assert accelerator.rehearsed("W8", True) == "W8 tiny"
    assert accelerator.rehearsed("W3", True) == "W3"


@pytest.mark.full
def test_a_rehearsal_has_a_figure_for_everything_and_equal_norms(tmp_path):
    """In jaxfed and PyTorch, one client at a time and under vmap, in float32 and bfloat16."""
    pytest.importorskip("torch")
    asked = ["--tiny", "--only", "W3", "W6", "W7", "W8", "--out", str(tmp_path)]
    path = os.pathsep.join([str(timing.ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, str(SCRIPT), *asked], check=True, env=environment)
    kept = json.loads((tmp_path / "accelerator_cpu.json").read_text())["figures"]
    assert [f for f in kept if "failed" in f] == []
    norms: dict[tuple, list[float]] = {}
    for f in (f for f in kept if "norm" in f and f["workload"] != "peaks"):
        norms.setdefault((f["workload"], f["clients"]), []).append(f["norm"])
    peft = importlib.util.find_spec("peft") is not None
    assert [len(found) for found in norms.values()] == [5, 2, 2, 4, 4 + peft, 3]
    for found in norms.values():
        assert all(math.isclose(n, found[0], rel_tol=1e-3) for n in found)
    shown = (tmp_path / "accelerator_cpu.md").read_text()
    assert shown.count("%") == 5 + 4 + 4 + 4 + 3 + peft
