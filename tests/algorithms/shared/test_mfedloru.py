"""mFedLoRU: recovery is linear and exact, and a client of rank r_k trains and sends rank r_k."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from bilinear import adapter, bilinear, mean

from jaxfed import local
from jaxfed.algorithms import mfedloru
from jaxfed.algorithms.shared.mfedloru import around, recovered
from jaxfed.lowrank import Factors, Theta, restarts

COUNT = np.array([4, 6, 6])
RANKS, ALPHA, RATE = [1, 3, 2], 2.0, 0.1
SHARES = COUNT / COUNT.sum()


def made(problem, steps=1, ranks=RANKS, every=10):
    return mfedloru(
        problem.task,
        local.Work(8, epochs=steps, shuffle=False),
        every=every,
        restart=restarts.keep,
        ranks=ranks,
        alpha=ALPHA,
        client_optimizer=optax.sgd(RATE),
    )


def one_round(problem, **options):
    """(server after a round of all clients, what they uploaded [K, ...], metrics)."""
    seen = []

    def verb(client, base, message, cohort):
        reply = oracle.loop(client, base, message, cohort)
        seen.append(reply.upload)
        return reply

    found, _, metrics = oracle.rounds(made(problem, **options), problem.world, [[0, 1, 2]], verb)
    return found, seen[0], metrics[0]


def test_the_server_recovers_the_mean_of_the_clients_a_and_of_their_b(x64):
    """A + a sum_k p_k A_d A_u, and so for B, whatever the four are after three steps."""
    problem = bilinear(COUNT)
    server, upload, _ = one_round(problem, steps=3)
    a = ALPHA / max(RANKS)
    for side, before in (("a", problem.start.a), ("b", problem.start.b)):
        nested = upload.factors[f"w/{side}"]
        assert nested.scale == a
        products = np.einsum("kmr,krn->kmn", nested.a, nested.b)
        expected = before + a * np.tensordot(SHARES, products, axes=1)
        found = getattr(server.theta.factors["w"], side)
        np.testing.assert_allclose(found, expected, rtol=1e-7)
        assert np.abs(expected - before).max() > 1e-3


def test_a_step_on_factors_of_factors_is_the_gradient_seen_through_the_down_factor(x64):
    """From A_u = 0: A_u = -rate a A_d^T grad_A, so A moves by -rate a^2 A_d A_d^T grad_A."""
    problem = bilinear(COUNT)
    server, upload, _ = one_round(problem)
    a, moved = ALPHA / max(RANKS), []
    for i in range(3):
        stepped = problem.trained(i, problem.start, RATE, 1)
        down_a, down_b = (np.asarray(upload.factors[f"w/{side}"].a[i]) for side in "ab")
        change_a = a**2 * down_a @ down_a.T @ (stepped.a - problem.start.a)
        change_b = a**2 * down_b @ down_b.T @ (stepped.b - problem.start.b)
        start = problem.start
        moved.append(start._replace(a=start.a + change_a, b=start.b + change_b))
    expected, found = mean(moved, SHARES), adapter(server.theta.factors)
    np.testing.assert_allclose(found.a, expected.a, rtol=1e-7)
    np.testing.assert_allclose(found.b, expected.b, rtol=1e-7)


def test_a_client_trains_and_sends_no_more_than_its_rank(x64):
    """Of 3 + 2 numbers a component beside A [3, 2], and 2 + 2 beside B [2, 2], in 8 bytes."""
    _, upload, metrics = one_round(bilinear(COUNT), steps=3)
    for nested in upload.factors.values():
        for i, rank in enumerate(RANKS):
            used = np.abs(nested.b[i]).max(axis=1) > 0
            np.testing.assert_array_equal(used, np.arange(3) < rank)
            np.testing.assert_array_equal(np.abs(nested.a[i]).max(axis=0) > 0, used)
    assert metrics["up"].tolist() == [8 * (5 + 4) * rank for rank in RANKS]


def test_nested_factors_of_full_rank_reach_any_factors(x64):
    """Also those of a convolution, A [3, 3, 2, r] and B [r, 5]; whole weights are taken over."""
    rng = np.random.default_rng(0)

    def drawn():
        return Factors(rng.normal(size=(3, 3, 2, 4)), rng.normal(size=(4, 5)), 0.5)

    start, target, whole = drawn(), drawn(), {"bias": np.ones(2)}
    nested = {
        "conv/a": Factors(target.a - start.a, np.eye(4) / ALPHA, ALPHA),
        "conv/b": Factors(np.eye(4) / ALPHA, target.b - start.b, ALPHA),
    }
    theta = Theta({}, {"conv": start})
    assert jax.tree.map(np.shape, around(theta)) == jax.tree.map(
        np.shape, {p: dataclasses.replace(f, scale=1.0) for p, f in nested.items()}
    )
    found = recovered(theta, Theta(whole, nested))
    assert found.full is whole
    oracle.assert_close(found.factors["conv"], jax.tree.map(jnp.asarray, target), rtol=1e-12)


def test_what_was_recovered_is_merged(x64):
    problem = bilinear(COUNT)
    fed = made(problem, every=1)
    first, _, _ = oracle.rounds(fed, problem.world, [[0, 1]])
    second, _, _ = oracle.rounds(fed, problem.world, [[0, 1]] * 2)
    merged = problem.weight + adapter(first.theta.factors).product
    np.testing.assert_allclose(second.base["w"], merged, rtol=1e-12)


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"ranks\[1\]=0; use"):
        made(bilinear(COUNT), ranks=[1, 0, 2])
