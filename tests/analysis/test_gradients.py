"""How alike clients are: inner products of factors' products, and of approximations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import lowrank
from jaxfed.analysis import gradients
from jaxfed.lowrank import Factors, Theta

pytestmark = pytest.mark.usefixtures("x64")
K = 4
rng = np.random.default_rng(0)
WEIGHTS = {
    "conv": rng.normal(size=(K, 2, 2, 3, 5)),
    "dense": rng.normal(size=(K, 4, 3)),
    "bias": rng.normal(size=(K, 3)),
}


def flat(stacked):
    return np.concatenate([np.reshape(x, (K, -1)) for x in jax.tree.leaves(stacked)], axis=1)


def formed(stacked):
    """{path: [K, ...]} with every product formed."""
    products = {p: jax.vmap(lowrank.product)(f) for p, f in stacked.factors.items()}
    return {**stacked.full, **products}


def test_inner_products_are_those_of_long_vectors():
    x = flat(WEIGHTS)
    np.testing.assert_allclose(gradients.inner(WEIGHTS), x @ x.T)
    found = gradients.cosines(gradients.inner(WEIGHTS))
    lengths = np.linalg.norm(x, axis=1)
    np.testing.assert_allclose(found, x @ x.T / np.outer(lengths, lengths))
    assert gradients.pairs(found).tolist() == [
        found[i, j] for i in range(K) for j in range(i + 1, K)
    ]


def test_a_client_that_did_nothing_is_like_nobody():
    gram = gradients.inner(jnp.asarray([[1.0, 0], [0, 0], [2, 2]]))
    half = 0.5**0.5
    np.testing.assert_allclose(gradients.cosines(gram), [[1, 0, half], [0, 0, 0], [half, 0, 1]])


@pytest.mark.parametrize("rank", [1, 2, 9])
def test_inner_products_of_approximations_are_those_of_the_truncated_svd(rank):
    approximated = jax.vmap(lambda w: gradients.low_rank(w, 9))(WEIGHTS)
    lower = gradients.leading(approximated, rank)
    expected = {"bias": WEIGHTS["bias"]}
    for p in ("conv", "dense"):
        u, s, vt = np.linalg.svd(WEIGHTS[p].reshape(K, -1, WEIGHTS[p].shape[-1]), False)
        expected[p] = np.einsum("kir,kr,kro->kio", u[..., :rank], s[:, :rank], vt[:, :rank])
    x = flat(expected)
    np.testing.assert_allclose(gradients.inner_of_products(lower), x @ x.T, atol=1e-12)


def test_inputs_say_how_a_weight_is_a_matrix():
    """An attention projection [in, heads, dim] of rank one as [in, heads dim]."""
    w = jnp.einsum("i,hd->ihd", *(jnp.asarray(rng.normal(size=s)) for s in (4, (2, 3))))
    found = gradients.low_rank({"query": w}, 1, {"query": 1}).factors["query"]
    np.testing.assert_allclose(lowrank.product(found), w, atol=1e-12)
    other = gradients.low_rank({"query": w}, 1).factors["query"]
    assert jnp.linalg.norm(lowrank.product(other) - w) > 0.01 * jnp.linalg.norm(w)


def test_what_moved_is_the_difference_of_products():
    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape))

    before = Theta({}, {"conv": Factors(draw(2, 2, 3, 2), draw(2, 5), 0.5)})
    change = Theta(
        {"bias": WEIGHTS["bias"]}, {"conv": Factors(draw(K, 2, 2, 3, 2), draw(K, 2, 5), 0.5)}
    )
    found = formed(gradients.moved(before, change))
    after = jax.tree.map(jnp.add, before.factors, change.factors)["conv"]
    expected = jax.vmap(lowrank.product)(after) - lowrank.product(before.factors["conv"])
    np.testing.assert_allclose(found["conv"], expected, atol=1e-12)
    np.testing.assert_allclose(found["bias"], change.full["bias"])
