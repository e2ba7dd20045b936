"""Combinators: what a merge does to the model, when it comes, and who is left out of a mean."""

from functools import partial
from typing import NamedTuple

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiers
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfed import Algorithm, Cohort, aggregate, combine, lowrank, trees
from jaxfed.lowrank import Factors, Theta, restarts
from jaxfed.simulation import ledger

KINDS = (restarts.keep, restarts.reinit, restarts.residual, restarts.balanced)
RESTARTS = {f.__name__: f for f in KINDS}


def weights(seed):
    """(base, theta): two weights with factors and one without, and one trained in full."""
    rng = np.random.default_rng(seed)
    factors = {
        "conv": Factors(rng.normal(size=(3, 3, 2, 2)), rng.normal(size=(2, 5)), 0.5),
        "dense": Factors(rng.normal(size=(4, 1)), rng.normal(size=(1, 3)), 2.0),
    }
    base = {"conv": rng.normal(size=(3, 3, 2, 5)), "dense": rng.normal(size=(4, 3))}
    base["frozen"] = rng.normal(size=2)
    return jax.tree.map(jnp.asarray, (base, Theta({"full": rng.normal(size=3)}, factors)))


def restarted(name):
    """(base, theta) before, and after a merge."""
    (base, theta), (_, start) = weights(0), weights(1)
    return (base, theta), RESTARTS[name](base, theta, start, jax.random.key(0)), start


@pytest.mark.parametrize("name", ["reinit", "residual", "balanced"])
def test_the_function_at_a_merge_is_unchanged(x64, name):
    before, after, _ = restarted(name)
    oracle.assert_close(lowrank.merged(*after), lowrank.merged(*before), rtol=1e-12)
    assert all(jnp.any(before[0][p] != after[0][p]) for p in ("conv", "dense"))


@pytest.mark.parametrize("seed", range(3))
def test_balanced_keeps_the_expected_step_and_reinit_that_of_its_magnitude(x64, seed):
    """The step of SGD on W is s^2 (A A'G + G B'B): what its trace holds, in the mean over draws."""
    inputs, outputs, rank = 60, 40, 5
    like = Theta({}, {"w": Factors(jnp.ones((inputs, rank)), jnp.ones((rank, outputs)), 2.0)})
    keys = jax.random.split(jax.random.key(seed), 400)

    def sides(restart):
        base = {"w": jnp.zeros((inputs, outputs))}
        new = jax.vmap(lambda key: restart(base, like, like, key)[1].factors["w"])(keys)
        return [jnp.mean(jnp.sum(x**2, (1, 2))) / n for x, n in ((new.a, inputs), (new.b, outputs))]

    np.testing.assert_allclose(sides(restarts.balanced), (rank / (3 * inputs), 1 / 3), rtol=0.03)
    np.testing.assert_allclose(sides(restarts.reinit), (rank / (3 * inputs), 0), rtol=0.03)
    larger = partial(restarts.reinit, magnitude=(inputs / rank) ** 0.5)
    np.testing.assert_allclose(sides(larger), (1 / 3, 0), rtol=0.03)


def test_balanced_draws_as_a_training_from_scratch_does(x64):
    """The same bounds as Select(up="random") has: 1 / sqrt(fan in) and 1 / sqrt(rank)."""
    base, theta = algorithms.classifier(algorithms.SCRATCH).init(jax.random.key(0))
    _, new = restarts.balanced(base, theta, theta, jax.random.key(1))
    for p, f in new.factors.items():
        inputs = f.a[..., 0].size
        for side, bound in ((f.a, inputs**-0.5), (f.b, f.rank**-0.5)):
            assert 0.7 * bound < jnp.max(jnp.abs(side)) <= bound, p


@pytest.mark.parametrize("magnitude", [0, -1.0, float("nan")])
def test_a_magnitude_of_no_use_is_refused(magnitude):
    base, theta = weights(0)
    with pytest.raises(ValueError, match=f"magnitude={magnitude}"):
        restarts.reinit(base, theta, theta, jax.random.key(0), magnitude=magnitude)


def test_keep_doubles_the_product(x64):
    (base, theta), after, _ = restarted("keep")
    for p, f in theta.factors.items():
        np.testing.assert_allclose(
            lowrank.merge(*after)[p], base[p] + 2 * lowrank.product(f), rtol=1e-12
        )
    assert after[1] is theta


def test_residual_goes_back_to_where_training_began():
    (_, theta), (_, after), start = restarted("residual")
    assert after.factors is start.factors
    assert after.full is theta.full


@pytest.mark.parametrize("name", RESTARTS)
def test_a_merge_leaves_what_has_no_factors(name):
    (base, theta), (new, after), _ = restarted(name)
    np.testing.assert_array_equal(new["frozen"], base["frozen"])
    np.testing.assert_array_equal(after.full["full"], theta.full["full"])


class Server(NamedTuple):
    base: dict
    theta: Theta


def noise(theta, key):
    return jax.tree.map(lambda x: jax.random.normal(key, x.shape), theta)


def walk():
    """An algorithm without clients: theta takes a random step, from the round's key alone."""

    def run_round(server, cohort, for_each_client):
        step = noise(server.theta, cohort.round_key)
        return server._replace(theta=jax.tree.map(jnp.add, server.theta, step)), (), {}

    def deploy(server, state):
        return server.base, server.theta

    return Algorithm(lambda key: Server(*weights(0)), lambda server, key: (), run_round, deploy)


def walked(every, restart, rounds):
    """[(server before, key, server after, bytes broadcast)] of each round."""
    fed = combine.accumulate(walk(), every=every, restart=restart)
    server, seen = fed.init(jax.random.key(0)), []
    with jax.disable_jit():  # or each round would compile its merge anew
        for t in range(rounds):
            key = jax.random.key(t)
            cohort = Cohort(*[()] * 6, round=jnp.int32(t), round_key=key)
            after, _, _ = fed.run_round(server, cohort, None)
            seen.append((server, key, after, fed.broadcast(server, t)))
            server = after
    return seen


cycles = st.integers(1, 4) | st.sets(st.integers(1, 7), min_size=1).map(sorted)


def is_due(every, t):
    """Whether a merge follows round t, from 1."""
    return t % every == 0 if isinstance(every, int) else t in every


@pytest.mark.parametrize("name", tiers.usual(RESTARTS, "reinit", "balanced"))
@settings(deadline=None, max_examples=5)
@given(every=cycles)
def test_the_base_is_what_it_was_and_the_sum_of_the_merged_products(name, every):
    """Whatever the schedule; the merge after round t stands at the start of round t + 1."""
    base, start = weights(0)
    expected = {p: np.asarray(w, np.float64) for p, w in base.items()}
    bytes_merged = trees.nbytes(start.factors)
    for done, (before, key, after, broadcast) in enumerate(walked(every, RESTARTS[name], rounds=7)):
        due = done > 0 and is_due(every, done)
        began = jax.tree.map(jnp.subtract, after.theta, noise(after.theta, key))
        if due:
            for p, f in before.theta.factors.items():
                gained = lowrank.product(f)
                left = {"residual": start, "balanced": began}.get(name)
                gained -= lowrank.product(left.factors[p]) if left else 0
                expected[p] += np.asarray(gained)
        for p, w in after.base.items():
            np.testing.assert_allclose(w, expected[p], rtol=1e-4, atol=1e-4)
        for p, f in began.factors.items():
            if due and name == "reinit":
                np.testing.assert_allclose(f.b, 0, atol=1e-5)
            if due and name in ("reinit", "balanced"):
                assert jnp.all(jnp.abs(f.a - before.theta.factors[p].a) > 1e-6)
            else:
                origin = start if due and name == "residual" else before.theta
                oracle.assert_close(f, origin.factors[p], rtol=1e-4, atol=1e-5)
        assert broadcast == (bytes_merged if due else 0)


@pytest.mark.parametrize("rule", ["eager", "lazy"])
@pytest.mark.parametrize("every", [2, [1, 4, 5]])
def test_merges_cost_what_a_simulation_by_hand_says(rule, every):
    """Six clients, two of them a round; the rule is fed with what is broadcast."""
    draws = [np.random.default_rng(t).choice(6, 2, replace=False) for t in range(7)]
    owed, paid, expected, behind = np.zeros(6, np.int64), 0, 0, [0] * 6
    merge, most = trees.nbytes(weights(0)[1].factors), trees.nbytes(weights(0)[0])
    for t, (_, _, _, broadcast) in enumerate(walked(every, restarts.reinit, rounds=7)):
        extra, owed = ledger.MERGES[rule](owed, draws[t], broadcast, most, most)
        paid += extra
        due = t > 0 and is_due(every, t)
        for i in range(6):
            present = i in draws[t]
            if rule == "eager":
                expected += merge * (due and not present)
            elif present:
                expected, behind[i] = expected + min(behind[i] * merge, most), 0
            else:
                behind[i] += due
    assert paid == expected > 0


@pytest.mark.parametrize("every", [0, -1, 0.5, True, None, [], [0, 2], [1.5], (3, True)])
def test_a_cycle_that_never_comes_is_refused(every):
    with pytest.raises(ValueError, match="every="):
        combine.accumulate(walk(), every=every, restart=restarts.keep)


def test_there_must_be_factors_to_merge():
    fed = algorithms.averaging(algorithms.WHOLE, 0.1)
    with pytest.raises(ValueError, match="nothing to merge"):
        combine.accumulate(fed, every=1, restart=restarts.keep).init(jax.random.key(0))


# skip_nonfinite: client 2 has a NaN among its pixels.

SICK = 2
POISONED = jax.tree.map(np.copy, algorithms.UNEQUAL)
POISONED.examples["image"][POISONED.start[SICK]] = np.nan
WITH, WITHOUT = [[4, SICK, 1, 6], [0, 5, SICK, 7]], [[4, 1, 6], [0, 5, 7]]
GUARDABLE = ["fedavg", "fedprox", "fedadam", "fedloru"]
tolerant = partial(oracle.assert_close, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", GUARDABLE)
def test_a_client_that_is_not_finite_is_as_if_it_had_not_been_drawn(name):
    fed = algorithms.ALGORITHMS[name](algorithms.RATE)
    server, states, metrics = oracle.rounds(combine.skip_nonfinite(fed), POISONED, WITH)
    tolerant((server, states), oracle.rounds(fed, POISONED, WITHOUT)[:2])
    for ids, found in zip(WITH, metrics, strict=True):
        assert found["skipped"].tolist() == [i == SICK for i in ids]


def test_a_client_that_is_not_finite_keeps_its_state():
    """SCAFFOLD: theta and every c_i as without it; only |S|, in the step of c, still counts it."""
    fed = algorithms.ALGORITHMS["scaffold"](algorithms.RATE)
    guarded = combine.skip_nonfinite(fed, mean=aggregate.uniform_mean)
    server, states, _ = oracle.rounds(guarded, POISONED, WITH[:1])
    expected, expected_states, _ = oracle.rounds(fed, POISONED, WITHOUT[:1])
    tolerant((server.theta, states), (expected.theta, expected_states))
    tolerant(jax.tree.map(lambda c: c * 3 / 4, server.c), expected.c)


def test_if_nobody_is_finite_nothing_moves():
    fed = combine.skip_nonfinite(algorithms.ALGORITHMS["fedavg"](algorithms.RATE))
    server, _, metrics = oracle.rounds(fed, POISONED, [[SICK]])
    tolerant(server.theta, fed.init(jax.random.key(0)).theta)
    assert metrics[0]["skipped"].tolist() == [True]
