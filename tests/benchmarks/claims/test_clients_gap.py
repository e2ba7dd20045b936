"""The gap to FedAvg, whole on a tiny problem."""

import clients_gap
import pytest

pytestmark = pytest.mark.full


def invented(cells, settings, accuracy):
    """{key: run} of all the seeds, with `accuracy(cell's name, seed)` after the last round."""
    first = {"rate": 0.3, "round": [2, 4], "sent": [10, 20], "seconds": 1.0}
    return {
        f"{name}/{kind}/{seed}": {**first, "accuracy": [0.3, accuracy(name, seed)]}
        for name in cells
        for kind, seeds in (("seed", settings["seeds"]), ("grid", [0.3]))
        for seed in seeds
    }


def test_the_gap_and_its_trend_follow_from_the_runs(swept, small):
    of_quick = {"clients": [4, 8], "participation": {"0.5": 4}, "parts": 2}
    settings = {**clients_gap.QUICK, **small, **of_quick}
    found, cells = swept(clients_gap, settings, ["0.5/4/fedloru"]), clients_gap.cells(settings)
    made = found.runs["0.5/4/fedloru/seed/1"]
    assert made["round"] == [2, 4]
    assert 2 * made["sent"][0] < made["sent"][1]  # a merge between
    assert made["rate"] in small["rates"]

    def accuracy(name, seed):
        _, clients, method = name.split("/")
        scaled = 0.02 * (method == "fedlora, scale 8")
        return 0.5 + scaled + (method == "fedloru") * (int(clients) / 100 + seed / 1000)

    found.content["runs"] = invented(cells, settings, accuracy)
    gap = clients_gap.Found(found.content)
    assert gap.slope("0.5", "fedloru").mean == pytest.approx(0.04)
    assert "the gap rises with K" in clients_gap.trend(gap, "0.5", "fedloru")
    assert "no trend" in clients_gap.trend(gap, "0.5", "fedlora")
    merging = clients_gap.trend(gap, "0.5", "fedloru", "fedlora")
    assert merging.startswith("C = 0.5, FedLoRU - FedLoRA: the gap rises with K: +4.0 ")
    assert merging in clients_gap.page(found.content, "gap.png")
    assert clients_gap.reached(made | {"accuracy": [0.4, 0.8]}, 0.6) == 3
    assert clients_gap.trend(gap, "0.5", "fedloru") in clients_gap.page(found.content, "gap.png")
    assert gap.best_scale("0.5", 4) == "fedlora, scale 8"
    tuned = clients_gap.trend(gap, "0.5", "fedloru", clients_gap.BEST)
    assert "FedLoRA, scale tuned: the gap rises with K: +4.0 " in tuned
    assert "K = 4: +4.2 [+3.5, +4.8], and +2.2 [" in clients_gap.step_size(gap)
    clients_gap.draw(gap)
