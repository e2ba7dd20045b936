"""FedLoRU around other methods, whole with tiny runs."""

import kept
import plugged
import pytest
import sweep

pytestmark = pytest.mark.full


def test_each_method_has_three_arms_and_a_page(problem, sizes, tmp_path):
    """All arms but those of the first constant share a run of one method."""
    constants = {"fedprox": [0.1, 1.0], "fedadam": [0.03]}
    of_quick = {"clients": 4, "cohort": 2, "rounds": 4, "every": 2, "constants": constants}
    settings = {**plugged.QUICK, **sizes, **of_quick, "fuse": 2, "rates_sgd": [0.1, 0.3]}
    made, cells = kept.Kept(tmp_path / "plugged.json", settings), plugged.cells(settings)
    assert len(cells) == 3 * (1 + 2 + 1 + 1)
    names = ("scaffold/merged", "fedadam/merged/0.03", "fedprox/whole/0.1")
    sweep.tuned(made, problem, {n: cells[n]._replace(rank=None) for n in names}, 2)
    for name in cells:
        for key, run in list(made.runs.items()):
            if key.startswith("scaffold/merged/"):
                made.runs.setdefault(key.replace("scaffold/merged", name), run)
    made.publish(plugged.page)
    text = (tmp_path / "plugged.md").read_text()
    assert "| SCAFFOLD | " in text
    assert "above FedLoRU around FedAvg, in points: FedProx" in text
