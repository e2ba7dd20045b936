"""The scripts on the claims about rank, benchmarks/claim_{stable_rank,gradient_similarity}.py."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import claim_gradient_similarity as similarity
import claim_stable_rank as stable
import trained

from jaxfed import models

pytestmark = pytest.mark.full

SMALL = ["--networks", "mlp", "--data", "fashion_mnist", "--seeds", "2", "--workers", "1"]
rng = np.random.default_rng(0)


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """Two classes of 4 x 4 images, dark and bright; the MLP has one small hidden layer."""
    small = trained.NETWORKS["mlp"]._replace(model=lambda classes: models.MLP((4,), classes))
    monkeypatch.setitem(trained.NETWORKS, "mlp", small)
    made = {}
    for split in ("train", "test"):
        label = np.arange(60) % 2
        image = rng.integers(0, 128, (60, 4, 4)) + 100 * label[:, None, None]
        made |= {f"{split}_image": image.astype(np.uint8), f"{split}_label": label}
    np.savez(tmp_path / "fashion_mnist.npz", **made)
    return tmp_path


def call(monkeypatch, script, data_dir, *more):
    """The script as the command line runs it; (what it kept, its page)."""
    path = data_dir / "found"
    given = ["--data-dir", str(data_dir), "--results", str(path), *SMALL, *more]
    monkeypatch.setattr(sys, "argv", ["script", *given])
    script.main()
    assert path.with_suffix(".png").exists()
    return json.loads(path.with_suffix(".json").read_text()), path.with_suffix(".md").read_text()


def test_stable_ranks_of_small_sets_and_of_their_union(monkeypatch, data_dir):
    more = ["--epochs", "1", "2", "--sizes", "4", "8", "--depth", "3", "--probes", "2"]
    kept, page = call(monkeypatch, stable, data_dir, *more)
    run = kept["runs"]["fashion_mnist/mlp/1"]
    shapes = {size: np.shape(run[size]["rank"]) for size in ("4", "8")}
    assert shapes == {"4": (2, 2), "8": (2, 1)}  # [epochs, sets]
    np.testing.assert_allclose(np.mean(run["4"]["loss"], 1), np.ravel(run["8"]["loss"]), rtol=1e-3)
    assert (np.array(run["4"]["carried"]) <= 4.001).all()
    assert "28 of 30 pairs" in page
    assert "subset of the 60,000" in page

    monkeypatch.setattr(stable, "one", lambda *job: pytest.fail(f"{job} is made again"))
    assert call(monkeypatch, stable, data_dir, *more)[0] == kept
    with pytest.raises(SystemExit, match="not"):
        call(monkeypatch, stable, data_dir, *more[:-1], "3")


def test_gradients_and_updates_of_clients(monkeypatch, data_dir):
    monkeypatch.setattr(similarity.Local.__new__, "__defaults__", (4, 1, 2, 0.05, 2))
    more = ["--epochs", "0", "1", "--ranks", "1", "4", "--clients", "3", "--sizes", "4"]
    kept, page = call(monkeypatch, similarity, data_dir, *more)
    found = similarity.gathered(kept)
    assert found.gain("measured").shape == (2, 1, 2, 3, 1, 2)
    np.testing.assert_allclose(found.gain("measured")[..., 1], 0, atol=2e-3)  # rank 4 is whole
    assert all(np.isfinite(x).all() for x in found.cosines.values())
    assert "by label" in page


def test_a_pair_without_a_hessian_counts_for_nobody():
    small = {"rank": np.array([[[2.0, np.nan]], [[1.0, 5.0]]]), "error": np.ones((2, 1, 2))}
    large = {"rank": np.array([[[1.0]], [[2.0]]]), "error": np.zeros((2, 1, 1))}
    pairs = stable.Pairs([1], small, large)
    np.testing.assert_array_equal(pairs.held, [[[1, np.nan]], [[0, 1]]])
    assert pairs.decided.tolist() == [[[False, False]], [[False, True]]]
    assert stable.share(pairs.held).startswith("0.75 ")


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.99, "the claim holds nearly always"),
        (0.7, "the claimed order is the more frequent one, with many exceptions"),
        (0.5, "the claim does not hold: neither order is clearly the more frequent one"),
        (0.2, "the claim does not hold: the opposite order is the more frequent one"),
    ],
)
def test_the_verdict_follows_the_numbers(share, said):
    held = np.random.default_rng(1).random((10, 200)) < share
    assert stable.verdict(held.astype(float)) == said


def test_an_interval_over_seeds_is_wider_than_one_over_pairs():
    """Where all epochs of a seed agree, only seeds count."""
    held = np.repeat(rng.integers(0, 2, (10, 1)), 100, axis=1)
    _, low, high = trained.bootstrap(held.mean(1))
    assert high - low > 0.4


def test_null_models_keep_what_they_promise():
    w, key = jax.random.normal(jax.random.key(1), (2, 3, 5)), jax.random.key(0)

    def sigma(x):
        return np.linalg.svd(np.reshape(x, (-1, 5)), compute_uv=False)

    np.testing.assert_allclose(sigma(similarity.rotated(w, key)), sigma(w), rtol=1e-4)
    np.testing.assert_allclose(np.sum(similarity.white(w, key) ** 2), np.sum(w**2), rtol=1e-4)
    a = similarity.haar(key, 6, 3)
    np.testing.assert_allclose(a.T @ a, np.eye(3), atol=1e-5)


def test_cosines_of_approximations_are_those_of_the_truncated_svd():
    stacked = {p: rng.normal(size=(3, 6, 4)).astype(np.float32) for p in "pq"}
    found = similarity.alike(stacked, (1, 2))

    def cut(w, r):
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        return (u[..., :r] * s[..., None, :r]) @ vt[..., :r, :]

    for at, rank in enumerate((4, 1, 2)):
        x = np.concatenate([cut(np.array(w), rank).reshape(3, -1) for w in stacked.values()], 1)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        expected = np.mean((x @ x.T)[np.triu_indices(3, 1)])
        np.testing.assert_allclose(found[similarity.ALL][at], expected, atol=1e-5)


def test_all_directions_projected_on_are_the_whole():
    stacked = {"p": jax.random.normal(jax.random.key(0), (3, 6, 4))}
    whole, seen = similarity.projected(stacked, (6,), jax.random.key(1))["p"]
    np.testing.assert_allclose(seen, whole, atol=1e-5)


def test_clients_have_equal_sizes_and_labels_of_their_own():
    labels = np.arange(100) % 5
    rows = similarity.clients(labels, 5, 10, 0.0, [0])
    assert len(set(rows.tolist())) == 50
    kinds = [len(set(labels[part].tolist())) for part in rows.reshape(5, 10)]
    assert max(kinds) <= 3
