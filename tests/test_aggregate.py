"""Means over stacked uploads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxfed import aggregate

pytestmark = pytest.mark.quick

# None, or one that stays a normal number when it is divided: XLA takes smaller ones for zero.
share_of_one = st.just(0.0) | st.floats(2.0**-20, 1, width=32)
shares = arrays.arrays(np.float32, 5, elements=share_of_one).filter(lambda w: w.sum() > 0.1)


def stacked(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(5, 2, 3)).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float32),
    }


@settings(deadline=None, max_examples=30)
@given(shares)
def test_weighted_mean_is_the_sum_of_shares(weight):
    weight, x = weight / weight.sum(), stacked()
    mean = aggregate.weighted_mean(x, weight)
    np.testing.assert_allclose(mean["a"], np.einsum("k,kij->ij", weight, x["a"]), atol=1e-6)
    np.testing.assert_allclose(mean["b"], weight @ x["b"], atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(shares)
def test_uniform_mean_counts_whoever_is_present_once(weight):
    x = stacked()
    mean = aggregate.uniform_mean(x, weight)
    np.testing.assert_allclose(mean["a"], x["a"][weight > 0].mean(0), atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(shares, shares)
def test_norm_weighted_counts_whoever_is_present_by_a_norm(norm, weight):
    weight, x = weight / weight.sum(), stacked()
    share = norm * (weight > 0)
    share = share / share.sum() if share.any() else weight
    mean = aggregate.norm_weighted(x, jnp.asarray(norm), jnp.asarray(weight))
    np.testing.assert_allclose(mean["a"], np.einsum("k,kij->ij", share, x["a"]), atol=1e-5)


def test_a_mean_keeps_the_precision_of_its_leaves():
    weight = jnp.full(5, 0.2)
    x = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), stacked())
    for mean in (aggregate.weighted_mean, aggregate.uniform_mean):
        assert {leaf.dtype for leaf in jax.tree.leaves(mean(x, weight))} == {jnp.dtype("bfloat16")}


def test_finite_finds_the_clients_whose_every_leaf_is():
    x = stacked()
    x["a"][1, 0, 2], x["b"][3] = np.nan, -np.inf
    assert aggregate.finite(x).tolist() == [True, False, True, False, True]


def test_choose_takes_from_one_or_the_other():
    x, y = stacked(0), stacked(1)
    which = jnp.array([True, False, True, True, False])
    for other in (y, jax.tree.map(lambda leaf: leaf[0], y)):
        chosen = aggregate.choose(which, x, other)
        for n in x:
            whole = np.broadcast_to(other[n], x[n].shape)
            expected = [x[n][k] if which[k] else whole[k] for k in range(5)]
            np.testing.assert_allclose(chosen[n], np.stack(expected), rtol=1e-6)


# ---------------------------------------------------------------------- robust means


def uploads(clients=7, seed=0):
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=(clients, 2, 3)), "b": rng.normal(size=clients)}


WEIGHTS = {
    "all": np.full(7, 1 / 7),
    "some": np.array([0.3, 0, 0.2, 0.1, 0.1, 0.2, 0.1]),
}


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_the_median_and_the_trimmed_mean_are_those_of_numpy(x64, weight):
    x, there = uploads(), weight > 0
    found = aggregate.median(x, jnp.asarray(weight))
    jax.tree.map(
        lambda m, x: np.testing.assert_allclose(m, np.median(x[there], axis=0), rtol=1e-12),
        found,
        x,
    )
    found = aggregate.trimmed(0.3)(x, jnp.asarray(weight))
    ends = int(0.3 * there.sum())
    for name, m in found.items():
        inside = np.sort(x[name][there], axis=0)[ends : there.sum() - ends]
        np.testing.assert_allclose(m, inside.mean(axis=0), rtol=1e-12)


@pytest.mark.parametrize("weight", WEIGHTS.values(), ids=WEIGHTS)
def test_krum_is_the_papers_loop(x64, weight):
    x, there = uploads(), np.flatnonzero(weight)
    flat = np.concatenate([x["a"].reshape(7, -1), x["b"][:, None]], axis=1)
    score = {}
    for i in there:
        others = sorted(np.sum((flat[i] - flat[j]) ** 2) for j in there if j != i)
        score[i] = sum(others[: len(there) - 2 - 2])
    chosen = min(score, key=score.get)
    found = aggregate.krum(2)(x, jnp.asarray(weight))
    np.testing.assert_array_equal(found["a"], x["a"][chosen])
    np.testing.assert_array_equal(found["b"], x["b"][chosen])


@pytest.mark.parametrize("mean", [aggregate.median, aggregate.trimmed(0.3), aggregate.krum(2)])
def test_two_of_seven_clients_cannot_move_a_robust_mean_far(x64, mean):
    x, weight = uploads(), jnp.full(7, 1 / 7)
    wrong = jax.tree.map(lambda x: np.concatenate([x[:5], 1e6 + 0 * x[5:]]), x)
    found = mean(wrong, weight)
    honest = jax.tree.map(lambda x: (x[:5].min(axis=0), x[:5].max(axis=0)), x)
    for name, (low, high) in honest.items():
        assert np.all((low <= found[name]) & (found[name] <= high))
    assert aggregate.weighted_mean(wrong, weight)["b"] > 1e5


def test_a_robust_mean_that_leaves_no_client_is_refused():
    with pytest.raises(ValueError, match=r"share=0\.5 leaves out all"):
        aggregate.trimmed(0.5)
    with pytest.raises(ValueError, match="byzantine=2 needs 5 clients"):
        aggregate.krum(2)(uploads(4), jnp.full(4, 0.25))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e5, 1e8, 1e20, 1e38])
def test_one_upload_of_anything_does_not_move_krum(wrong):
    """Of seven clients, the last of whom may upload anything, it chooses as without the last."""
    x = np.random.default_rng(0).normal(size=(7, 6)).astype(np.float32)
    far = x.astype(np.float64)
    distance = np.sort(((far[:6, None] - far[:6]) ** 2).sum(-1), axis=1)
    expected = int(np.argmin(distance[:, 1:5].sum(1)))  # 7 - 1 - 2 nearest
    x[6, 2] = wrong
    chosen = aggregate.krum(1)({"x": x}, jnp.full(7, 1 / 7))["x"]
    np.testing.assert_array_equal(chosen, x[expected])


def test_krum_of_one_client_is_that_client():
    x = np.arange(3, dtype=np.float32)
    for i in range(3):
        assert aggregate.krum(0)({"x": x}, jnp.eye(3)[i])["x"] == i


def test_a_trimmed_mean_leaves_out_the_share_that_was_asked_for():
    x = np.sort(np.random.default_rng(0).normal(size=150)).astype(np.float32)
    found = aggregate.trimmed(0.42)({"x": x}, jnp.full(150, 1 / 150))["x"]
    np.testing.assert_allclose(found, x[63:87].mean(), rtol=1e-5)
