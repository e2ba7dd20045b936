"""One config for any table: numbers on an MLP, texts on the encoder of a folder."""

import csv
import importlib.util

import jax
import numpy as np
import pytest
import tiny_bert
from pages import ROOT

from jaxfed import Host, run, trees

HOST = Host(devices=1, chunk=2, fuse=1, checkpoint_every=0)


@pytest.fixture(scope="module")
def config():
    spec = importlib.util.spec_from_file_location("table", ROOT / "configs" / "table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def reviews(tmp_path):
    """{data, model}: 120 texts of three users, good if there are more a than b in them."""
    rng, path = np.random.default_rng(0), tmp_path / "reviews.csv"
    with open(path, "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["review", "stars", "customer"])
        for i in range(120):
            words = ["ab"[i % 2]] * 3 + list(rng.choice(list("cdefg"), 3 + i % 3))
            table.writerow([" ".join(rng.permutation(words)), ["good", "bad"][i % 2], f"c{i % 3}"])
    return {"data": str(path), "model": str(tiny_bert.write(tmp_path / "bert"))}


COLUMNS = {"text": "review", "label": "stars", "user": "customer"}


def test_users_are_clients_and_texts_as_long_as_the_longest_in_training(config, reviews):
    e = config.experiment(**reviews, **COLUMNS)
    assert e.data.names == ("c0", "c1", "c2")
    assert e.data.train.examples["tokens"].shape[1] == 16  # 8 words and 2 special tokens
    assert e.data.personal.count.tolist() == [8, 8, 8]
    assert e.cohort == 3
    assert e.data.validated().test["tokens"].shape == (9, 16)


def test_fedloru_merges_into_the_weights_that_were_given(config, reviews):
    e = config.experiment(**reviews, **COLUMNS, method="fedloru", merge_every=3)
    server = jax.jit(e.algorithm.init)(jax.random.key(0))
    expected = tiny_bert.tensors()["bert.encoder.layer.0.attention.self.query.weight"].T
    np.testing.assert_array_equal(server.base["layer_0/query/kernel"], expected)
    assert e.algorithm.broadcast(server, 3) > e.algorithm.broadcast(server, 2) == 0


@pytest.mark.full
def test_an_encoder_learns_from_the_reviews(config, reviews):
    work = {"rounds": 8, "batch_size": 4, "learning_rate": 0.02}
    records = list(run(config.experiment(**reviews, **COLUMNS, method="fedsa", **work), host=HOST))
    assert records[-1]["loss"] < records[0]["loss"]
    assert "personal" in records[-1]


def test_numbers_are_standardised_for_an_mlp(config):
    e = config.experiment(clients=5)
    x = np.concatenate([e.data.train.examples["x"], e.data.personal.examples["x"]])
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(x.std(axis=0)[x.std(axis=0) > 0], 1, atol=1e-3)


def test_what_does_not_go_together_is_refused(config, reviews):
    with pytest.raises(ValueError, match="--text needs --model"):
        config.experiment(data=reviews["data"], **COLUMNS)
    with pytest.raises(ValueError, match="fedhm trains from scratch; give a method that keeps"):
        config.experiment(**reviews, **COLUMNS, method="fedhm")
    with pytest.raises(ValueError, match="fedbn needs batch norms; give a method that keeps"):
        config.experiment(**reviews, **COLUMNS, method="fedbn")
    with pytest.raises(ValueError, match="the zoo has no row 'lora'"):
        config.experiment(method="lora")


def test_fedbn_gets_an_mlp_with_running_statistics(config):
    e = config.experiment(clients=5, method="fedbn")
    assert trees.running(jax.eval_shape(e.task.init, jax.random.key(0))[1].full)
