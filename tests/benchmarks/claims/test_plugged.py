"""FedLoRU around other methods, whole with tiny runs."""

import json

import plugged
import pytest
import sweep

import jaxfed

pytestmark = pytest.mark.full


def test_each_method_has_three_arms_and_a_page(swept, small, tmp_path):
    """All arms but those of the first constant share a run of one method."""
    constants = {"fedprox": [0.1, 1.0], "fedadam": [0.03]}
    settings = {**plugged.QUICK, **small, "every": 2, "constants": constants}
    settings["rates_sgd"] = [0.1, 0.3]
    cells = plugged.cells(settings)
    assert len(cells) == 3 * (1 + 2 + 1 + 1)
    made = swept(plugged, settings, ["scaffold/merged"])
    problem = sweep.problem(json.dumps(settings), None)
    for name in ("fedadam/merged/0.03", "fedprox/whole/0.1"):
        one = sweep.experiment(problem, cells[name], rate=0.3, seed=0, marks=4)
        assert (
            0
            <= next(jaxfed.run(one, host=jaxfed.Host(devices=1, chunk=3, fuse=1)))["accuracy"]
            <= 1
        )
    for name in cells:
        for key, run in list(made.runs.items()):
            if key.startswith("scaffold/merged/"):
                made.runs.setdefault(key.replace("scaffold/merged", name), run)
    made.publish(plugged.page)
    text = (tmp_path / "found.md").read_text()
    assert "| SCAFFOLD | " in text
    assert "above FedLoRU around FedAvg, in points: FedProx" in text
