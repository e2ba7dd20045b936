"""Tokens, types, lengths and padding, with a tokenizer of a few words."""

import numpy as np
import pytest
import tiny_bert
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bert import CLS, PAD, SEP

from jaxfed.data import text


def tokenizer():
    """One that itself pads and cuts, which must not matter."""
    made = tiny_bert.tokenizer()
    made.enable_padding(length=9)
    made.enable_truncation(5)
    return made


def examples(*lines, pairs=None):
    """Labelled 0, 1, 2, ..."""
    columns = {"text": lines} if pairs is None else {"text": lines, "pair": pairs}
    strings = {name: np.array(column, object) for name, column in columns.items()}
    return {**strings, "label": np.arange(len(lines), dtype=np.int32)}


def test_a_sentence_stands_between_special_tokens_before_padding():
    made = text.tokenise(examples("a b", "c", "a what b c"), tokenizer(), pad=PAD, buckets=(4, 8))
    assert made["tokens"].tolist() == [
        [CLS, 4, 5, SEP, 0, 0, 0, 0],
        [CLS, 6, SEP, 0, 0, 0, 0, 0],
        [CLS, 4, 3, 5, 6, SEP, 0, 0],
    ]
    assert made["length"].tolist() == [4, 3, 6]
    assert not made["types"].any()
    assert made["label"].tolist() == [0, 1, 2]
    assert text.padding(made) == pytest.approx(1 - 13 / 24)


def test_kept_tokens_are_those_that_were_made(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mine, form = examples("a b", "c d e f", "a"), {"pad": PAD, "max_length": 4, "longer": "drop"}
    with pytest.warns(UserWarning, match="1 of 3 examples do not fit"):
        made = text.tokenise(mine, tokenizer(), **form)
    for _ in range(2):  # the second time they are read
        with pytest.warns(UserWarning, match="1 of 3 examples do not fit"):
            kept = text.tokenise(mine, tokenizer(), keep=True, **form)
        assert {n: x.tolist() for n, x in kept.items()} == {n: x.tolist() for n, x in made.items()}
    assert len(list(tmp_path.rglob("tokens-*.npz"))) == 1


def test_the_second_sentence_has_type_one_and_padding_is_the_models():
    made = text.tokenise(examples("a b", pairs=["c"]), tokenizer(), pad=9, buckets=(8,))
    assert made["tokens"].tolist() == [[CLS, 4, 5, SEP, 6, SEP, 9, 9]]
    assert made["types"].tolist() == [[0, 0, 0, 0, 1, 1, 0, 0]]


def test_longer_examples_are_cut_and_still_end_in_the_special_token():
    made = text.tokenise(examples("a b c a b", "c"), tokenizer(), pad=PAD, max_length=4)
    assert made["tokens"].tolist() == [[CLS, 4, 5, SEP], [CLS, 6, SEP, PAD]]


def test_longer_examples_are_dropped_and_counted():
    given = examples("a b c", "c", "a b c a", "b a")
    with pytest.warns(UserWarning, match="2 of 4 examples do not fit into 4 tokens and are left"):
        made = text.tokenise(given, tokenizer(), pad=PAD, max_length=4, longer="drop")
    assert made["tokens"].tolist() == [[CLS, 6, SEP, PAD], [CLS, 5, 4, SEP]]
    assert (made["label"].tolist(), made["length"].tolist()) == ([1, 3], [3, 4])


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=5),
    st.integers(3, 40),
    st.sets(st.integers(1, 40)),
)
def test_one_length_the_smallest_that_holds_them_all(words, limit, buckets):
    """Of the buckets and the limit; and no real token is lost that the limit allows."""
    lines = examples(*(" ".join("a" * n) for n in words))
    made = text.tokenise(lines, tokenizer(), pad=PAD, max_length=limit, buckets=tuple(buckets))
    longest = min(max(words) + 2, limit)
    width = made["tokens"].shape[1]
    assert longest <= width <= limit
    assert not [b for b in buckets if longest <= b < width]
    assert (made["tokens"] != PAD).sum(1).tolist() == [min(n + 2, limit) for n in words]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"max_length": 2}, "max_length=2 holds only the 2 special tokens"),
        ({"longer": "keep"}, "longer='keep'"),
        ({"max_length": 3, "longer": "drop"}, "no example fits into 3 tokens"),
    ],
)
def test_what_leaves_no_text_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        text.tokenise(examples("a b"), tokenizer(), pad=PAD, **options)


def test_the_tokenizer_is_left_as_it_was():
    made = tokenizer()
    text.tokenise(examples("a b"), made, pad=PAD, max_length=100)
    assert (made.padding["length"], made.truncation["max_length"]) == (9, 5)
