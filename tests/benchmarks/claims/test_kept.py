"""Finished runs in a file: none is made twice, and none is mixed with those of other settings."""

import importlib
import json

import kept
import pytest


def test_runs_are_found_again_and_other_settings_are_refused(tmp_path):
    path = tmp_path / "new" / "x.json"
    found = kept.Kept(path, {"a": (1,)}, data={"rows": 3})
    found.add("cell", {"accuracy": [0.9]})
    found.add("other", {"accuracy": [0.8]})
    again = kept.Kept(path, {"a": [1]})
    assert again.runs == {"cell": {"accuracy": [0.9]}, "other": {"accuracy": [0.8]}}
    assert again.content == json.loads(path.read_text()) == found.content
    assert again.content["data"] == {"rows": 3}
    with pytest.raises(SystemExit, match="give another --results"):
        kept.Kept(path, {"a": [2]})


def test_a_name_lies_in_the_results_and_a_path_where_it_says(tmp_path):
    assert kept.path("clients_gap") == kept.RESULTS / "clients_gap.json"
    assert kept.path("clients_gap").exists()
    assert kept.path(str(tmp_path / "x")) == tmp_path / "x.json"


def test_a_page_is_written_beside_its_runs(tmp_path, capsys):
    found = kept.Kept(tmp_path / "x.json", {})
    found.publish(lambda content, picture: f"{len(content['runs'])} runs, see {picture}")
    assert (tmp_path / "x.md").read_text() == "0 runs, see x.png"
    assert not (tmp_path / "x.png").exists()
    assert "0 runs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("binding_rank", "binding_rank"),
        ("clients_gap", "clients_gap"),
        ("glue_table", "glue_minilm"),
        ("gradient_similarity", "gradient_similarity"),
        ("merging", "merging"),
        ("merging", "merging_batch_norm"),
        ("merging", "merging_mlp"),
        ("merging_bias", "merging_bias"),
        ("pf2lora_text", "pf2lora_text"),
        ("pf2lora_text", "pf2lora_text_mnli"),
        ("speakers", "speakers"),
        ("stable_rank", "stable_rank"),
        ("tuned_text", "tuned_text"),
    ],
)
def test_a_stored_page_is_what_its_script_says_of_the_stored_runs(script, name):
    content = json.loads(kept.path(name).read_text())
    written = kept.path(name).with_suffix(".md").read_text()
    assert importlib.import_module(script).page(content, f"{name}.png") == written
