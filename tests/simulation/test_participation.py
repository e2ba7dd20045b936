"""Who takes part in a round, and with which share."""

import dataclasses
from itertools import permutations

import numpy as np
import pytest
import small

from jaxfed import Host, run
from jaxfed.simulation import identity, participation

HOST = Host(devices=1, chunk=5, fuse=1, checkpoint_every=0)
COUNT = np.array([5, 1, 0, 2, 8])


def often(drawn, cohort, times=4000):
    """How often each client takes part, [N]."""
    rng = np.random.default_rng(0)
    ids = [drawn(rng, 0, COUNT, cohort)[0] for _ in range(times)]
    return np.bincount(np.concatenate(ids), minlength=len(COUNT)) / times


def test_one_client_is_drawn_by_its_weight():
    np.testing.assert_allclose(often(participation.weighted(), 1), COUNT / 16, atol=0.03)


def test_two_clients_are_drawn_one_after_the_other():
    """P(i, then j) = w_i w_j / (1 - w_i), summed over all pairs of distinct clients."""
    weight, want = np.array([0.1, 0.2, 0.0, 0.3, 0.4]), np.zeros(5)
    for i, j in permutations(range(5), 2):
        want[[i, j]] += weight[i] * weight[j] / (1 - weight[i])
    np.testing.assert_allclose(often(participation.weighted(weight), 2), want, atol=0.03)


def test_the_expected_mean_of_weighted_draws_is_the_mean_by_examples():
    """So of one client a round; by a uniform draw with equal shares it would be the plain mean."""
    upload = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    mean = often(participation.weighted(), 1) @ upload
    assert mean == pytest.approx(np.average(upload, weights=COUNT), abs=0.06)


def test_only_those_available_take_part_and_each_equally():
    there = np.array([True, False, True, True, True])
    found = often(participation.available(lambda t: there), 2)
    np.testing.assert_allclose(found, there / 2, atol=0.03)
    ids, share = participation.available(lambda t: there)(np.random.default_rng(0), 0, COUNT, 4)
    assert dict(zip(ids.tolist(), share.tolist(), strict=True)) == {0: 5, 2: 0, 3: 2, 4: 8}


def changed(drawn):
    return dataclasses.replace(small.experiment(rounds=2), participation=drawn)


def uniform(rng, t, count, cohort):
    """What None does."""
    ids = rng.choice(len(count), cohort, replace=False)
    return ids, count[ids]


@pytest.mark.full
def test_the_default_written_out_is_the_same_run():
    plain, written = (list(run(changed(d), host=HOST)) for d in (None, uniform))
    for a, b in zip(plain, written, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


def test_shares_and_clients_reach_the_plan():
    def drawn(rng, t, count, cohort):
        return np.arange(cohort) + t, np.arange(1, cohort + 1)

    e = changed(drawn)
    plan = participation.make(e, 1, range(2))
    want = np.arange(1, e.cohort + 1) / sum(range(1, e.cohort + 1))
    for t in range(2):
        order = np.argsort(plan.id[t])
        assert plan.id[t][order].tolist() == list(range(t, t + e.cohort))
        np.testing.assert_allclose(plan.weight[t][order], want)
        np.testing.assert_array_equal(plan.count[t], e.data.train.count[plan.id[t]])


def test_another_participation_is_another_run():
    found = [
        identity.identity(changed(d), {}, None) for d in (None, uniform, participation.weighted())
    ]
    assert list(identity.changes(found[0], found[1])) == ["participation"]
    assert list(identity.changes(found[1], found[2])) == ["participation"]


WRONG = {
    "one twice": (lambda *_: (np.zeros(5, int), np.ones(5)), "gives clients .* in round 1; give"),
    "strangers": (lambda *_: (np.arange(5) + 99, np.ones(5)), "different ones from 0 to"),
    "no shares": (lambda *_: (np.arange(5), np.zeros(5)), "that are not all zero"),
    "too few": (participation.available(lambda t: np.arange(20) < 2), "2 clients are available in"),
    "no mask": (participation.available(lambda t: np.arange(3)), r"when\(0\) is int64 \(3,\); ret"),
    "few weights": (participation.weighted([1.0, 0.0]), "1 of 2 weights are above zero"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_participation_is_refused(name):
    drawn, sentence = WRONG[name]
    e = dataclasses.replace(small.experiment(rounds=2), participation=drawn)
    with pytest.raises(ValueError, match=sentence):
        participation.cohort_of(e, 0)


def test_a_weight_below_zero_is_refused():
    with pytest.raises(ValueError, match="give finite ones"):
        participation.weighted([1.0, -1.0])
