"""configs/fedloru/speakers.py from files to a record, with a tiny checkpoint and tiny plays."""

import json
import runpy
import struct
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from jaxfed import Host, run

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs/fedloru/speakers.py"))
SIZES = (
    8,
    12,
    2,
    2,
    1,
    270,
    32,
)
"""Width, feed-forward width, depth, heads, groups, vocabulary, positions."""
SMALL = {"clients": 3, "cohort": 3, "least": 4, "rounds": 1, "local_steps": 1, "batch_size": 2}
METHODS = get_args(CONFIG["Method"])
QUICK = ("full",)
each_method = [pytest.param(m, marks=() if m in QUICK else pytest.mark.full) for m in METHODS]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(the arguments `model` and `speeches`); letters are words, others become bytes."""
    place = tmp_path_factory.mktemp("speakers")
    width, hidden, depth, heads, groups, vocabulary, positions = SIZES
    shared = (
        2 * width + 2 * width * width + 2 * width * width // heads * groups + 3 * width * hidden
    )
    count = vocabulary * width + depth * shared + width + positions * width // heads
    weights = np.random.default_rng(0).normal(0, 0.3, count).astype("<f4")
    (place / "tiny.bin").write_bytes(struct.pack("<7i", *SIZES) + weights.tobytes())
    pieces = [""] * 3 + [f"<0x{i:02X}>" for i in range(256)] + list(" abcdefghij")
    entries = (struct.pack("<fi", 0.0, len(p)) + p.encode() for p in pieces)
    (place / "tok.bin").write_bytes(struct.pack("<i", 6) + b"".join(entries))
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


@pytest.mark.parametrize("method", each_method)
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
        data = bytearray((Path(files["model"]) / "tiny.bin").read_bytes())
        less = (SIZES[6] - 6) * SIZES[0] // SIZES[3] * 4
        data[24:28] = struct.pack("<i", 6)
        (tmp_path / "tiny.bin").write_bytes(bytes(data[:-less]))
        (tmp_path / "tok.bin").write_bytes((Path(files["model"]) / "tok.bin").read_bytes())
        change = {"model": str(tmp_path)}
    with pytest.raises((ValueError, OSError), match=message):
        CONFIG["experiment"](**{**files, **SMALL, **change})
