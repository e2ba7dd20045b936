"""Fine-tuning by speaker: which runs are made, what is compared, and what the page says."""

import json
import math
import sys

import pytest
import speakers
import sweep
import tiny_llama2c


def content(perplexity, **settings):
    """A file's content of {method: perplexities by seed}, all at the first rate."""
    of = {**speakers.SETTINGS, "seeds": [1, 2], **settings}
    runs = {
        f"{method}/seed/{seed}": {
            "before": {"union": 150.0, "mean": 160.0, "p90": 300.0},
            "personal": {"union": mine, "mean": mine, "p90": mine},
            **{"common": mine, "up": 2e3, "seconds": 30.0},
            **{"rate": of["rates"][0], "own_rate": None},
        }
        for method, values in perplexity.items()
        for seed, mine in zip(of["seeds"], values, strict=False)
    }
    return {"command": "c", "machine": {}, "settings": of, "runs": runs}


def test_a_difference_is_the_mean_log_ratio_paired_by_seed():
    found = content({"fedlora": [20, 30], "fedsa": [18, 27]})
    gap = speakers.change(found, "fedsa", "fedlora")
    assert all(math.isclose(x, -0.1) for x in gap)


def test_the_page_names_who_is_better_who_is_missing_and_rates_at_an_edge():
    page = speakers.page(
        content({"fedlora": [20, 30], "fedsa": [18, 27], "ffa": [22, 33], "full": [10]}), ""
    )
    assert "A lower perplexity than FedLoRA's, beyond the interval: FedSA-LoRA." in page
    assert "A higher one: FFA-LoRA." in page
    assert "Not run to the end: each speaker alone, FedAvg, all weights, FedLoRU," in page
    assert "FedLoRA (0.0001), FFA-LoRA (0.0001), FedSA-LoRA (0.0001)" in page
    assert "| before training |  | 150.00 ± 0.00 |" in page


@pytest.mark.full
def test_a_tiny_script_tunes_a_method_runs_its_seeds_and_makes_nothing_twice(
    tmp_path, monkeypatch, forking
):
    tiny_llama2c.write(tmp_path)
    lines = [
        {"play": "p", "speaker": name, "text": "abcdefghij"[n % 5 : n % 5 + 5]}
        for n, name in enumerate("XYZV" * 14)
    ]
    speeches = tmp_path / "plays.jsonl"
    speeches.write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = ["--model", str(tmp_path), "--speeches", str(speeches)]
    given = [*files, "--tiny", "--methods", "alone", "--out", str(tmp_path / "runs")]
    given += ["--results", str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", ["speakers.py", *given])
    speakers.main()
    found = json.loads((tmp_path / "found.json").read_text())
    grid = [f"alone/grid/{rate}" for rate in speakers.TINY["rates"]]
    assert set(found["runs"]) == {*grid, "alone/seed/1", "alone/seed/2"}
    best = min(grid, key=lambda key: found["runs"][key]["personal"]["union"])
    assert found["runs"]["alone/seed/1"]["rate"] == found["runs"][best]["rate"]
    one = found["runs"]["alone/seed/1"]
    assert one["personal"] != one["before"]
    assert one["before"].keys() == one["personal"].keys()
    monkeypatch.setattr(sweep, "command", lambda *words: pytest.fail("it is made again"))
    speakers.main()
