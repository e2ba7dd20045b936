"""Tables of results that have a row for each method of the zoo."""

import json

import flops_zoo
import pytest
import zoo_runs

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


def test_methods_that_ran_learned_and_on_digits_in_under_a_minute():
    """Those whose server has no whole model are scored by their clients'."""
    kept = json.loads(zoo_runs.FOUND.read_text(encoding="utf-8"))
    assert list(kept["runs"]) == [name for name in zoo_runs.METHODS if name in kept["runs"]]
    for method, run in kept["runs"].items():
        server, clients = kept["commonest"][zoo_runs.METHODS[method]]
        assert run["cpu"] < 60 or zoo_runs.METHODS[method] == "text", method
        assert max(run["accuracy"] - server, run["clients"] - clients) > 0.1, method


def test_an_arm_sends_what_it_trains_of_roberta_base():
    """Two factors on query and value; two bottlenecks; two prefixes: in each of 12 layers."""
    sent = json.loads(zoo_runs.FOUND.read_text(encoding="utf-8"))["roberta"]
    head = 768 * 768 + 768 + 768 * 2 + 2
    bottlenecks = 12 * 2 * (768 * 64 + 64 + 64 * 768 + 768)
    assert sent["fedlr"] == 4 * (head + 12 * 2 * (768 * 8 + 8 * 768))
    assert sent["fedap"] == sent["pftt"] == 4 * (head + bottlenecks)
    assert sent["fedpf"] == 4 * (head + 12 * 2 * 16 * 768)
    biases = 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768  # the embeddings' norm
    assert sent["fedbf"] == 4 * (head + biases)
