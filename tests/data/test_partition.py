import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfed.data import partition

pytestmark = pytest.mark.quick

# Every partition that can split any labels over any number of clients: (labels, clients, seed).
PARTITIONS = {
    "iid": lambda y, n, seed: partition.iid(len(y), n, seed=seed),
    "equal sizes": lambda y, n, seed: partition.lognormal(len(y), n, sigma=0, seed=seed),
    "lognormal": lambda y, n, seed: partition.lognormal(len(y), n, sigma=1.5, seed=seed),
    "wild lognormal": lambda y, n, seed: partition.lognormal(len(y), n, sigma=1e4, seed=seed),
    "one label a client": lambda y, n, seed: partition.dirichlet(
        y, n, concentration=1e-3, seed=seed
    ),
    "dirichlet": lambda y, n, seed: partition.dirichlet(y, n, concentration=0.5, seed=seed),
    "even dirichlet": lambda y, n, seed: partition.dirichlet(y, n, concentration=1e6, seed=seed),
    "extreme dirichlet": lambda y, n, seed: partition.dirichlet(
        y, n, concentration=1e-300, seed=seed
    ),
    "sorted": lambda y, n, seed: partition.label_similarity(y, n, s=0, seed=seed),
    "label similarity": lambda y, n, seed: partition.label_similarity(y, n, s=0.35, seed=seed),
    "all similar": lambda y, n, seed: partition.label_similarity(y, n, s=1, seed=seed),
}
SEEDS = st.integers(0, 2**32)
LABELS = st.lists(st.integers(-3, 12), min_size=1, max_size=150).map(np.array)

every_partition = pytest.mark.parametrize("split", PARTITIONS.values(), ids=PARTITIONS)


def sizes(parts):
    return np.array([len(part) for part in parts])


def table(labels, parts):
    """How many rows of each label each client has [N, C]."""
    classes = labels.max() + 1
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def assert_exact(parts, rows, clients):
    assert len(parts) == clients
    assert all(part.dtype == np.int64 for part in parts)
    assert all((np.diff(part) > 0).all() for part in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(rows))


@every_partition
@settings(deadline=None, max_examples=30)
@given(labels=LABELS, data=st.data(), seed=SEEDS)
def test_every_row_has_one_owner_and_no_client_is_empty(split, labels, data, seed):
    clients = data.draw(st.integers(1, len(labels)))
    parts = split(labels, clients, seed)
    assert_exact(parts, len(labels), clients)
    assert sizes(parts).min() > 0


@every_partition
def test_the_seed_decides(split):
    labels = np.arange(400) % 7
    once, again, other = (split(labels, 11, seed) for seed in (1, 1, 2))
    for a, b in zip(once, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(a.tolist() != b.tolist() for a, b in zip(once, other, strict=True))


@pytest.mark.parametrize("name", ["iid", "equal sizes", "sorted", "label similarity"])
@settings(deadline=None, max_examples=30)
@given(labels=LABELS, data=st.data(), seed=SEEDS)
def test_sizes_differ_by_at_most_one(name, labels, data, seed):
    parts = PARTITIONS[name](labels, data.draw(st.integers(1, len(labels))), seed)
    assert np.ptp(sizes(parts)) <= 1


@settings(deadline=None, max_examples=60)
@given(labels=LABELS, data=st.data(), concentration=st.sampled_from([1e-3, 0.1, 1e6]), seed=SEEDS)
def test_least_is_kept_and_moves_no_more_rows_than_it_must(labels, data, concentration, seed):
    clients = data.draw(st.integers(1, len(labels)))
    least = data.draw(st.integers(0, len(labels) // clients))
    free = partition.dirichlet(labels, clients, concentration=concentration, seed=seed, least=0)
    kept = partition.dirichlet(labels, clients, concentration=concentration, seed=seed, least=least)
    assert_exact(free, len(labels), clients)
    assert_exact(kept, len(labels), clients)
    assert sizes(kept).min() >= least
    stayed = sum(len(np.intersect1d(a, b)) for a, b in zip(free, kept, strict=True))
    assert len(labels) - stayed == np.maximum(least - sizes(free), 0).sum()


def test_dirichlet_shares_have_the_variance_of_a_dirichlet():
    labels, clients, concentration = np.arange(400_000) % 400, 5, 0.5
    parts = partition.dirichlet(labels, clients, concentration=concentration, seed=0)
    share = table(labels, parts) / 1000  # [N, C]
    variance = (1 / clients) * (1 - 1 / clients) / (clients * concentration + 1)
    np.testing.assert_allclose(share.mean(axis=1), 1 / clients, atol=0.04)
    np.testing.assert_allclose(share.var(), variance, rtol=0.1)


def test_large_alpha_gives_every_client_the_same_rows_of_each_label():
    labels = np.arange(10_000) % 10
    parts = partition.dirichlet(labels, 20, concentration=1e9, seed=0)
    assert np.abs(table(labels, parts) - 50).max() <= 1


def test_labels_with_fewer_rows_than_clients_go_to_different_clients():
    labels = np.arange(5000) % 100  # 50 rows each
    parts = partition.dirichlet(labels, 1000, concentration=1e9, seed=0, least=0)
    assert sizes(parts).max() < 20  # of 5 in the mean; at most 100, one of each label


def test_the_same_seed_splits_a_test_set_like_its_training_set():
    train, test = np.arange(10_000) % 10, np.repeat(np.arange(10), 300)
    options = {"concentration": 0.3, "seed": 4, "least": 0}
    a = table(train, partition.dirichlet(train, 8, **options)) / 1000
    b = table(test, partition.dirichlet(test, 8, **options)) / 300
    np.testing.assert_allclose(a, b, atol=1 / 1000 + 1 / 300)
    held = [table(y, partition.pathological(y, 8, classes=3, seed=4)) > 0 for y in (train, test)]
    np.testing.assert_array_equal(*held)


@settings(deadline=None, max_examples=150)
@given(
    count=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    clients=st.integers(1, 25),
    classes=st.integers(1, 8),
    seed=SEEDS,
)
def test_pathological_clients_hold_so_many_classes_wherever_that_is_possible(
    count, clients, classes, seed
):
    labels = np.repeat(np.arange(len(count)), count)
    possible = (
        classes <= len(count) <= clients * classes <= np.minimum(count, clients).sum()
        and len(labels) >= clients
    )
    if not possible:
        with pytest.raises(ValueError, match="use"):
            partition.pathological(labels, clients, classes=classes, seed=seed)
        return
    parts = partition.pathological(labels, clients, classes=classes, seed=seed)
    assert_exact(parts, len(labels), clients)
    assert {len(np.unique(labels[part])) for part in parts} == {classes}


def test_pathological_shards_of_balanced_labels_are_equal():
    labels = np.arange(6000) % 10
    parts = partition.pathological(labels, 100, classes=2, seed=0)
    assert set(sizes(parts)) == {60}
    pairs = {tuple(np.unique(labels[part])) for part in parts}
    assert len(pairs) > 20  # of 45: pairs are drawn, not dealt in order


def test_pathological_remainders_go_to_different_clients():
    labels = np.arange(1100) % 100  # 11 rows each for 5 holders: one of them gets a third
    parts = partition.pathological(labels, 10, classes=50, seed=0)
    assert np.ptp(sizes(parts)) < 20  # of 110; 50 if the first holder always got it


def test_pathological_gives_a_frequent_label_to_more_clients():
    labels = np.repeat([0, 1], [900, 100])
    parts = partition.pathological(labels, 10, classes=1, seed=0)
    assert set(sizes(parts)) == {100}


def test_without_similarity_clients_share_labels_only_where_a_cut_falls():
    labels = np.random.default_rng(0).integers(10, size=5000)
    parts = partition.label_similarity(labels, 37, s=0, seed=0)
    assert (table(labels, parts) > 0).sum() <= 10 + 37 - 1


def test_similarity_is_the_fraction_of_rows_dealt_at_random():
    labels, clients = np.arange(8000) % 2, 8
    parts = partition.label_similarity(labels, clients, s=0.3, seed=0)
    # Clients 0 to 3 have 700 sorted rows of label 0 and 300 of both; clients 4 to 7 the reverse.
    majority = table(labels, parts).max(axis=1)
    np.testing.assert_allclose(majority, 700 + 150, atol=40)
    assert (table(labels, parts).argmax(axis=1) == np.arange(clients) // 4).all()


def test_natural_clients_are_the_sorted_keys():
    keys = np.array(["eve", "ann", "eve", "bob", "ann"])
    parts = partition.natural(keys)
    assert [part.tolist() for part in parts] == [[1, 4], [3], [0, 2]]
    assert_exact(parts, 5, 3)


def test_lognormal_sizes_are_lognormal():
    parts = partition.lognormal(1_000_000, 2000, sigma=0.5, seed=0)
    np.testing.assert_allclose(np.log(sizes(parts)).std(), 0.5, rtol=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_wild_sizes_leave_all_to_the_client_that_is_largest_anyway(seed):
    mild, wild = (sizes(partition.lognormal(900, 9, sigma=s, seed=seed)) for s in (1, 1e4))
    assert wild.argmax() == mild.argmax()
    assert sorted(wild) == [1] * 8 + [892]


y = np.arange(12) % 4
ERRORS = {
    "more clients than rows": (lambda: partition.iid(3, 4, seed=0), "4 clients .* 3 rows"),
    "too many for least": (
        lambda: partition.lognormal(30, 4, sigma=1, seed=0, least=8),
        "4 clients cannot have 8 of 30 rows",
    ),
    "no rows": (lambda: partition.dirichlet([], 1, concentration=1, seed=0, least=0), "of 0 rows"),
    "no clients": (lambda: partition.iid(3, 0, seed=0), "clients=0"),
    "negative clients": (lambda: partition.label_similarity(y, -1, s=1, seed=0), "clients=-1"),
    "negative least": (
        lambda: partition.dirichlet(y, 2, concentration=1, seed=0, least=-1),
        "least=-1",
    ),
    "concentration 0": (
        lambda: partition.dirichlet(y, 2, concentration=0, seed=0),
        "concentration=0 .*positive",
    ),
    "concentration nan": (
        lambda: partition.dirichlet(y, 2, concentration=np.nan, seed=0),
        "concentration=nan",
    ),
    "concentration infinite": (
        lambda: partition.dirichlet(y, 2, concentration=np.inf, seed=0),
        "concentration=inf",
    ),
    "sigma": (lambda: partition.lognormal(9, 2, sigma=-1, seed=0), "sigma=-1"),
    "s above 1": (
        lambda: partition.label_similarity(y, 2, s=1.1, seed=0),
        "s=1.1; use a finite number from 0 to 1",
    ),
    "s below 0": (lambda: partition.label_similarity(y, 2, s=-0.1, seed=0), "s=-0.1"),
    "labels [n, 1]": (
        lambda: partition.dirichlet(y[:, None], 2, concentration=1, seed=0),
        "one label",
    ),
    "too many classes": (lambda: partition.pathological(y, 2, classes=5, seed=0), "4 labels"),
    "no classes": (lambda: partition.pathological(y, 2, classes=0, seed=0), "classes=0"),
    "labels left over": (lambda: partition.pathological(y, 3, classes=1, seed=0), "more clients"),
    "too few rows": (lambda: partition.pathological(y, 12, classes=2, seed=0), "fewer clients"),
    "half a client": (lambda: partition.iid(9, 2.5, seed=0), "clients=2.5 is a float"),
    "clients True": (lambda: partition.iid(9, True, seed=0), "clients=True is a bool"),
    "half a row": (lambda: partition.iid(9.5, 2, seed=0), "n=9.5 is a float"),
    "seed below 0": (lambda: partition.iid(9, 2, seed=-1), "seed=-1; use at least 0"),
    "seed of a word": (lambda: partition.iid(9, 2, seed="a"), "seed='a' is a str"),
    "sigma nan": (lambda: partition.lognormal(9, 2, sigma=np.nan, seed=0), "sigma=nan"),
    "sigma of a word": (lambda: partition.lognormal(9, 2, sigma="1", seed=0), "sigma='1' is a str"),
    "s nan": (lambda: partition.label_similarity(y, 2, s=np.nan, seed=0), "s=nan"),
    "half a class": (
        lambda: partition.pathological(y, 2, classes=1.5, seed=0),
        "classes=1.5 is a float",
    ),
    "half a least": (
        lambda: partition.dirichlet(y, 2, concentration=1, seed=0, least=0.5),
        "least=0.5 is a float",
    ),
    "keys that are missing": (
        lambda: partition.natural(np.array([1.0, np.nan])),
        "row 1 has no key",
    ),
    "no keys": (lambda: partition.natural([]), "one key a row"),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_impossible_partitions_are_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_natural_parts_carry_the_names_of_their_users():
    parts = partition.natural(np.array(["bert", "anna", "bert"]))
    assert parts.names == ("anna", "bert")
    assert [part.tolist() for part in parts] == [[1], [0, 2]]
    assert partition.natural([7, 3, 7]).names == (3, 7)
