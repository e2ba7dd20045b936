"""What merging does, whole on a tiny problem."""

import kept
import merging
import numpy as np
import pytest
import sweep

pytestmark = pytest.mark.full


def test_keep_jumps_and_reinit_does_not(problem, sizes, tmp_path):
    of_quick = {"clients": 4, "cohort": 2, "rounds": 4, "tau": [1], "layers": ["dense_0/kernel"]}
    settings = {**merging.QUICK, **sizes, **of_quick}
    made = kept.Kept(tmp_path / "merging.json", settings)
    cells = merging.cells(settings)
    sweep.tuned(made, problem, {n: cells[n] for n in ("keep/1", "reinit/1")}, 2, merging.one)
    for seed in settings["seeds"]:
        here = made.runs[f"reinit/1/seed/{seed}"]
        for restart in ("residual", "balanced"):
            made.runs[f"{restart}/1/seed/{seed}"] = here
        for reference in ("never", "fedavg"):
            made.runs[f"{reference}/seed/{seed}"] = {**here, "jumps": []}
    found = merging.Found(made.content)
    assert [merging.merges(settings, n) for n in ("never", "keep/1", "keep/2")] == [0, 3, 1]
    for restart, least, most in (("keep", 1e-3, 9), ("reinit", 0, 1e-5)):
        rises = [b - a for r in found.runs[f"{restart}/1"] for _, a, b in r["jumps"]]
        assert len(rises) == 6
        assert least <= np.abs(rises).max() < most
    assert found.rank("reinit/1", "dense_0/kernel", 2) > 2  # rank 1, merged three times
    assert "keep changes the training loss" in merging.page(made.content, "merging.png")
    merging.draw(merging.Found(made.content))
