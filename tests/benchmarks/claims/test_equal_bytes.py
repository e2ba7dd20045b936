"""Accuracy at equal bytes, whole with tiny runs of one arm."""

import equal_bytes
import pytest

pytestmark = pytest.mark.full

TINY = {"tau": 2, "rounds": 40, "ceiling": 2, "marks": 5}
LAYER, REST = 64 * 8, 8 + 8 * 10 + 10  # numbers of the hidden kernel, and of all else


def test_a_run_ends_with_both_budgets(swept, small, tmp_path):
    settings = {**equal_bytes.QUICK, **small, **TINY, "total": 60e3, "uplink": 20e3}
    names = ("ef21", "ceiling")
    made = swept(equal_bytes, settings, names)
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
            if key.startswith("ef21/"):
                made.runs.setdefault(key.replace("ef21", arm), run)
    made.publish(equal_bytes.page, equal_bytes.draw)
    assert "FedLoRU ends at" in (tmp_path / "found.md").read_text()


def test_a_mark_has_the_accuracy_that_its_bytes_bought():
    """With 2 and 4 megabytes, a third and half of the way; none before the first round."""
    settings = {"total": 4e6, "uplink": 1e6, "marks": 3}
    records = [
        {"sent": int(1.5e6) * t, "sent up": int(5e5) * t, "accuracy": t / 10, "seconds": 1.0}
        for t in (1, 2, 3, 4)
    ]
    found = equal_bytes.collected(settings, records, 0.05)
    assert found["total"] == [0.1, 0.1, 0.2]  # at 2, 2.83 and 4 million
    assert found["uplink"] == [0.1, 0.1, 0.2]  # at .5, .71 and 1 million
    assert (found["rounds, total"], found["rounds, uplink"]) == (2, 2)
    assert equal_bytes.collected({**settings, "total": 2e6}, records, 0.05)["total"][0] == 0.05
    assert (found["end"], found["seconds"]) == (0.4, 4.0)
    assert set(equal_bytes.collected(settings, [{"seconds": 1.0}, records[0]], 0.05)) == {
        "end",
        "seconds",
    }
