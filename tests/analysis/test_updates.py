"""Ranks of what training did, where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import lowrank
from jaxfed.analysis import updates
from jaxfed.lowrank import Factors, Theta, restarts

pytestmark = pytest.mark.usefixtures("x64")


def test_ranks_of_known_singular_values():
    equal = jnp.asarray([2.0] * 4 + [0.0] * 3)
    assert updates.stable_rank(equal) == pytest.approx(4)
    assert updates.effective_rank(equal) == pytest.approx(4)
    one = jnp.asarray([3.0, 0, 0])
    assert updates.stable_rank(one) == updates.effective_rank(one) == pytest.approx(1)
    assert updates.stable_rank(0 * one) == updates.effective_rank(0 * one) == 0
    two = jnp.asarray([0.75, 0.25])
    assert updates.effective_rank(two) == pytest.approx(4 / 3**0.75)  # exp of the entropy
    assert updates.stable_rank(two) == pytest.approx(10 / 9)


def test_singular_values_are_those_of_the_weight_as_a_matrix():
    w = np.random.default_rng(0).normal(size=(2, 3, 4))
    for inputs, shape in ((None, (6, 4)), (1, (2, 12))):
        expected = np.linalg.svd(w.reshape(shape), compute_uv=False)
        np.testing.assert_allclose(updates.singular_values(jnp.asarray(w), inputs), expected)


def model(seed):
    rng = np.random.default_rng(seed)
    base = {"dense": rng.normal(size=(6, 5)), "frozen": np.ones(2)}
    factors = {"dense": Factors(rng.normal(size=(6, 2)), rng.normal(size=(2, 5)), 0.5)}
    return jax.tree.map(jnp.asarray, (base, Theta({"bias": rng.normal(size=5)}, factors)))


def test_a_change_is_counted_through_a_merge():
    """Three products were added up, each of rank 2, so the change has rank 5 of 5."""
    before = base, theta = model(0)
    moved, total = theta, -lowrank.product(theta.factors["dense"])
    for seed in (1, 2):
        moved = model(seed)[1]
        total += lowrank.product(moved.factors["dense"])
        base, moved = restarts.reinit(base, moved, None, jax.random.key(seed))
    last = model(3)[1]
    total += lowrank.product(last.factors["dense"])
    found = jax.jit(updates.change)(before, (base, last))
    np.testing.assert_allclose(found["dense"], total, atol=1e-12)
    np.testing.assert_allclose(found["bias"], last.full["bias"] - theta.full["bias"])
    assert not found["frozen"].any()
    sigma = updates.shown(found)
    assert list(sigma) == ["dense"]
    assert jnp.sum(sigma["dense"] > 1e-9) == 5


def test_the_share_in_a_subspace():
    d = {"a": jnp.asarray([[3.0, 0], [0, 0]]), "b": jnp.asarray([4.0, 0])}
    along_a = {"a": jnp.asarray([[[1.0, 0], [0, 0]]]), "b": jnp.zeros((1, 2))}
    assert updates.share(along_a, d) == pytest.approx(9 / 25)
    both = {"a": jnp.zeros((2, 2, 2)).at[0, 0, 0].set(1), "b": jnp.zeros((2, 2)).at[1, 0].set(1)}
    assert updates.share(both, d) == pytest.approx(1)
    assert updates.share(both, jax.tree.map(jnp.zeros_like, d)) == 0
