"""Where the rank binds, and what merges are worth around other rules, with tiny runs."""

import binding_rank
import merging_bias
import pytest

pytestmark = pytest.mark.full


def filled_up(made, script, name):
    """Kept runs in which those of one cell stand in the place of every other."""
    for seed in made.content["settings"]["seeds"]:
        for other in script.cells(made.content["settings"]):
            made.runs.setdefault(f"{other}/seed/{seed}", made.runs[f"{name}/seed/{seed}"])
    return made


def test_ranks_restarts_and_ceiling(swept, small, tmp_path):
    settings = {**binding_rank.QUICK, **small, "ranks": [1, 2], "tau": [2]}
    names = ["fedavg", "2/balanced/2"]
    made = filled_up(swept(binding_rank, settings, names), binding_rank, "fedavg")
    whole = [made.runs[f"{n}/seed/1"]["sent"][-1] for n in names]
    layer, rest = 64 * 8, 8 + 8 * 10 + 10  # all clients of a round, both ways, four bytes a number
    assert whole[0] == 4 * 3 * 2 * 4 * (layer + rest)
    factors = 2 * (64 + 8)
    assert whole[1] == 4 * 3 * 2 * 4 * (factors + rest) + 3 * 4 * factors  # one merge, to 3 more
    made.publish(binding_rank.page, binding_rank.draw)
    assert "Does merging help?" in (tmp_path / "found.md").read_text()
    assert (tmp_path / "found.png").stat().st_size > 1000


def test_merges_around_an_exact_rule(swept, small, tmp_path):
    settings = {**merging_bias.QUICK, **small, "tau": [2], "cohorts": [2], "local": [2]}
    settings["rates_adamw"] = settings["rates_adamw"][:2]
    made = swept(merging_bias, settings, ["fedex/balanced", "adamw/never"])
    assert made.runs["adamw/never/seed/1"]["rate"] in settings["rates_adamw"]
    filled_up(made, merging_bias, "fedex/balanced").publish(merging_bias.page)
    assert "Bias of separate means" in (tmp_path / "found.md").read_text()


def test_a_rate_at_the_edge_of_its_grid_is_reported(tmp_path):
    settings = {**binding_rank.QUICK, "rates": [0.3, 1.0, 3.0], "seeds": [1, 2]}
    settings |= {"ranks": [1], "tau": [2]}
    run = {"rate": 3.0, "accuracy": [0.1, 0.2], "sent": [0, 8], "round": [0, 4], "seconds": 1.0}
    cells = binding_rank.cells(settings)
    content = {"settings": settings, "runs": {f"{n}/seed/{s}": run for n in cells for s in (1, 2)}}
    edges = binding_rank.edges(binding_rank.Found(content))
    assert edges.startswith("The best rate is at an edge of the grid for fedavg; 1, never; ")
