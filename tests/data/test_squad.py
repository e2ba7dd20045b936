"""SQuAD's files, its windows, and the answers of logits, against plain loops and small cases."""

import gzip
import itertools
import json

import numpy as np
import pytest
import tiny_bert
import tiny_squad
from tiny_squad import question

from jaxfed.data import squad

ROWS = [
    question("one", "h i", "a b d e f g a b", ("b d", 2), ("f", 8)),
    question("two", "a b c d e f", "h i j", impossible=True),
    question("three", "j", "a b", ("a b", 0), impossible=False),
]


@pytest.fixture
def questions(tmp_path):
    return squad.read(tiny_squad.write(tmp_path / "x.json", ROWS))


def of(questions, **options):
    return squad.windows(
        questions,
        tiny_bert.tokenizer(),
        **{"pad": 0, "max_length": 9, "shared": 1, "longest_question": 2, "buckets": (), **options},
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_files_of_both_versions_are_read(tmp_path, compressed):
    path = tiny_squad.write(tmp_path / "x.json", ROWS)
    if compressed:
        (tmp_path / "x.json.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / "x.json.gz"
    found = {name: column.tolist() for name, column in squad.read(path).items()}
    assert found["id"] == ["one", "two", "three"]
    assert found["title"] == ["t0", "t1", "t2"]
    assert found["answers"] == [["b d", "f"], [], ["a b"]]
    assert found["starts"] == [[2, 8], [], [0]]
    assert found["context"][1] == "h i j"


def test_windows_cover_the_context_and_share_tokens(questions):
    """Of 9 tokens, 3 are special and 2 the question's: 4 of context, of which 1 is shared."""
    found = of(questions)
    assert found.question.tolist() == [0, 0, 0, 1, 2]
    texts = [[tiny_bert.WORDS[t].strip("[]") for t in row] for row in found.examples["tokens"]]
    assert [" ".join(words) for words in texts] == [
        "CLS h i SEP a b d e SEP",
        "CLS h i SEP e f g a SEP",
        "CLS h i SEP a b SEP PAD PAD",
        "CLS a b SEP h i j SEP PAD",
        "CLS j SEP a b SEP PAD PAD PAD",
    ]
    assert found.examples["length"].tolist() == [9, 9, 7, 8, 6]
    assert found.examples["answerable"][4].tolist() == [1, 0, 0, 1, 1, 0, 0, 0, 0]
    assert found.examples["types"][4].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]


def test_an_answer_is_marked_in_each_window_that_holds_all_of_it(questions):
    found = of(questions).examples
    assert (found["start"].tolist(), found["end"].tolist()) == ([5, 0, 0, 0, 3], [6, 0, 0, 0, 4])
    wide = of(questions, max_length=16).examples
    assert (wide["start"].tolist(), wide["end"].tolist()) == ([5, 0, 3], [6, 0, 4])


@pytest.mark.parametrize("shared", [0, 1, 3])
def test_marks_are_those_of_a_plain_search(questions, shared):
    """A token is marked first if it holds the answer's first character; last likewise."""
    found = of(questions, max_length=10, shared=shared)
    for i, row in enumerate(found.question):
        spans = found.offsets[i].tolist()
        context = [t for t in range(1, len(spans)) if found.examples["answerable"][i, t]]
        expected = (0, 0)
        if questions["answers"][row]:
            begin = questions["starts"][row][0]
            last = begin + len(questions["answers"][row][0]) - 1
            first = [t for t in context if spans[t][0] <= begin < spans[t][1]]
            final = [t for t in context if spans[t][0] <= last < spans[t][1]]
            if first and final:
                expected = (first[0], final[0])
        assert (found.examples["start"][i], found.examples["end"][i]) == expected


def test_an_answer_that_ends_within_a_token_takes_all_of_it():
    offsets = np.array([[0, 3], [4, 9], [10, 12]])
    assert squad._marked(offsets, 5, 7, 10) == (11, 11)
    assert squad._marked(offsets, 1, 11, 10) == (10, 12)
    assert squad._marked(offsets, 1, 13, 10) == (0, 0)
    assert squad._marked(offsets[1:], 1, 5, 10) == (0, 0)


def by_hand(logits, windows, questions, longest):
    """(texts, gaps) by trying every span of every window, best first."""
    texts, gaps = [], []
    for row, context in enumerate(questions["context"]):
        spans, none = [], []
        for i in np.flatnonzero(windows.question == row):
            none.append(logits[i, 0].sum())
            inside = [t for t in range(1, logits.shape[1]) if windows.examples["answerable"][i, t]]
            for s, e in itertools.product(inside, inside):
                if s <= e < s + longest:
                    cut = context[windows.offsets[i, s, 0] : windows.offsets[i, e, 1]]
                    spans.append((logits[i, s, 0] + logits[i, e, 1], cut))
        score, text = max(spans)
        texts.append(text)
        gaps.append(min(none) - score)
    return texts, gaps


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_answers_are_the_best_of_all_spans_of_all_windows(questions, longest):
    windows = of(questions)
    for seed in range(5):
        logits = np.random.default_rng(seed).normal(size=windows.offsets.shape)
        found = squad.answers(logits, windows, questions, longest=longest)
        texts, gaps = by_hand(logits, windows, questions, longest)
        assert found.texts == texts
        np.testing.assert_allclose(found.gap, gaps)


def test_no_answer_is_given_where_its_score_is_above_the_threshold(questions):
    windows = of(questions, max_length=16)
    logits = np.zeros(windows.offsets.shape)
    logits[0, 5, 0] = logits[0, 6, 1] = 3  # the right answer of the first question
    logits[1, 0] = 2  # no answer of the second
    logits[2, 3] = 1
    found = squad.answers(logits, windows, questions)
    assert found.texts[0] == "b d"
    assert found.gap.tolist() == [-6, 4, -2]
    assert found.unless(0.0) == ["b d", "", "a"]
    assert found.unless(-4.0) == ["b d", "", ""]
    assert found.unless(4.0)[1] == "h"


def test_a_question_without_context_has_no_answer(tmp_path):
    rows = [question("a", "h", "", impossible=True), question("b", "h", "c", ("c", 0))]
    asked = squad.read(tiny_squad.write(tmp_path / "x.json", rows))
    windows = of(asked)
    found = squad.answers(np.zeros(windows.offsets.shape), windows, asked)
    assert (found.texts, found.gap.tolist()) == (["", "c"], [0, 0])


MISPLACED = {"id": "x", "question": "h", "answers": [{"text": "b", "answer_start": 1}]}
WRONG = {
    "no JSON": ("{", "cannot be read"),
    "no data": ("[]", "has no list 'data'; give a file as SQuAD"),
    "no questions": ('{"data": []}', "has no questions; give a file"),
    "another layout": ('{"data": [{"qas": []}]}', r"not the layout of SQuAD \(KeyError: 'paragr"),
    "a misplaced answer": (
        json.dumps({"data": [{"paragraphs": [{"context": "a b", "qas": [MISPLACED]}]}]}),
        "question 'x': its answer 'b' is not at character 1 of the context; correct",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_refused_in_a_sentence(tmp_path, name):
    text, message = WRONG[name]
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        squad.read(tmp_path / "x.json")


def test_wrong_windows_and_logits_are_refused_in_a_sentence(questions):
    with pytest.raises(ValueError, match="max_length=6 leaves 1 tokens of context beside a quest"):
        of(questions, max_length=6)
    with pytest.raises(ValueError, match=r"the questions have no \['answers', 'starts'\]"):
        of({n: questions[n] for n in ("question", "context")})
    with pytest.raises(TypeError, match="pad=None is a NoneType; give a whole number"):
        of(questions, pad=None)
    windows = of(questions)
    with pytest.raises(ValueError, match=r"logits are \(5, 9\) of windows \(5, 9\); give"):
        squad.answers(np.zeros((5, 9)), windows, questions)
