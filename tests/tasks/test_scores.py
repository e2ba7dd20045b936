"""Scores of text: by hand, by the libraries' own calls, and of the challenges' protocols."""

import importlib
import math
import sys

import numpy as np
import pytest

from jaxfed.tasks import scores

sacrebleu = pytest.importorskip("sacrebleu")
nist_score = pytest.importorskip("nltk.translate.nist_score")
pytest.importorskip("rouge_score")

# The example in the documentation of nltk's NIST and METEOR.
TEXTS = [
    "It is a guide to action which ensures that the military always obeys the commands of the "
    "party",
    "It is to insure the troops forever hearing the activity guidebook that party direct",
]
REFERENCES = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the "
    "command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]
BOTH = [REFERENCES, REFERENCES]


def test_bleu_and_ter_are_sacrebleus():
    """Also of texts with unlike numbers of references."""
    streams = [[one, one] for one in REFERENCES]
    assert scores.bleu(TEXTS, BOTH) == sacrebleu.corpus_bleu(TEXTS, streams, lowercase=True).score
    assert scores.ter(TEXTS, BOTH) == sacrebleu.corpus_ter(TEXTS, streams).score
    fewer = [REFERENCES, REFERENCES[:1]]
    streams = [[one, REFERENCES[0] if i == 0 else None] for i, one in enumerate(REFERENCES)]
    assert scores.bleu(TEXTS, fewer) == sacrebleu.corpus_bleu(TEXTS, streams, lowercase=True).score
    assert scores.ter(["a b c d"], [["A b c e", "f g h i"]]) == pytest.approx(25)


def test_bleu_of_a_small_case_by_hand():
    """3 of 4 words, 2 of 3 pairs, 1 of 2 triples; the one of four words is smoothed to 1/2."""
    expected = 100 * (3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** 0.25
    assert scores.bleu(["a b c d"], [["a b c e"]]) == pytest.approx(expected)


def test_nist_is_nltks_on_words_in_small_letters():
    said, right = [t.lower().split() for t in TEXTS], [r.lower().split() for r in REFERENCES]
    expected = nist_score.corpus_nist([right, right], said, 5)
    assert scores.nist(TEXTS, BOTH) == pytest.approx(expected)
    # Four words, each once in the reference: log2 4 for each, and 0 for what follows from them.
    assert scores.nist(["a b, c"], [["a b, c"]]) == pytest.approx(2)
    assert scores.nist([""], [["a"]]) == 0


def test_meteor_without_synonyms_is_its_formula():
    """Three words in one chunk; then two of three, in one chunk, one of them by its stem."""
    assert scores.meteor(["The cat sat"], [["the cat sat"]], synonyms=False) == pytest.approx(
        100 * (1 - 0.5 / 27)
    )
    found = scores.meteor(["it runs"], [["x", "it running far"]], synonyms=False)
    mean = (1 * 2 / 3) / (0.9 * 1 + 0.1 * 2 / 3)
    assert found == pytest.approx(100 * mean * (1 - 0.5 / 8))


@pytest.mark.skipif(not scores._has_wordnet(), reason="nltk has no WordNet here")
def test_meteor_is_that_of_nltks_example():
    assert scores.meteor(TEXTS[:1], [REFERENCES]) == pytest.approx(69.44, abs=5e-3)
    # One word of two, a chunk of its own: a mean of 1/2, less its half.
    assert scores.meteor(["a car"], [["an auto"]]) == pytest.approx(25)


def test_without_wordnet_meteor_says_so_and_has_another_name(monkeypatch):
    monkeypatch.setattr(scores, "_has_wordnet", lambda: False)
    with pytest.raises(ValueError, match="WordNet's, which nltk has not here; run `python -m nltk"):
        scores.meteor(TEXTS, BOTH)
    with pytest.warns(UserWarning, match="counts no synonyms and is not comparable"):
        found = scores.e2e(TEXTS, BOTH)
    assert list(found) == ["bleu", "nist", "meteor_without_synonyms", "rouge_l", "cider"]


def test_rouge_l_is_f1_of_the_longest_common_subsequence_with_the_best_reference():
    """3 of 4 words in order; 3 of 3 and 3 of 4 with the second reference."""
    assert scores.rouge_l(["a b c d"], [["a x b y c"]]) == pytest.approx(100 * 2 * 3 / 9)
    assert scores.rouge_l(["a b c d"], [["a x b y c", "A, b d!"]]) == pytest.approx(100 * 6 / 7)


def test_cider_of_small_cases_by_hand():
    """Every word that occurs in the references of one of two texts weighs log 2."""
    half = scores.cider(["a b", "d e"], [["a c"], ["d e"]])
    # The first shares one word of two; the second both its words and its pair; none has triples.
    assert half == pytest.approx(10 * np.mean([1 / 2 / 4, 2 / 4]))
    longer = scores.cider(["d e f f", "x"], [["d e"], ["y"]])
    words, pairs = 2 / math.sqrt(6 * 2), 1 / math.sqrt(3)
    assert longer == pytest.approx(10 / 2 * (words + pairs) / 4 * math.exp(-4 / 72))
    repeated = scores.cider(["d d d e", "x"], [["d e"], ["y"]])  # "d" counts once: clipped
    words, pairs = 2 / math.sqrt(10 * 2), 1 / math.sqrt(5)
    assert repeated == pytest.approx(10 / 2 * (words + pairs) / 4 * math.exp(-4 / 72))


def test_cider_is_ten_at_most_and_zero_of_what_all_say():
    texts = ["one two three four", "five six seven eight"]
    assert scores.cider(texts, [[t] for t in texts]) == pytest.approx(10)
    assert scores.cider(texts, [texts[::-1], texts[::-1]]) == 0
    assert scores.cider(texts, [[texts[0], "nine ten"], [texts[1], texts[1]]]) == pytest.approx(7.5)


def test_the_protocol_of_webnlg_scores_seen_and_unseen_apart(monkeypatch):
    monkeypatch.setattr(scores, "_has_wordnet", lambda: False)
    texts = ["one two three four", "a b c d", "five six seven eight"]
    right = [[texts[0]], ["e f g h"], [texts[2], "nine"]]
    with pytest.warns(UserWarning, match="no WordNet"):
        found = scores.webnlg(texts, right, [True, False, True])
    assert found["seen"]["bleu"] == pytest.approx(100)
    assert found["seen"]["ter"] == found["unseen"]["rouge_l"] == 0
    assert (found["unseen"]["ter"], found["all"]["ter"]) == (100, pytest.approx(400 / 10.5))
    assert found["all"]["rouge_l"] == pytest.approx(200 / 3)
    with pytest.warns(UserWarning, match="no WordNet"):
        assert set(scores.webnlg(texts, right, [True] * 3)) == {"all", "seen"}
    with pytest.raises(ValueError, match=r"seen is bool \(2,\); give one bool for each text"):
        scores.webnlg(texts, right, [True, False])


SQUAD = {
    "case, articles and punctuation": ("The  Cat!", ["a cat"], 1, 1),
    "the best of several": ("in 1990", ["1990", "the year 1990"], 0, 2 / 3),
    "no word in common": ("dog", ["cat"], 0, 0),
    "a word counts as often as both have it": ("x x y", ["x x x"], 0, 2 / 3),
    "no answer, rightly": ("", [], 1, 1),
    "no answer, wrongly": ("", ["cat"], 0, 0),
    "an answer where there is none": ("cat", [""], 0, 0),
    "what is empty once normalised answers nothing": ("the", [], 1, 1),
    "references that are empty once normalised do not count": ("", ["the", "cat"], 0, 0),
}


@pytest.mark.parametrize("name", SQUAD)
def test_exact_match_and_f1_follow_squads_rules(name):
    text, right, exact, f1 = SQUAD[name]
    found = scores.squad([text], [right])
    assert found == {"exact": 100 * exact, "f1": pytest.approx(100 * f1)}


def test_squads_scores_are_means_over_questions():
    assert scores.squad(["cat", "dog"], [["cat"], ["pig"]]) == {"exact": 50, "f1": 50}


@pytest.mark.parametrize(
    ("texts", "right", "message"),
    [
        ([], [], "there are 0 texts and references for 0; give one or more"),
        (["a"], [["a"], ["b"]], "there are 1 texts and references for 2"),
        (["a"], [[]], "text 0 has no reference; leave it out"),
        ("a", [["a"]], "texts='a' is one string"),
        (["a"], ["a"], r"references\[0\]='a' is one string"),
        (["a", 3], [["a"], ["b"]], "row 1 has 3; give strings"),
    ],
)
def test_wrong_texts_are_refused_in_a_sentence(texts, right, message):
    with pytest.raises((ValueError, TypeError), match=message):
        scores.rouge_l(texts, right)


@pytest.mark.parametrize("name", ["sacrebleu", "nltk", "rouge_score"])
def test_a_missing_package_is_named_with_its_remedy(monkeypatch, name):
    importlib.import_module(name)
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.setitem(sys.modules, module, None)
    measure = {"sacrebleu": scores.bleu, "nltk": scores.nist, "rouge_score": scores.rouge_l}[name]
    with pytest.raises(ImportError, match=rf"needs {name} .*: pip install 'jaxfed\[nlg\]'"):
        measure(["a"], [["a"]])


def test_the_threshold_of_no_answer_is_the_best_of_all():
    """Against trying each gap, and below all of them; equal gaps go together."""
    texts = ["cat", "dog", "pig", "cow", "hen"]
    right = [["cat"], [], ["a pig"], [], ["hen house"]]
    for gaps in ([0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.1, 0.2, 0.2, 0.3], [1, 1, 1, 1, 1]):
        f1 = {
            at: scores.squad(
                [t if g <= at else "" for t, g in zip(texts, gaps, strict=True)], right
            )
            for at in (-math.inf, *gaps)
        }
        best = scores.no_answer_threshold(texts, gaps, right)
        assert f1[best]["f1"] == max(found["f1"] for found in f1.values())
    assert scores.no_answer_threshold(["dog"], [0.0], [[]]) == -math.inf
    with pytest.raises(ValueError, match=r"gaps are \(2,\) of 1 texts"):
        scores.no_answer_threshold(["dog"], [0.0, 1.0], [[]])
