"""configs/fedloru/speakers.py from files to a record, with a tiny checkpoint and tiny plays."""

import json
import runpy
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import tiny_llama2c

from jaxfed import Host, run

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs/fedloru/speakers.py"))
SMALL = {"clients": 3, "cohort": 3, "least": 4, "rounds": 1, "local_steps": 1, "batch_size": 2}
METHODS = get_args(CONFIG["Method"])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(the arguments `model` and `speeches`); letters are words, others become bytes."""
    place = tmp_path_factory.mktemp("speakers")
    tiny_llama2c.write(place)
    lines = [
        {"play": "p", "speaker": name, "text": "abcdefghij"[n % 5 : n % 5 + 5]}
        for n, name in enumerate("XYZXYZXYZXYZXYZW")
    ]
    path = place / "plays.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"model": str(place), "speeches": str(path)}


def test_a_speaker_has_speeches_of_its_own_held_out(files):
    data = CONFIG["experiment"](**files, **SMALL, method="full").data
    assert data.names == ("p / X", "p / Y", "p / Z")
    assert (data.train.count.tolist(), data.personal.count.tolist()) == ([4, 4, 4], [1, 1, 1])
    assert len(data.test["tokens"]) == 3


@pytest.mark.full
@pytest.mark.parametrize("method", METHODS)
def test_a_round_of_each_method_is_scored_by_perplexity(files, method):
    experiment = CONFIG["experiment"](**files, **SMALL, method=method, rank=2, personal_rank=1)
    (record,) = run(experiment, host=Host(devices=1, chunk=1, fuse=1))
    mean = record["personal"]["perplexity"]["union"]
    assert np.isclose(mean, np.exp(record["personal"]["loss"]["union"]))


WRONG = {
    "no folder": ({"model": "absent"}, "absent has nothing; give a folder with"),
    "no speeches": ({"speeches": "absent.jsonl"}, "absent.jsonl"),
    "too many": ({"clients": 4}, "3 speakers have 4 speeches or more; use at most"),
    "no end": ({"end": "<eos>"}, "the tokenizer has no token '<eos>'; give the one that"),
    "too long": ({"max_length": 64}, "do not fit the model's 6 positions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_refused_in_a_sentence(files, name, tmp_path):
    change, message = WRONG[name]
    if name == "too long":
        change = {"model": str(tiny_llama2c.write(tmp_path, positions=6))}
    with pytest.raises((ValueError, OSError), match=message):
        CONFIG["experiment"](**{**files, **SMALL, **change})
