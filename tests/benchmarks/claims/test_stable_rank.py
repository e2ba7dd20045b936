"""Stable ranks of small sets and of their union, whole on a tiny problem, and the verdict."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stable_rank

pytestmark = pytest.mark.full


def test_stable_ranks_of_small_sets_and_of_their_union(monkeypatch, called):
    more = ["--epochs", "1", "2", "--sizes", "4", "8", "--depth", "3", "--probes", "2"]
    content, page = called(stable_rank, *more)
    run = content["runs"]["fashion_mnist/mlp/1"]
    shapes = {size: np.shape(run[size]["rank"]) for size in ("4", "8")}
    assert shapes == {"4": (2, 2), "8": (2, 1)}  # [epochs, sets]
    np.testing.assert_allclose(np.mean(run["4"]["loss"], 1), np.ravel(run["8"]["loss"]), rtol=1e-3)
    assert (np.array(run["4"]["carried"]) <= 4.001).all()
    assert "28 of 30 pairs" in page
    exact = np.array(run["4"]["exact"])  # of a network so small, by the Hessian's entries too
    assert exact.shape == (2, 2)
    assert (exact >= 0.999).all()
    assert "exact" in stable_rank.exactly(content)
    assert "subset of the 60,000" in page

    monkeypatch.setattr(stable_rank, "one", lambda *job: pytest.fail(f"{job} is made again"))
    assert called(stable_rank, *more)[0] == content
    with pytest.raises(SystemExit, match="not"):
        called(stable_rank, *more[:-1], "3")


def test_the_entries_of_a_hessian_give_the_stable_rank():
    diagonal = {"a": jnp.array([3.0, -6.0]), "b": jnp.array([[2.0], [0.0]])}
    found = stable_rank.entries(lambda v: jax.tree.map(jnp.multiply, diagonal, v), diagonal)
    assert found == pytest.approx((9 + 36 + 4) / 36)


def test_a_pair_without_a_hessian_counts_for_nobody():
    small = {"rank": np.array([[[2.0, np.nan]], [[1.0, 5.0]]]), "error": np.ones((2, 1, 2))}
    large = {"rank": np.array([[[1.0]], [[2.0]]]), "error": np.zeros((2, 1, 1))}
    pairs = stable_rank.Pairs([1], small, large)
    np.testing.assert_array_equal(pairs.held, [[[1, np.nan]], [[0, 1]]])
    assert pairs.decided.tolist() == [[[False, False]], [[False, True]]]
    assert stable_rank.share(pairs.held).startswith("0.75 ")


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.99, "the smaller set nearly always has the larger stable rank"),
        (0.7, "the smaller set more often has the larger stable rank, with many exceptions"),
        (0.5, "neither order is clearly the more frequent one"),
        (0.2, "the larger set more often has the larger stable rank"),
    ],
)
def test_the_verdict_follows_the_numbers(share, said):
    held = np.random.default_rng(1).random((10, 200)) < share
    assert stable_rank.verdict(held.astype(float)) == said
