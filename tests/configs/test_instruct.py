"""configs/fedloru/instruct.py: from instructions to a record, and its shares of a LLaMA."""

import json
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_llama2c

from jaxfed import Host, local, models, run, tasks, trees
from jaxfed.cli import describe
from jaxfed.simulation import ledger

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs/fedloru/instruct.py"))
SMALL = {
    "clients": 3,
    "cohort": 2,
    "rounds": 2,
    "merges": 2,
    "local_steps": 1,
    "batch_size": 2,
    "rank": 2,
    "max_length": 64,
}
LLAMA_2_7B = models.Decoder(
    vocabulary=32000,
    width=4096,
    depth=32,
    heads=32,
    feedforward=11008,
    positions=4096,
    kind="llama",
    tied=False,
    dtype=jnp.bfloat16,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(the arguments `model` and `data`), with 20 instructions, half of them with an input."""
    place = tmp_path_factory.mktemp("instruct")
    lines = [
        {"instruction": "abc"[i % 3], "input": "d" * (i % 2), "output": "efg"[i % 3]}
        for i in range(20)
    ]
    (place / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {
        "model": str(tiny_llama2c.write(place, positions=64)),
        "data": str(place / "x.jsonl"),
    }


def test_three_updates_of_llama_2_7b_are_three_times_what_one_is():
    """0.12 % of the parameters, and 0.37 % (0.36 where 0.12 is multiplied), without weights."""
    examples = {"tokens": np.ones((1, 4), np.int32), "scored": np.ones((1, 4), np.int8)}
    task = tasks.next_token(LLAMA_2_7B, examples, select=CONFIG["factors"](16))
    work, adamw = local.Work(1, steps=1), optax.adamw(1e-3)
    shown = []
    for merges in (0, 3):
        algorithm = CONFIG["algorithm"](task, work, adamw, merges=merges, every=1)
        server = jax.eval_shape(algorithm.init, jax.random.key(0))
        shared = trees.size(server.theta)
        shown.append(describe.parameters(server.base, server.theta, ledger.Wire(0, 0), shared))
    for lines in shown:
        assert "model    6,738,415,616 parameters (13.5 GB)\n" in lines
        assert "trained  8,388,608 = 0.12% of the model: 8,388,608 in factors" in lines
        assert "frozen   6,738,415,616 (13.5 GB)" in lines
    assert "list" not in shown[0]
    assert f"list     {3 * 8_388_608:,} = 0.37% of the model: room for the merges" in shown[1]


def test_an_instruction_is_read_with_its_input_if_it_has_one(files):
    found = CONFIG["worded"](files["data"])
    assert found["prompt"][:2].tolist() == [
        "### Instruction:\na\n\n### Response:\n",
        "### Instruction:\nb\n\n### Input:\nd\n\n### Response:\n",
    ]
    assert found["response"][:2].tolist() == ["e", "f"]


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "base"), [("fedloru", "float"), ("fedlora", "float"), ("fedloru", "int4")]
)
def test_a_run_leaves_the_weights_as_they_are(files, method, base):
    made = CONFIG["experiment"](**files, **SMALL, method=method, base=base, evaluate_every=2)
    *_, record = run(made, host=Host(devices=1, chunk=2, fuse=1))
    assert record["perplexity"] > 1
    base = made.algorithm.init(jax.random.key(0)).base
    assert ("list/layers/query/kernel/a" in base) == (method == "fedloru")


def test_an_end_that_the_tokenizer_lacks_is_refused(files):
    with pytest.raises(ValueError, match="the tokenizer has no token '<eos>'; give the one that"):
        CONFIG["experiment"](**files, **SMALL, end="<eos>")
