"""configs/pf2lora/squad.py from files to exact match, with a tiny checkpoint and a tiny SQuAD."""

import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_bert
import tiny_squad

import jaxfed
from jaxfed.cli import main

PATH = Path(__file__).parents[2] / "configs/pf2lora/squad.py"
CONFIG = runpy.run_path(str(PATH))
SMALL = {
    "rounds": 1,
    "local_steps": 1,
    "batch_size": 4,
    "max_length": 71,
    "shared": 1,
    "similarity": 0.5,
    "rank": 2,
    "personal_rank": 1,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint, and questions of four articles."""
    place = tmp_path_factory.mktemp("squad")
    return {
        "model": str(tiny_bert.write(place / "bert")),
        "train": str(tiny_squad.learnable(place / "train.json", 48, seed=0)),
        "dev": str(tiny_squad.learnable(place / "dev.json", 16, seed=1)),
    }


def test_a_client_is_asked_about_its_own_articles(files):
    data = CONFIG["experiment"](**files, **{**SMALL, "similarity": 0.0}, method="fedlora").data
    assert data.train.count.tolist() == [12] * 4
    assert data.personal.count.tolist() == [4] * 4
    own = data.personal
    articles = [set(own.examples["window"][s : s + 4] % 4) for s in own.start]
    assert sorted(map(list, articles)) == [[0], [1], [2], [3]]


def test_a_run_starts_at_the_checkpoint_with_a_head_of_its_own(files):
    algorithm = CONFIG["experiment"](**files, **SMALL, method="fedlora").algorithm
    server = jax.jit(algorithm.init)(jax.random.key(0))
    expected = tiny_bert.tensors()["bert.encoder.layer.0.attention.self.query.weight"].T
    np.testing.assert_array_equal(server.base["layer_0/query/kernel"], expected)
    assert set(server.theta.full) == {"head_span/kernel", "head_span/bias"}


def test_wrong_settings_are_refused_in_a_sentence(files):
    with pytest.raises(ValueError, match="method='fedpara'; use one of fedavg, "):
        CONFIG["experiment"](**files, **SMALL, method="fedpara")
    with pytest.raises(ValueError, match="max_length=40 leaves 0 tokens of context beside a"):
        CONFIG["experiment"](**files, **{**SMALL, "max_length": 40}, method="fedlora")


@pytest.mark.full
def test_answers_of_a_run_are_scored_by_squads_rules(files, tmp_path):
    """Of single windows and single words, exact match is that of tokens, as in the record."""
    settings = {**files, **SMALL, "rounds": 3, "local_steps": 10, "learning_rate": 0.03}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    main.main(["run", str(PATH), *words, f"--out={tmp_path / 'run'}", "--chunk=4", "--fuse=1"])
    found = CONFIG["scored"](str(tmp_path / "run"), files["model"], files["dev"], 71, 1)
    record = jaxfed.load(tmp_path / "run").records[-1]
    assert found["exact"] == pytest.approx(100 * record["personal"]["exact"]["union"])
    assert found["f1"] == found["exact"]
    with pytest.raises(ValueError, match=r"makes windows \(48, 16\), and the run has"):
        CONFIG["scored"](str(tmp_path / "run"), files["model"], files["train"], 71, 1)
