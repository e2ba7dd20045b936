"""Tables of results that have a row for each method of the zoo."""

import json

import flops_zoo
import pytest

from jaxfed.algorithms import zoo

pytestmark = pytest.mark.quick


def test_every_row_of_the_zoo_is_in_the_table_of_flops():
    """After a new row: `python benchmarks/costs/flops_zoo.py NAME`."""
    kept = json.loads(flops_zoo.FOUND.read_text(encoding="utf-8"))
    assert list(kept["rows"]) == [row.name for row in zoo.ROWS]
    assert flops_zoo.FOUND.with_suffix(".md").read_text(encoding="utf-8") == flops_zoo.page(kept)


def test_what_a_row_costs_follows_from_its_kind():
    """A proximal term, a frozen side and personal factors, beside FedLoRA."""
    kept = json.loads(flops_zoo.FOUND.read_text(encoding="utf-8"))["rows"]
    cost = {name: found["round"] for name, found in kept.items()}
    assert cost["fedavg"] < cost["fedprox"] < 1.1 * cost["fedavg"]
    assert cost["ffa"] <= cost["fedlora"] <= cost["fedex"] <= cost["fedmomentum"]
    assert 1.5 * cost["fedlora"] < cost["pfedlora"]
