"""Rows of examples that several data sets share: each is in the pool once, and found again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed.algorithm import Data, Ordered
from jaxfed.simulation import pooling


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (n, 5, 3), np.uint8)
    return {"image": image, "label": rng.integers(0, 9, n, np.int32), "ok": rng.random(n) < 0.5}


def taken(examples, order):
    return {name: x[order] for name, x in examples.items()}


def test_a_pool_has_each_row_once_and_tells_where_it_is():
    """Of sets that overlap, in any order; the first set is not copied."""
    whole, rng = rows(40), np.random.default_rng(1)
    first = taken(whole, np.arange(30))
    pool = pooling.Pool(first)
    assert pool.add(first).tolist() == list(range(30))
    assert all(pool.examples[name] is x for name, x in first.items())
    for _ in range(3):
        some = taken(whole, rng.permutation(40)[:35])
        order = pool.add(some)
        found = taken(pool.examples, order)
        assert all(np.array_equal(found[name], x) for name, x in some.items())
    assert len(pool.examples["label"]) == 40
    none = taken(whole, np.arange(0))
    assert pool.add(none).tolist() == []


def test_rows_that_differ_in_one_bit_are_two_and_those_of_equal_bits_are_one():
    x = np.array([[0.0, 1.0], [-0.0, 1.0], [np.nan, 2.0]], np.float32)
    pool = pooling.Pool({"x": x})
    assert pool.add({"x": x}).tolist() == [0, 1, 2]
    assert pool.add({"x": x[::-1]}).tolist() == [2, 1, 0]


def test_rows_of_one_key_are_told_apart(monkeypatch):
    monkeypatch.setattr(pooling, "_keys", lambda examples: np.zeros(len(examples["label"]), "u8"))
    whole = rows(6)
    pool = pooling.Pool(whole)
    pool.add(whole)
    again = taken(whole, np.array([3, 1]))
    order = pool.add(again)
    found = taken(pool.examples, order)
    assert all(np.array_equal(found[name], x) for name, x in again.items())


@pytest.mark.parametrize("width", [1, 3, 4, 7, 8, 9])
def test_keys_of_random_rows_of_any_width_differ(width):
    x = np.unique(np.random.default_rng(0).integers(0, 256, (2000, width), np.uint8), axis=0)
    assert len(np.unique(pooling._keys({"x": x}))) == len(x)
    assert np.array_equal(pooling._keys({"x": x[::-1]})[::-1], pooling._keys({"x": x}))


def test_pieces_change_no_key(monkeypatch):
    whole = rows(50)
    keys = pooling._keys(whole)
    monkeypatch.setattr(pooling, "PIECE", 64)
    assert np.array_equal(pooling._keys(whole), keys)
    i = np.arange(50)
    assert pooling._equal(whole, i, whole, i).all()
    assert pooling._equal(whole, i, whole, i[::-1]).sum() == 0


def test_ordered_rows_are_the_same_examples_for_an_algorithm():
    """By `at` and, with a copy, by `examples`; also inside vmap with an order for each trial."""
    whole, orders = rows(8), np.stack([np.arange(8), np.arange(8)[::-1]])
    stored = jax.tree.map(jnp.asarray, whole)
    for order in orders:
        ordered = Data(Ordered(stored, jnp.asarray(order)), jnp.int32(3), 4)
        plain = Data(taken(stored, order), jnp.int32(3), 4)
        for i in (jnp.int32(2), jnp.array([0, 3, 1])):
            assert jax.tree.all(jax.tree.map(jnp.array_equal, ordered.at(i), plain.at(i)))
        same = jax.tree.map(jnp.array_equal, ordered.examples, plain.examples)
        assert jax.tree.all(same)

    def label(order):
        return Data(Ordered(stored, order), jnp.int32(1), 4).at(jnp.arange(3))["label"]

    assert np.array_equal(jax.vmap(label)(jnp.asarray(orders)), whole["label"][orders[:, 1:4]])
