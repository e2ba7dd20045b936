"""How many clients have which rank."""

from collections import Counter

import numpy as np
import pytest

from jaxfed.lowrank import mixed

pytestmark = pytest.mark.quick

RANKS = [8, 30, 100, 200]


@pytest.mark.parametrize("share", [mixed.uniform, mixed.light, mixed.normal, mixed.strong])
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_shares_are_shares(share, levels):
    found = share(levels)
    assert found.shape == (levels,)
    assert np.all(found > 0)
    np.testing.assert_allclose(found.sum(), 1)


@pytest.mark.parametrize(
    ("share", "counts"),
    [
        (mixed.uniform, [25, 25, 25, 25]),
        (mixed.light, [85, 5, 5, 5]),
        (mixed.strong, [5, 5, 5, 85]),
    ],
)
def test_ranks_are_as_many_as_flexlora_has_them(share, counts):
    found = mixed.client_ranks(100, RANKS, share, seed=0)
    assert Counter(found) == dict(zip(RANKS, counts, strict=True))


def test_normal_ranks_are_symmetric_and_most_in_the_middle():
    found = mixed.normal(5)
    np.testing.assert_allclose(found, found[::-1])
    assert np.all(np.diff(found[:3]) > 0)


@pytest.mark.parametrize("clients", [1, 7, 30])
def test_every_client_has_a_rank_and_the_seed_deals_them(clients):
    one, again, other = (
        mixed.client_ranks(clients, RANKS, mixed.normal, seed=seed) for seed in (0, 0, 1)
    )
    assert len(one) == clients
    assert one == again
    assert sorted(one) == sorted(other)


def test_a_rank_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"levels\[0\]=0"):
        mixed.client_ranks(3, [0, 2], mixed.uniform, seed=0)
