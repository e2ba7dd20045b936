"""Cosines of approximations and null models, against numpy."""

import jax
import likeness
import numpy as np
import pytest

rng = np.random.default_rng(0)


def test_null_models_keep_what_they_promise():
    w, key = jax.random.normal(jax.random.key(1), (2, 3, 5)), jax.random.key(0)

    def sigma(x):
        return np.linalg.svd(np.reshape(x, (-1, 5)), compute_uv=False)

    np.testing.assert_allclose(sigma(likeness.rotated(w, key)), sigma(w), rtol=1e-4)
    np.testing.assert_allclose(np.sum(likeness.white(w, key) ** 2), np.sum(w**2), rtol=1e-4)
    a = likeness.haar(key, 6, 3)
    np.testing.assert_allclose(a.T @ a, np.eye(3), atol=1e-5)


@pytest.mark.full
def test_cosines_of_approximations_are_those_of_the_truncated_svd():
    stacked = {p: rng.normal(size=(3, 6, 4)).astype(np.float32) for p in "pq"}
    found = likeness.alike(stacked, (1, 2))

    def cut(w, r):
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        return (u[..., :r] * s[..., None, :r]) @ vt[..., :r, :]

    for at, rank in enumerate((4, 1, 2)):
        x = np.concatenate([cut(np.array(w), rank).reshape(3, -1) for w in stacked.values()], 1)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        expected = np.mean((x @ x.T)[np.triu_indices(3, 1)])
        np.testing.assert_allclose(found[likeness.ALL][at], expected, atol=1e-5)


def test_all_directions_projected_on_are_the_whole():
    stacked = {"p": jax.random.normal(jax.random.key(0), (3, 6, 4))}
    whole, seen = likeness.projected(stacked, (6,), jax.random.key(1))["p"]
    np.testing.assert_allclose(seen, whole, atol=1e-5)


def test_clients_have_equal_sizes_and_labels_of_their_own():
    labels = np.arange(100) % 5
    rows = likeness.clients(labels, 5, 10, 0.0, [0])
    assert len(set(rows.tolist())) == 50
    kinds = [len(set(labels[part].tolist())) for part in rows.reshape(5, 10)]
    assert max(kinds) <= 3
