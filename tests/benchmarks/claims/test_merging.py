"""What merging does, whole on a tiny problem."""

import merging
import numpy as np
import pytest

pytestmark = pytest.mark.full


def test_keep_jumps_and_reinit_does_not(swept, small):
    settings = {**merging.QUICK, **small, "tau": [1], "layers": ["dense_0/kernel"], "rank": 1}
    made = swept(merging, settings, ["keep/1", "reinit/1"])
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
