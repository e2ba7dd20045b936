"""Fine-tuning by speaker: which runs are made, what is compared, and what the page says."""

import dataclasses
import json
import math
import sys

import kept
import pytest
import speakers
import tiny_llama2c


class Split:
    """Data that validates on itself."""

    def validated(self):
        return self


@dataclasses.dataclass(frozen=True)
class Made:
    """What of an experiment the script looks at."""

    rate: float
    seed: int
    data: Split


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


def test_seeds_are_run_again_where_a_grid_that_grew_has_a_better_rate(tmp_path):
    settings = {"rates": [0.1, 1.0], "own_rates": [1.0], "seeds": [1, 2]}
    found, made = kept.Kept(tmp_path / "x.json", settings), []

    def run(experiment):
        made.append((experiment.rate, experiment.seed))
        return {"personal": {"union": experiment.rate}, "seconds": 0.0}

    def make(method, seed, learning_rate):
        return Made(learning_rate, seed, Split())

    speakers.tuned(found, "fedlora", make, run)
    assert made == [(0.1, 0), (1.0, 0), (0.1, 1), (0.1, 2)]
    found.content["settings"]["rates"] = [0.01, 0.1, 1.0]
    speakers.tuned(found, "fedlora", make, run)
    assert made[4:] == [(0.01, 0), (0.01, 1), (0.01, 2)]
    speakers.tuned(found, "fedlora", make, run)
    assert len(made) == 7


@pytest.mark.full
def test_a_tiny_script_tunes_a_method_runs_its_seeds_and_makes_nothing_twice(tmp_path, monkeypatch):
    tiny_llama2c.write(tmp_path)
    lines = [
        {"play": "p", "speaker": name, "text": "abcdefghij"[n % 5 : n % 5 + 5]}
        for n, name in enumerate("XYZV" * 14)
    ]
    speeches = tmp_path / "plays.jsonl"
    speeches.write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = ["--model", str(tmp_path), "--speeches", str(speeches)]
    given = [*files, "--tiny", "--methods", "alone", "--results", str(tmp_path / "found")]
    monkeypatch.setattr(sys, "argv", ["speakers.py", *given])
    speakers.main()
    found = json.loads((tmp_path / "found.json").read_text())
    grid = [f"alone/grid/{rate}" for rate in speakers.TINY["rates"]]
    assert set(found["runs"]) == {*grid, "alone/seed/1", "alone/seed/2"}
    best = min(grid, key=lambda key: found["runs"][key]["personal"]["union"])
    assert found["runs"]["alone/seed/1"]["rate"] == found["runs"][best]["rate"]
    monkeypatch.setattr(speakers, "one", lambda *job: pytest.fail("it is made again"))
    speakers.main()
