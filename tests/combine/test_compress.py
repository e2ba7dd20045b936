"""Compressed uplinks: contraction, the papers' loops in numpy, and where they end."""

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from jaxfed import combine, local
from jaxfed.algorithms import fedavg, scaffold
from jaxfed.combine import compress
from jaxfed.tasks import Task

RATE, ROWS, KEY = 0.1, 12, jax.random.key(0)
INPUTS, OUTPUTS = 6, 5
FEEDBACK = {"plain": None, "ef14": compress.ef14, "ef21": compress.ef21}


def world(clients=3):
    """(task, world, first W) of 1/2 mean |x W - y|^2, all of W trained; ROWS examples each."""
    rng = np.random.default_rng(0)
    examples = {
        "x": rng.normal(size=(ROWS * clients, INPUTS)),
        "y": rng.normal(size=(ROWS * clients, OUTPUTS)),
    }
    first = rng.normal(size=(INPUTS, OUTPUTS))

    def loss(base, w, batch, key):
        squared = jnp.sum((batch["x"] @ w - batch["y"]) ** 2, axis=1) / 2
        return jnp.sum(squared * batch["mask"]) / jnp.sum(batch["mask"])

    task = Task(lambda key: ((), jnp.asarray(first)), loss, None)
    return task, oracle.World(examples, np.full(clients, ROWS)), first


def averaged(task, steps):
    work = local.Work(ROWS, steps=steps, shuffle=False)
    return fedavg(task, work, client_optimizer=optax.sgd(RATE))


def best(matrix, rank):
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vt[:rank]


@pytest.mark.parametrize("feedback", FEEDBACK)
def test_rounds_are_the_papers_loop(x64, feedback):
    """Of two among three clients, three local steps, and the SVD of rank 2."""
    task, small, w = world()
    fed = combine.compressed(
        averaged(task, 3), compress=compress.svd(2), feedback=FEEDBACK[feedback]
    )
    draws = [[0, 2], [1, 0], [2, 1], [0, 1]]
    server, states, _ = oracle.rounds(fed, small, draws)
    kept = dict.fromkeys(range(3), 0 * w)
    for ids in draws:
        sent = []
        for i in ids:
            x, y = (small.examples[n][ROWS * i : ROWS * (i + 1)] for n in "xy")
            v = w.copy()
            for _ in range(3):
                v = v - RATE * x.T @ (x @ v - y) / ROWS
            if feedback == "ef14":
                p = v - w + kept[i]
                sent.append(best(p, 2))
                kept[i] = p - sent[-1]
            elif feedback == "ef21":
                kept[i] = kept[i] + best(v - w - kept[i], 2)
                sent.append(kept[i])
            else:
                sent.append(best(v - w, 2))
        w = w + np.mean(sent, axis=0)
    np.testing.assert_allclose(server.theta, w, rtol=1e-8)
    for i in range(3) if feedback != "plain" else ():
        np.testing.assert_allclose(states[i].memory, kept[i], atol=1e-9)


def test_ef21_reaches_the_optimum_where_the_others_stop(x64):
    """Rank 1 of 6 x 5, unequal clients, one local step: published is exactness for EF21 alone."""
    task, small, _ = world()
    minimum = np.linalg.lstsq(small.examples["x"], small.examples["y"], rcond=None)[0]
    distance = {}
    for name, feedback in FEEDBACK.items():
        fed = combine.compressed(averaged(task, 1), compress=compress.svd(1), feedback=feedback)
        server, _, _ = oracle.rounds(fed, small, [[0, 1, 2]] * 400)
        distance[name] = np.abs(server.theta - minimum).max()
    assert distance["ef21"] < 1e-9 < 1e-2 < distance["ef14"] < distance["plain"]


@pytest.mark.parametrize("seed", range(5))
def test_compressors_contract(x64, seed):
    rng = np.random.default_rng(seed)
    tree = {"w": jnp.asarray(rng.normal(size=(8, 7))), "b": jnp.asarray(rng.normal(size=3))}
    size = sum(x.size for x in tree.values())

    def squared(tree):
        return float(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))

    compressors = {
        1 / 7: compress.svd(1),
        3 / 7: compress.svd(3),
        int(0.3 * size) / size: compress.top(0.3),
    }
    for delta, compressor in compressors.items():
        arrived, _ = compressor(tree, KEY)
        assert squared(optax.tree.sub(arrived, tree)) <= (1 - delta) * squared(tree)
    arrived, _ = compress.power(2)(tree, KEY)  # a projection
    assert squared(optax.tree.sub(arrived, tree)) < squared(tree)


def test_subspace_iteration_ends_at_the_svd(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 7)))
    arrived, _ = compress.power(2, passes=100)(x, KEY)
    np.testing.assert_allclose(arrived, best(np.asarray(x), 2), atol=1e-6)


def test_bytes_are_those_of_factors_or_of_entries_with_positions():
    """A matrix [8, 7] at rank 1 is 15 numbers; at rank 4, 60, it is sent whole, as vectors are."""
    tree = {"w": jnp.ones((2, 4, 7)), "b": jnp.ones(3)}
    sizes = {
        compress.svd(1): 4 * (15 + 3),
        compress.power(2): 4 * (30 + 3),
        compress.svd(4): 4 * (56 + 3),
        compress.top(0.5): 8 * 29,
    }
    for compressor, size in sizes.items():
        arrived, sent = compressor(tree, KEY)
        assert sum(jax.tree.leaves(sent)) == size
        assert jax.tree.map(jnp.shape, arrived) == jax.tree.map(jnp.shape, tree)
    whole, _ = compress.svd(4)(tree, KEY)
    np.testing.assert_array_equal(whole["w"], tree["w"])


def test_a_run_counts_the_bytes_that_cross():
    """head/kernel [5, 3] at rank 1 is 8 of its 15 numbers, beside 3 of the bias."""
    fed = algorithms.ALGORITHMS["fedavg-ef21"](RATE)
    _, _, (found,) = oracle.rounds(fed, algorithms.UNEQUAL, algorithms.DRAWS[:1])
    assert set(found["up"].tolist()) == {4 * (5 + 3 + 3)}


def test_an_upload_of_another_form_than_theta_is_refused():
    inner = scaffold(
        algorithms.classifier(algorithms.WHOLE), algorithms.WORK, learning_rate=RATE, clients=9
    )
    fed = combine.compressed(inner, compress=compress.top(0.1), feedback=compress.ef14)
    with pytest.raises(ValueError, match="another tree than theta"):
        oracle.rounds(fed, algorithms.UNEQUAL, algorithms.DRAWS[:1])


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="rank=0"):
        compress.svd(0)
    with pytest.raises(ValueError, match="density=2"):
        compress.top(2)


def test_rounding_is_unbiased_and_within_a_step(x64):
    """The mean of 4,000 draws lies within 5 standard errors of x; each is a whole level."""
    x = {"w": np.linspace(-1, 0.7, 12).reshape(3, 4), "zero": np.zeros(2)}
    keys = jax.random.split(jax.random.key(0), 4000)
    compressor = compress.quantised(3)
    arrived = jax.vmap(lambda key: compressor(x, key)[0])(keys)
    step = 1 / 3  # 2^2 - 1 levels up to the largest
    whole = np.asarray(arrived["w"]) / step
    np.testing.assert_allclose(whole, np.round(whole), atol=1e-9)
    assert np.max(np.abs(arrived["w"] - x["w"])) < step
    assert np.max(np.abs(arrived["w"].mean(axis=0) - x["w"])) < 5 * step / 2 / np.sqrt(4000)
    np.testing.assert_array_equal(arrived["zero"], 0 * arrived["zero"])


def test_rounded_uploads_count_their_bits():
    x = {"w": np.ones((3, 5), np.float32), "b": np.ones(3, np.float32)}
    _, sizes = compress.quantised(3)(x, jax.random.key(0))
    assert sum(sizes) == 4 + 2 + 4 + 6  # 9 and 45 bits, and a float32 each
    with pytest.raises(ValueError, match="bits=20"):
        compress.quantised(20)


def test_rounding_is_unbiased_in_a_narrow_type():
    """A step is much less than a digit of the largest; the mean is taken in double precision."""
    x = {"w": jnp.linspace(-1, 1, 64, dtype=jnp.bfloat16)}
    keys = jax.random.split(jax.random.key(0), 4000)
    arrived = jax.vmap(lambda key: compress.quantised(4)(x, key)[0]["w"])(keys)
    assert arrived.dtype == jnp.bfloat16
    bias = np.asarray(arrived, np.float64).mean(axis=0) - np.asarray(x["w"], np.float64)
    assert np.max(np.abs(bias)) < 5 / 7 / 2 / np.sqrt(4000) + 2.0**-9  # and a cast's rounding
    assert np.max(np.abs(np.asarray(arrived, np.float32))) <= 1
