import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfed import data
from jaxfed.data import partition, sources


def source(n=60, n_test=20, classes=4):
    """A source whose "row" tells where an example came from."""
    train, test = (
        {"row": np.arange(m), "label": np.arange(m, dtype=np.int32) % classes} for m in (n, n_test)
    )
    return sources.arrays(train, test)


def rows(split, k):
    return split.examples["row"][split.start[k] : split.start[k] + split.count[k]].tolist()


def test_clients_own_the_rows_of_their_parts():
    parts = [np.array([5, 1]), np.array([7]), np.array([2, 9, 3])]
    federated = data.federate(source(), parts)
    train = federated.train
    assert [rows(train, k) for k in range(3)] == [[5, 1], [7], [2, 9, 3]]
    assert train.start.dtype == train.count.dtype == np.int32
    assert (federated.clients, train.clients, train.most, train.uniform) == (3, 3, 3, False)
    assert len(train.examples["row"]) == 6
    assert federated.personal.count.tolist() == [0, 0, 0]
    assert len(federated.test["row"]) == 20


def test_equal_clients_are_uniform():
    assert data.federate(source(60), partition.iid(60, 6, seed=0)).train.uniform


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=120),
    clients=st.integers(1, 12),
    fraction=st.floats(0, 0.999),
    seed=st.integers(0, 99),
)
def test_a_hold_out_takes_its_fraction_of_every_client_and_label(labels, clients, fraction, seed):
    labels, clients = np.array(labels), min(clients, len(labels))
    parts = partition.dirichlet(labels, clients, concentration=0.3, seed=seed)
    examples = {"row": np.arange(len(labels)), "label": labels}
    federated = data.federate(
        sources.arrays(examples, examples), parts, personal_fraction=fraction, seed=seed
    )
    for k, part in enumerate(parts):
        kept, held = rows(federated.train, k), rows(federated.personal, k)
        assert sorted(kept + held) == part.tolist()
        assert len(held) == int(fraction * len(part) * (1 + 1e-12))
        wanted = fraction * np.bincount(labels[part], minlength=6)
        assert (np.abs(np.bincount(labels[held], minlength=6) - wanted) < 1 + 1e-9).all()


def test_a_hold_out_of_a_fifth_takes_one_of_five_of_each_label():
    federated = data.federate(source(200), [np.arange(200)], personal_fraction=0.2)
    assert data.label_table(federated.personal, 4).tolist() == [[10, 10, 10, 10]]


def test_a_fraction_just_below_a_whole_row_takes_that_row():
    federated = data.federate(source(100), [np.arange(100)], personal_fraction=0.29)
    assert federated.personal.count.tolist() == [29]  # 0.29 * 100 = 28.999999999999996


def test_no_label_is_always_rounded_down():
    parts = partition.iid(4000, 1000, seed=0)  # four rows a client: one is held out
    federated = data.federate(source(4000), parts, personal_fraction=0.25)
    assert data.label_table(federated.personal, 4).sum(axis=0).min() > 200


def test_a_hold_out_without_labels_is_random():
    examples = {"tokens": np.arange(40).reshape(20, 2)}
    federated = data.federate(
        sources.arrays(examples, examples), [np.arange(20)], personal_fraction=0.5
    )
    assert federated.personal.count.tolist() == [10]


def test_the_seed_decides_the_hold_out():
    parts = partition.iid(60, 3, seed=0)
    once, again, other = (
        data.federate(source(classes=1), parts, personal_fraction=0.3, seed=seed)
        for seed in (1, 1, 2)
    )
    assert rows(once.personal, 0) == rows(again.personal, 0) != rows(other.personal, 0)


def test_personal_parts_are_rows_of_the_test_set():
    federated = data.federate(
        source(), [np.arange(4), np.arange(4, 9)], personal_parts=[np.array([3, 8]), []]
    )
    assert [rows(federated.personal, k) for k in range(2)] == [[3, 8], []]
    assert federated.train.count.tolist() == [4, 5]


def test_label_table_counts_every_example_once():
    parts = partition.pathological(source().train["label"], 10, classes=2, seed=0)
    table = data.label_table(data.federate(source(), parts).train, 4)
    assert table.shape == (10, 4)
    assert table.sum(axis=0).tolist() == [15, 15, 15, 15]
    assert ((table > 0).sum(axis=1) == 2).all()


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 60), data_=st.data(), seed=st.integers(0, 99))
def test_packed_clients_own_the_same_rows(n, data_, seed):
    clients = data_.draw(st.integers(1, n))
    parts = partition.lognormal(n, clients, sigma=1, seed=seed)
    split = data.federate(source(n), parts).train
    ids = data_.draw(st.permutations(range(clients)))[: data_.draw(st.integers(1, clients))]
    room = data.capacity(split, len(ids))
    packed, start = data.pack(split, ids, room)
    assert start.dtype == np.int32
    assert len(packed["row"]) == room
    for k, at in zip(ids, start, strict=True):
        assert packed["row"][at : at + split.count[k]].tolist() == rows(split, k)


def test_capacity_is_what_the_largest_clients_own():
    split = data.federate(source(), [np.arange(3), np.arange(3, 8), np.array([9])]).train
    assert [data.capacity(split, cohort) for cohort in (1, 2, 3)] == [5, 8, 9]
    data.pack(split, [0, 1], 8)
    with pytest.raises(ValueError, match="8 rows, above the capacity of 7"):
        data.pack(split, [0, 1], 7)


one, two = np.arange(3), np.arange(3, 6)
ERRORS = {
    "no clients": (lambda: data.federate(source(), []), "parts is empty"),
    "an empty client": (lambda: data.federate(source(), [one, []]), "client 1 of 2 has no row"),
    "out of range": (lambda: data.federate(source(5), [one, two]), r"parts\[1\] has row 5; .* 4"),
    "negative": (lambda: data.federate(source(), [one - 1]), r"parts\[0\] has row -1"),
    "owned twice": (
        lambda: data.federate(source(), [one, two - 1]),
        r"row 2 to clients \[0, 1\]; .*shared=True",
    ),
    "floats": (lambda: data.federate(source(), [one, two / 2]), r"parts\[1\] is float64"),
    "masks": (lambda: data.federate(source(), [one > 0]), r"parts\[0\] is bool"),
    "all held out": (lambda: data.federate(source(), [one], personal_fraction=1), "=1 is not in"),
    "too few personal parts": (
        lambda: data.federate(source(), [one, two], personal_parts=[one]),
        "1 personal_parts for 2 clients",
    ),
    "personal rows out of range": (
        lambda: data.federate(source(n_test=2), [one], personal_parts=[one]),
        r"personal_parts\[0\] has row 2",
    ),
    "both kinds of personal data": (
        lambda: data.federate(source(), [one], personal_parts=[one], personal_fraction=0.1),
        "use one",
    ),
    "fraction nan": (
        lambda: data.federate(source(), [one], personal_fraction=np.nan),
        "personal_fraction=nan; use a finite",
    ),
    "fraction of a word": (
        lambda: data.federate(source(), [one], personal_fraction="0.2"),
        "personal_fraction='0.2' is a str",
    ),
    "half a seed": (lambda: data.federate(source(), [one], seed=0.5), "seed=0.5 is a float"),
    "labels above classes": (
        lambda: data.label_table(data.federate(source(), [np.arange(9)]).train, 3),
        "0 to 3; classes=3",
    ),
}


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_wrong_parts_are_refused(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call()


# Users by name.


def users(train, test):
    return data.federate(
        source(len(train), len(test)),
        partition.natural(train),
        personal_parts=partition.natural(test),
    )


def test_users_are_tested_on_their_own_rows_whatever_their_place():
    federated = users(["carl", "anna", "bert", "anna"], ["bert", "carl", "bert"])
    assert federated.names == ("anna", "bert", "carl")
    assert [rows(federated.train, k) for k in range(3)] == [[1, 3], [2], [0]]
    assert [rows(federated.personal, k) for k in range(3)] == [[], [0, 2], [1]]


def test_users_that_do_not_train_are_refused_by_name():
    with pytest.raises(ValueError, match="1 of 2 names in personal_parts train on nothing: 'carl'"):
        users(["anna", "bert"], ["bert", "carl"])


def test_names_stay_with_clients_that_hold_rows_out_and_parts_without_names_have_none():
    named = data.federate(source(4), partition.natural([3, 9, 3, 9]), personal_fraction=0.5)
    assert named.names == (3, 9)
    assert data.federate(source(4), partition.iid(4, 2, seed=0)).names is None


# What a source holds.


def holding(**changes):
    """A source of 6 + 6 rows; a change is {name: (train, test)}."""
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(6, 2, 2, 1)).astype(np.float32)
    both = {"image": (image, image), "label": (np.arange(6), np.arange(6))} | changes
    return sources.Source(*({n: np.asarray(x[i]) for n, x in both.items()} for i in range(2)))


PIXELS = np.arange(24, dtype=np.uint8).reshape(6, 2, 2, 1)
ROTTEN = np.where(np.arange(12).reshape(6, 2) == 7, np.nan, 1.0)
SOURCE_ERRORS = {
    "strings": ({"city": (["a"] * 6, ["b"] * 6)}, "train 'city' is <U1; give numbers, such as"),
    "objects": ({"city": ([None] * 6, [None] * 6)}, "train 'city' is object; give numbers"),
    "dates": ({"day": (np.zeros(6, "datetime64[D]"),) * 2}, r"train 'day' is datetime64\[D\]"),
    "nan": (
        {"x": (ROTTEN, ROTTEN)},
        r"train 'x' has nan in row 3, column 1 \(1 such values in all\); leave such rows out",
    ),
    "inf in the test set": (
        {"x": (np.ones(6), 1 / (np.arange(6) - 2.0))},
        "test 'x' has inf in row",
    ),
    "integers and floats": (
        {"image": (PIXELS, PIXELS / 255)},
        "'image' is uint8 in the training set and float64 in the test set",
    ),
    "two units": (
        {"image": (PIXELS / 1.0, PIXELS / 255)},
        "'image' reaches 23 in the training set and 0.0901961 in the test set",
    ),
    "beyond 32 bits": (
        {"user": (np.arange(6) * 2**40, np.arange(6))},
        "train 'user' runs from 0 to 5497558138880, and JAX keeps it as int32; number what",
    ),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize(("changes", "message"), SOURCE_ERRORS.values(), ids=SOURCE_ERRORS)
def test_what_cannot_be_trained_on_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        data.federate(holding(**changes), [np.arange(6)])


def test_large_numbers_are_kept_in_double_precision(x64):
    data.federate(holding(user=(np.arange(6) * 2**40, np.arange(6))), [np.arange(6)])


@pytest.mark.quick
@pytest.mark.parametrize("own", [{"personal_fraction": 0.2}, {"personal_parts": [[0], [1]]}, {}])
def test_with_a_validation_set_nothing_is_measured_on_test_rows(own):
    own = {n: [np.array(p) for p in v] if isinstance(v, list) else v for n, v in own.items()}
    federated = data.federate(source(), [np.arange(30), np.arange(30, 60)], **own)
    held = federated.validated()
    trained = [set(rows(federated.train, k)) for k in range(2)]
    for k in range(2):
        mine = rows(held.personal, k)
        assert bool(mine) == bool(own)
        assert set(mine) <= trained[k] - set(rows(held.train, k))
    assert set(held.test["row"].tolist()) == set().union(*trained) - {
        row for k in range(2) for row in rows(held.train, k)
    }


@pytest.mark.quick
@pytest.mark.parametrize("own", [0.0, 0.2])
def test_a_validation_set_that_is_given_is_that_of_all(own):
    """Clients with test examples of their own still get others for them."""
    parts, given = [np.arange(30), np.arange(30, 60)], source(7).test
    plain, made = (
        data.federate(source(), parts, personal_fraction=own, validation=v) for v in (None, given)
    )
    held = made.validated()
    for name, x in given.items():
        np.testing.assert_array_equal(held.test[name], x)
    assert made.test["row"].tolist() == plain.test["row"].tolist()
    want = plain.validated() if own else plain
    for k in range(2):
        for split in ("train", "personal"):
            assert rows(getattr(held, split), k) == rows(getattr(want, split), k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: {"row": x["row"]}, "validation, as a test set: train has .* and test has"),
        (lambda x: {n: v[:0] for n, v in x.items()}, "validation has no row; give some"),
        (lambda x: 3, "validation, as a test set: test is a int; give arrays"),
        (lambda x: {**x, "row": x["row"].astype(float)}, "validation, as a test set: 'row' is int"),
    ],
)
def test_a_wrong_validation_set_is_named(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        data.federate(source(), [np.arange(6)], validation=change(source(7).test))


# ---------------------------------------------------------------------- clients that share rows

SHARED = [np.arange(30), np.arange(10, 40), np.arange(20, 60), np.array([59, 0, 25, 61])]


def rows_of(split, k):
    """The rows of client k, by the values that `source` gives them."""
    return split.examples["row"][split.start[k] : split.start[k] + split.count[k]].tolist()


def test_clients_that_share_rows_are_clients_with_copies_of_them():
    """The oracle: a source in which each copy is a row, so that nothing is shared."""
    given, rows = source(70), np.concatenate(SHARED)
    made = data.federate(given, SHARED, shared=True)
    copied = data.Source({name: x[rows] for name, x in given.train.items()}, given.test)
    ends = np.cumsum([len(part) for part in SHARED])[:-1]
    want = data.federate(copied, np.split(np.arange(len(rows)), ends))
    for name, x in want.train.examples.items():
        np.testing.assert_array_equal(made.train.examples[name], x)
    np.testing.assert_array_equal(made.train.start, want.train.start)
    np.testing.assert_array_equal(made.train.count, want.train.count)


@pytest.mark.parametrize("validated", [False, True])
def test_no_client_trains_on_a_row_that_another_is_tested_on(validated):
    fraction = 0.0 if validated else 0.2
    made = data.federate(source(70), SHARED, shared=True, personal_fraction=fraction)
    made = made.validated() if validated else made
    own = made.test["row"] if validated else made.personal.examples["row"]
    tested, trained = ({str(x) for x in y.tolist()} for y in (own, made.train.examples["row"]))
    assert tested
    assert not tested & trained
    assert not validated or len(tested) == len(own)  # each row once


def test_rows_that_are_not_shared_are_held_out_as_without():
    parts = partition.iid(60, 4, seed=0)
    plain, shared = (
        data.federate(source(60), parts, personal_fraction=0.25, shared=s) for s in (False, True)
    )
    for k in range(4):
        assert rows_of(plain.personal, k) == rows_of(shared.personal, k)


def test_a_client_has_a_row_once():
    with pytest.raises(ValueError, match="give row 2 to client 1 more than once"):
        data.federate(source(5), [np.arange(3), np.array([2, 1, 2])], shared=True)
    with pytest.raises(TypeError, match="shared=1; use True or False"):
        data.federate(source(5), [np.arange(3)], shared=1)
    with pytest.raises(ValueError, match=r"holds out all rows of client 4, which it shares"):
        data.federate(
            source(8), [np.arange(8), *np.arange(8)[:, None]], shared=True, personal_fraction=0.5
        )
