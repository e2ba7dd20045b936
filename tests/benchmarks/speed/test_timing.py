"""Timing in turn, the table of it, and the command that a result names."""

import sys

import pytest
import timing

pytestmark = pytest.mark.quick


def test_functions_take_turns_after_one_call_of_each():
    calls = []
    seconds = timing.alternate({n: lambda n=n: calls.append(n) for n in "ab"}, repeats=2)
    assert "".join(calls) == "ab" + "abab"
    assert [len(s["all"]) for s in seconds.values()] == [2, 2]


def test_the_table_tells_speed_by_medians():
    seconds = {n: {"min": 0.0, "median": m, "max": 9.0} for n, m in (("a", 2.0), ("b", 0.5))}
    rows = timing.table({"W1": seconds}, "a").splitlines()[2:]
    assert [row.split(" | ")[-1] for row in rows] == ["1.00 |", "4.00 |"]


def test_a_command_is_given_from_the_root_without_the_path_of_data(monkeypatch):
    script = timing.ROOT / "benchmarks/claims/merging.py"
    monkeypatch.setattr(sys, "argv", [str(script), "--data-dir", "/home/anna/data", "--full"])
    assert timing.command() == "python benchmarks/claims/merging.py --data-dir DIR --full"
