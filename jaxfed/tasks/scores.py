"""Scores of texts against references: BLEU, NIST, METEOR, ROUGE-L, CIDEr, TER, and those of SQuAD.

    bleu(["a cat sat"], [["the cat sat", "a cat sat down"]])

takes n texts and, for each, one or more references. BLEU, METEOR, ROUGE-L, TER, and SQuAD's exact
match and F1 are percentages, of which TER counts errors; NIST and CIDEr have units of their own.
Case does not count. The words of NIST, METEOR and CIDEr are those of mteval-v13a's tokenisation.
`pip install 'jaxfed[nlg]'` installs sacrebleu, nltk and rouge-score; ImportError without them.
"""

import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxfed import values

Texts = Sequence[str]
References = Sequence[Sequence[str]]


def bleu(texts: Texts, references: References) -> float:
    """BLEU of the corpus, 4 orders, without smoothing of what has matches (sacrebleu's)."""
    texts, streams = _streams(texts, references)
    return _package("sacrebleu").BLEU(lowercase=True).corpus_score(texts, streams).score


def ter(texts: Texts, references: References) -> float:
    """Translation edit rate of the corpus (sacrebleu's); 0 is best, and it may be above 100."""
    texts, streams = _streams(texts, references)
    return _package("sacrebleu").TER().corpus_score(texts, streams).score


def nist(texts: Texts, references: References) -> float:
    """NIST of the corpus, 5 orders (nltk's, which takes the best reference of each order)."""
    said, right = _words_of(*_checked(texts, references))
    orders = min(5, max(map(len, said)))  # longer ones match nothing, which nltk cannot count
    if orders == 0:
        return 0.0
    return float(_package("nltk.translate.nist_score").corpus_nist(right, said, orders))


def meteor(texts: Texts, references: References, *, synonyms: bool = True) -> float:
    """The mean over texts of METEOR with the best reference (nltk's; Lavie and Agarwal 2007).

    Words match exactly, by their stems, or as synonyms of WordNet; nltk looks up the synonyms of
    stems, so it misses some. ValueError if nltk has no WordNet here; `synonyms=False` scores
    without them, lower than METEOR as papers report it.
    """
    said, right = _words_of(*_checked(texts, references))
    module = _package("nltk.translate.meteor_score")
    if synonyms and not _has_wordnet():
        raise ValueError(
            "METEOR's synonyms are WordNet's, which nltk has not here; run `python -m "
            "nltk.downloader wordnet`, or score without them, synonyms=False"
        )
    known = {} if synonyms else {"wordnet": _NoSynonyms()}
    each = [module.meteor_score(r, s, **known) for s, r in zip(said, right, strict=True)]
    return 100 * float(np.mean(each))


class _NoSynonyms:
    """A WordNet in which no word has a synonym."""

    def synsets(self, word: str) -> list:
        return []


def _has_wordnet() -> bool:
    try:
        _package("nltk.corpus").wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


def rouge_l(texts: Texts, references: References) -> float:
    """The mean over texts of ROUGE-L's F1 with the best reference (rouge-score's, no stemming)."""
    texts, references = _checked(texts, references)
    scorer = _package("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    pairs = zip(texts, references, strict=True)
    return 100 * float(np.mean([scorer.score_multi(r, t)["rougeL"].fmeasure for t, r in pairs]))


SPREAD = 6.0  # words: sigma of CIDEr-D's penalty


def cider(texts: Texts, references: References) -> float:
    """CIDEr-D, with a factor of 10, as papers report it (Vedantam et al., CVPR 2015, section 5).

    Of each text c and reference s, with l words each, vectors g over the n words in a row that
    occur, weighted by how often and by log(texts / texts whose references have them):

        10 / 4 sum_n mean_s exp(-(l(c) - l(s))^2 / 72) min(g(c), g(s)) . g(s) / (|g(c)| |g(s)|)

    and the mean over texts. What all references have weighs nothing, so one text alone has 0.
    Frequencies are counts, as in the authors' code, and words are not stemmed.
    """
    said, right = _words_of(*_checked(texts, references))
    seen: Counter = Counter()
    for refs in right:
        seen.update({gram for ref in refs for n in range(1, 5) for gram in _grams(ref, n)})

    def weighted(words: list[str], n: int) -> dict[tuple, float]:
        counts = _grams(words, n).items()
        return {g: c * (math.log(len(said)) - math.log(max(1, seen[g]))) for g, c in counts}

    def alike(c: list[str], s: list[str], n: int) -> float:
        one, two = weighted(c, n), weighted(s, n)
        both = sum(min(x, two[g]) * two[g] for g, x in one.items() if g in two)
        size = math.hypot(*one.values()) * math.hypot(*two.values())
        return both / size * math.exp(-((len(c) - len(s)) ** 2) / (2 * SPREAD**2)) if size else 0.0

    each = [
        np.mean([alike(c, s, n) for s in refs for n in range(1, 5)])
        for c, refs in zip(said, right, strict=True)
    ]
    return 10 * float(np.mean(each))


def _grams(words: Sequence[str], n: int) -> Counter:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def e2e(texts: Texts, references: References) -> dict[str, float]:
    """The five scores of the E2E challenge (Dusek et al. 2018): {name: score}.

    "bleu", "nist", "meteor", "rouge_l" and "cider". Without WordNet a warning says so, and
    "meteor_without_synonyms" stands in place of "meteor". ROUGE-L is F1; the challenge's own
    script weighs recall more.
    """
    return _scored(texts, references, (bleu, nist, meteor, rouge_l, cider))


def webnlg(
    texts: Texts, references: References, seen: Sequence[bool]
) -> dict[str, dict[str, float]]:
    """The scores of the WebNLG challenge 2017 (Gardent et al.): {"all": {name: score}, ...}.

    "bleu", "meteor" and "ter", and "rouge_l", of all texts, and of those whose category is in the
    training set ("seen") or not ("unseen"), as far as there are such. WordNet is as in `e2e`.
    """
    texts, references = _checked(texts, references)
    which = values.array("seen", seen)
    if which.shape != (len(texts),) or which.dtype != bool:
        raise ValueError(f"seen is {which.dtype} {which.shape}; give one bool for each text")
    groups = {"all": np.ones(len(texts), bool), "seen": which, "unseen": ~which}
    return {
        name: _scored(
            [texts[i] for i in np.flatnonzero(part)],
            [references[i] for i in np.flatnonzero(part)],
            (bleu, meteor, ter, rouge_l),
        )
        for name, part in groups.items()
        if part.any()
    }


def _scored(
    texts: Texts, references: References, measures: Sequence[Callable[..., float]]
) -> dict[str, float]:
    found = {}
    for measure in measures:
        if measure is meteor and not _has_wordnet():
            warnings.warn(
                "nltk has no WordNet here, so METEOR counts no synonyms and is not comparable with "
                "papers'; run `python -m nltk.downloader wordnet`",
                stacklevel=3,
            )
            found["meteor_without_synonyms"] = meteor(texts, references, synonyms=False)
        else:
            found[measure.__name__] = measure(texts, references)
    return found


ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """The answer in small letters, without punctuation and articles, with single spaces."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def squad(texts: Texts, references: References) -> dict[str, float]:
    """{"exact", "f1"} of answers by the rules of SQuAD 1.1 and 2.0: means, of the best reference.

    A question without an answer has no reference, or an empty one; "" answers that there is none.
    Answers are compared as `normalised`: whether they are equal, and by the F1 of their words, in
    which an empty one agrees with an empty one only. Rajpurkar et al., EMNLP 2016 and ACL 2018.
    """
    exact, f1 = 100 * np.mean(_of_squad(texts, references), axis=0)
    return {"exact": float(exact), "f1": float(f1)}


def no_answer_threshold(texts: Texts, gaps: Sequence[float], references: References) -> float:
    """The threshold of gaps above which "" in place of the text gives the largest mean F1.

    `gaps` [n] score no answer against each text, as those of `squad.answers` do. It is one of them,
    or -inf if no text is worth to be given. Choose it on data that are not the test set.
    """
    gap = values.array("gaps", gaps, float)
    given, none = (_of_squad(t, references)[:, 1] for t in (texts, [""] * len(references)))
    if gap.shape != given.shape:
        raise ValueError(f"gaps are {gap.shape} of {len(given)} texts; give one for each")
    order = np.argsort(gap, kind="stable")
    total = np.cumsum((given - none)[order])  # the gain of giving the texts up to each gap
    last = np.append(gap[order][1:] > gap[order][:-1], True)  # equal gaps go together
    best = np.argmax(np.where(last, total, -np.inf))
    return float(gap[order][best]) if total[best] > 0 else -math.inf


def _of_squad(texts: Texts, references: References) -> np.ndarray:
    """[n, 2]: exact match and F1 of each answer, from 0 to 1."""
    texts, references = _checked(texts, [r if len(r) else [""] for r in references])
    pairs = []
    for text, refs in zip(texts, references, strict=True):
        golds = [words for r in refs if (words := normalised(r).split())] or [[]]
        said = normalised(text).split()
        pairs.append((max(said == g for g in golds), max(_overlap(said, g) for g in golds)))
    return np.array(pairs, float)


def _overlap(said: list[str], gold: list[str]) -> float:
    """2 common / (words of both), of bags of words; of an empty one, whether both are."""
    if not said or not gold:
        return float(said == gold)
    return 2 * sum((Counter(said) & Counter(gold)).values()) / (len(said) + len(gold))


def _checked(texts: Texts, references: References) -> tuple[list[str], list[list[str]]]:
    """Both as lists; TypeError or ValueError unless each text has references, all strings."""
    if isinstance(texts, str):
        raise TypeError(f"texts={texts!r} is one string; give several, [text]")
    texts, references = list(texts), list(references)
    if not texts or len(texts) != len(references):
        raise ValueError(
            f"there are {len(texts)} texts and references for {len(references)}; give one or more "
            "texts, and references for each"
        )
    for row, (text, refs) in enumerate(zip(texts, references, strict=True)):
        if isinstance(refs, str):
            raise TypeError(f"references[{row}]={refs!r} is one string; give several, [reference]")
        if not len(refs):
            raise ValueError(f"text {row} has no reference; leave it out, or give one")
        for one in (text, *refs):
            if not isinstance(one, str):
                raise TypeError(f"row {row} has {one!r}; give strings")
    return texts, [list(refs) for refs in references]


def _streams(texts: Texts, references: References) -> tuple[list[str], list[list[str | None]]]:
    """(texts, lists of one reference a text, None where a text has no more)."""
    texts, rows = _checked(texts, references)
    most = max(map(len, rows))
    return texts, [[r[i] if i < len(r) else None for r in rows] for i in range(most)]


def _words_of(
    texts: list[str], references: list[list[str]]
) -> tuple[list[list[str]], list[list[list[str]]]]:
    """Both as lists of words, in small letters."""
    words = _package("sacrebleu.tokenizers.tokenizer_13a").Tokenizer13a()
    said = [words(text.lower()).split() for text in texts]
    return said, [[words(one.lower()).split() for one in refs] for refs in references]


def _package(name: str) -> Any:
    return values.package(name, "nlg", "this score")
