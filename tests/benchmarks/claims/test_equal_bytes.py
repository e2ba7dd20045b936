"""Accuracy at equal bytes, whole with tiny runs of two arms."""

import itertools

import equal_bytes
import kept
import pytest
import sweep

pytestmark = pytest.mark.full

TINY = {
    "train": 300,
    "clients": 6,
    "cohort": 3,
    "widths": [8],
    "epochs": 1,
    "tau": 2,
    "rates": [0.3, 1.0, 3.0],
    "seeds": [1, 2],
    "rounds": 40,
    "ceiling": 2,
    "marks": 5,
}
LAYER, REST = 64 * 8, 8 + 8 * 10 + 10  # numbers of the hidden kernel, and of all else
FACTORS = 2 * (64 + 8)


def test_a_run_ends_with_both_budgets(tmp_path):
    """Lazy merges: a client pays when it is drawn, and never more than the whole model."""
    settings = {**equal_bytes.QUICK, **TINY, "total": 60e3, "uplink": 20e3}
    made = kept.Kept(tmp_path / "found.json", settings)
    problem, cells = sweep.digits(None, settings), equal_bytes.cells(settings)
    names = ("fedloru", "ef21", "ceiling")
    equal_bytes.tuned(made, problem, {n: cells[n] for n in names}, 3, equal_bytes.one)
    run = made.runs[f"ef21/seed/1/{equal_bytes.Found(made.content).rate('ef21', 'total'):g}"]
    down, entries = 4 * (LAYER + REST), int(0.05 * (LAYER + REST))
    assert run["rounds, total"] == 60e3 // (3 * (down + 8 * entries))
    assert run["rounds, uplink"] == min(20e3 // (3 * 8 * entries), settings["rounds"])
    for name in names:
        for goal in equal_bytes.goals(name):
            rate = equal_bytes.Found(made.content).rate(name, goal)
            assert all(f"{name}/seed/{s}/{rate:g}" in made.runs for s in (1, 2))
    for arm in equal_bytes.NAMES:
        for key, run in list(made.runs.items()):
            if key.startswith("fedloru/"):
                made.runs.setdefault(key.replace("fedloru", arm), run)
    made.publish(equal_bytes.page, equal_bytes.draw)
    assert "FedLoRU ends at" in (tmp_path / "found.md").read_text()


def test_no_client_receives_more_than_the_whole_model():
    settings = {**equal_bytes.QUICK, **TINY}
    problem = sweep.digits(None, settings)
    cell = equal_bytes.cells(settings)["flora"]._replace(rounds=4)
    program = sweep.program(problem, cell, 3, [0])
    done = list(sweep.rounds(program, problem, seed=0, rate=0.3, merges="lazy"))
    whole = 4 * (LAYER + REST + FACTORS)
    assert all(b[2].down - a[2].down <= 3 * whole for a, b in itertools.pairwise(done))
    assert done[-1][2].up == 4 * 3 * 4 * (FACTORS + REST)
