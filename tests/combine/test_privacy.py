"""Client-level privacy: clipping, noise, and what it costs."""

import sys

import algorithms
import jax
import numpy as np
import optax
import oracle
import pytest
from algorithms import COHORT, DRAWS, UNEQUAL

from jaxfed import combine
from jaxfed.algorithms import scaffold
from jaxfed.combine import privacy

pytest.importorskip("dp_accounting")

OPTIONS = {"clients": 9, "cohort_size": COHORT, "rounds": 3, "delta": 1e-3}


def made(rate, **options):
    return combine.private(algorithms.averaging(algorithms.WHOLE, rate), **{**OPTIONS, **options})


def test_the_server_sees_the_mean_of_clipped_changes(x64):
    """With hardly any noise. The clip lies among the clients' norms; clients count alike."""
    seen = []

    def verb(client, base, message, cohort):
        seen.append(oracle.loop(client, base, message, cohort))
        return seen[-1]

    plain = algorithms.averaging(algorithms.WHOLE, 0.2)
    begun, _, _ = oracle.rounds(plain, UNEQUAL, DRAWS[:1], verb)
    start = plain.init(jax.random.key(0)).theta
    change = [jax.tree.map(lambda x, i=i: x[i], seen[0].upload) for i in range(COHORT)]
    norms = np.array([optax.tree.norm(c) for c in change])
    clip = float(np.median(norms))
    scales = np.minimum(1, clip / norms) / COHORT
    expected = start
    for scale, c in zip(scales, change, strict=True):
        expected = optax.tree.add_scale(expected, scale, c)
    fed = made(0.2, clip=clip, noise=1e-9)
    server, _, _ = oracle.rounds(fed, UNEQUAL, DRAWS[:1])
    oracle.assert_close(server.theta, expected, rtol=1e-7)
    assert optax.tree.norm(optax.tree.sub(begun.theta, server.theta)) > 1e-3


def test_the_noise_has_the_deviation_that_is_accounted_for(x64):
    """Clients stand still: a round moves each of 18 numbers by z S / K, in 100 rounds alike."""
    fed = made(0.0, clip=2.0, noise=1.5)
    begun = fed.init(jax.random.key(0))
    drawn = oracle.cohort(UNEQUAL, [()] * COHORT, DRAWS[0], 0)

    def one(t):
        now = drawn._replace(round=t, round_key=jax.random.fold_in(drawn.round_key, t))
        server, _, metrics = fed.run_round(begun, now, oracle.compiled_loop)
        return optax.tree.sub(server.theta, begun.theta), metrics["epsilon"]

    steps, epsilon = jax.lax.map(one, np.arange(100))
    deviation = np.concatenate([np.ravel(x) for x in jax.tree.leaves(steps)]).std()
    assert abs(deviation / (1.5 * 2.0 / COHORT) - 1) < 0.1  # 1,800 numbers: 6 standard errors
    assert np.isfinite(epsilon).tolist() == [t < 3 for t in range(100)]  # as far as accounted for


@pytest.mark.full
def test_four_devices_draw_the_noise_of_the_loop(x64):
    """All rounds in one call; seven clients do not fill the devices evenly."""
    fed = made(0.2, clip=0.5, noise=1.0)
    expected = oracle.rounds(fed, UNEQUAL, DRAWS[:3])[0]
    on = oracle.on_engine(fed, UNEQUAL, devices=4, chunk=1)
    found = oracle.engine_rounds(on, UNEQUAL, DRAWS[:3], fused=True)[0]
    oracle.assert_close(found, expected)


def test_epsilon_is_that_of_the_gaussian_mechanism_if_all_take_part():
    """RDP a t / (2 (z/2)^2) at order a, and its conversion to epsilon at delta."""
    found = privacy.epsilons(4.0, clients=50, cohort_size=50, rounds=20, delta=1e-5)
    order = np.concatenate([np.arange(1.1, 11, 0.1), np.arange(11, 64)])
    for t in (1, 20):
        moments = order * t / (2 * 2.0**2)
        bound = moments + np.log1p(-1 / order) - np.log(1e-5 * order) / (order - 1)
        np.testing.assert_allclose(found[t - 1], bound.min(), rtol=1e-2)


def test_epsilon_grows_with_rounds_and_shrinks_with_noise_and_with_the_population():
    def after(noise, clients):
        return privacy.epsilons(noise, clients=clients, cohort_size=20, rounds=30, delta=1e-5)

    few, more = after(4.0, 100), after(4.0, 1000)
    assert np.all(np.diff(few) > 0)
    assert np.all(more < few)
    assert np.all(after(8.0, 100) < few)


def test_a_record_says_what_was_spent():
    _, _, metrics = oracle.rounds(made(0.2, clip=1.0, noise=2.0), UNEQUAL, DRAWS[:2])
    spent = privacy.epsilons(2.0, **OPTIONS)
    np.testing.assert_allclose([found["epsilon"] for found in metrics], spent[:2])


def test_what_cannot_be_made_private_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="noise=0; use a number above 0"):
        made(0.2, clip=1.0, noise=0)
    with pytest.raises(ValueError, match="cohort_size=10 is above clients=9"):
        made(0.2, clip=1.0, noise=1.0, cohort_size=10)
    with pytest.raises(ValueError, match="cohort_size=5, but a round has 7"):
        oracle.rounds(made(0.2, clip=1.0, noise=1.0, cohort_size=5), UNEQUAL, DRAWS[:1])
    task = algorithms.classifier(algorithms.WHOLE)
    two = scaffold(task, algorithms.WORK, learning_rate=0.2, clients=9)
    fed = combine.private(two, clip=1.0, noise=1.0, **OPTIONS)
    with pytest.raises(ValueError, match="another tree than theta"):
        oracle.rounds(fed, UNEQUAL, DRAWS[:1])
    fed = combine.private(algorithms.ROWS["fedlin"](0.2), clip=1.0, noise=1.0, **OPTIONS)
    with pytest.raises(ValueError, match="2 exchanges"):
        oracle.rounds(fed, UNEQUAL, DRAWS[:1])
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxfed\[privacy\]'"):
        made(0.2, clip=1.0, noise=1.0)


def test_a_delta_that_promises_nothing_is_refused():
    with pytest.raises(ValueError, match=r"delta=0.5; use less than 1 / clients = 0\.111"):
        made(0.2, clip=1.0, noise=1.0, delta=0.5)
