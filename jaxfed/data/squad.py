"""SQuAD 1.1 and 2.0 (Rajpurkar et al., EMNLP 2016 and ACL 2018): questions, windows, answers.

    questions = squad.read("train-v2.0.json")
    windows = squad.windows(questions, tokenizer, pad=encoder.pad)

A text that is longer than a model's input is read in windows that overlap. `answers` takes the
best span of all windows of a question, as a text.
"""

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxfed import values
from jaxfed.data.sources import Examples
from jaxfed.data.text import BUCKETS, check_form, limited

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer


def read(path: str | Path) -> Examples:
    """The questions [n] of a file of SQuAD, plain or .gz.

    "id", "title", "question" and "context" are strings; "answers" lists the texts of each
    question's answers and "starts" where in the context they start, both empty if it has none.
    ValueError, with the question, for another layout or an answer that is not in its place.
    """
    path = Path(path).expanduser()
    names = ("id", "title", "question", "context", "answers", "starts")
    rows = [row for article in _articles(path) for row in _questions(path, article)]
    if not rows:
        raise ValueError(f"{path} has no questions; give a file as SQuAD publishes it")
    columns = {name: np.empty(len(rows), object) for name in names}
    for i, row in enumerate(rows):
        for name, value in zip(names, row, strict=True):
            columns[name][i] = value
    return columns


def _articles(path: Path) -> list[Any]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            data = json.load(file)
    except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} cannot be read ({error}); download it again") from None
    articles = data.get("data") if isinstance(data, dict) else None
    if not isinstance(articles, list):
        raise ValueError(f"{path} has no list 'data'; give a file as SQuAD publishes it")
    return articles


def _questions(path: Path, article: Any) -> list[tuple]:
    rows = []
    name = ""
    try:
        for paragraph in article["paragraphs"]:
            context = paragraph["context"]
            for one in paragraph["qas"]:
                name = f", question {one['id']!r}"
                given = [] if one.get("is_impossible", False) else one["answers"]
                pairs = [(a["text"], a["answer_start"]) for a in given]
                for text, start in pairs:
                    if context[start : start + len(text)] != text:
                        raise ValueError(
                            f"{path}{name}: its answer {text!r} is not at character {start} of "
                            "the context; correct its 'answer_start'"
                        )
                texts, starts = [t for t, _ in pairs], [s for _, s in pairs]
                title = article.get("title", "")
                rows.append((one["id"], title, one["question"], context, texts, starts))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}{name} has not the layout of SQuAD ({type(error).__name__}: {error}); give a "
            "file as SQuAD publishes it"
        ) from None
    return rows


class Windows(NamedTuple):
    """Windows of the contexts of questions, in their order."""

    examples: Examples  # the arrays that tasks.answer_span reads, [n, ...], and "length" [n]
    question: np.ndarray  # int32 [n], the row of the question that each belongs to
    offsets: np.ndarray  # int32 [n, L, 2], the first character of a token and the one after it


def windows(
    questions: Examples,
    tokenizer: "Tokenizer",
    *,
    pad: int,
    max_length: int = 384,
    shared: int = 128,
    longest_question: int = 64,
    buckets: Sequence[int] = BUCKETS,
) -> Windows:
    """The questions' windows of at most `max_length` tokens: question, then a part of the context.

    Neighbouring windows share so many tokens of context. Questions are cut at `longest_question`
    tokens. "tokens" int32, "types" int8 and "length" are as in `text.tokenise`; "answerable" int8
    [n, L] is 1 for the context and for the first token, which stands for no answer; "start" and
    "end", int32 [n], are the ends of the question's first answer, if all of it is in the window,
    and 0 otherwise.
    """
    check_form(tokenizer, pad, values.whole("max_length", max_length, 1), "cut", buckets)
    values.whole("shared", shared, 0)
    values.whole("longest_question", longest_question, 1)
    special = tokenizer.num_special_tokens_to_add(True)
    room = max_length - special - longest_question
    if room <= shared:
        raise ValueError(
            f"max_length={max_length} leaves {max(room, 0)} tokens of context beside a question of "
            f"{longest_question} and {special} special tokens, and windows share {shared}; raise it"
        )
    if missing := {"question", "context", "answers", "starts"} - set(questions):
        raise ValueError(f"the questions have no {sorted(missing)}; squad.read makes them")
    asked = _shortened(questions["question"], tokenizer, longest_question)
    cutting = limited(tokenizer, None)
    cutting.enable_truncation(max_length, stride=shared, strategy="only_second")
    found, question = [], []
    for row, whole in enumerate(
        cutting.encode_batch(list(zip(asked, questions["context"], strict=True)))
    ):
        parts = [whole, *whole.overflowing]
        found += parts
        question += [row] * len(parts)
    return _arrays(found, np.array(question, np.int32), questions, pad, (*buckets, max_length))


def _shortened(asked: np.ndarray, tokenizer: "Tokenizer", most: int) -> list[str]:
    """The questions without leading spaces, each cut after so many tokens."""
    lines = [line.lstrip() for line in asked]
    encoded = limited(tokenizer, None).encode_batch(lines, add_special_tokens=False)
    return [
        line if len(one.ids) <= most else line[: one.offsets[most - 1][1]]
        for line, one in zip(lines, encoded, strict=True)
    ]


def _arrays(
    found: list["Encoding"],
    question: np.ndarray,
    questions: Examples,
    pad: int,
    buckets: Sequence[int],
) -> Windows:
    length = np.array([len(one.ids) for one in found], np.int32)
    shape = (len(found), min(b for b in buckets if b >= length.max()))
    tokens, types = np.full(shape, pad, np.int32), np.zeros(shape, np.int8)
    answerable, offsets = np.zeros(shape, np.int8), np.zeros((*shape, 2), np.int32)
    ends = np.zeros((len(found), 2), np.int32)
    for i, one in enumerate(found):
        n, row = length[i], question[i]
        context = np.array([s == 1 for s in one.sequence_ids])
        tokens[i, :n], types[i, :n], offsets[i, :n] = one.ids, one.type_ids, one.offsets
        answerable[i, :n] = context
        answerable[i, 0] = 1
        if questions["answers"][row] and context.any():
            begin = questions["starts"][row][0]
            over = begin + len(questions["answers"][row][0])
            ends[i] = _marked(offsets[i, :n][context], begin, over, int(np.argmax(context)))
    examples: Examples = {
        "tokens": tokens,
        "types": types,
        "answerable": answerable,
        "length": length,
        "start": ends[:, 0],
        "end": ends[:, 1],
    }
    return Windows(examples, question, offsets)


def _marked(offsets: np.ndarray, begin: int, over: int, first: int) -> tuple[int, int]:
    """(start, end), tokens that hold the characters from `begin` to before `over`, or (0, 0).

    `offsets` [n, 2] are those of the context's tokens, the first of which is token `first`.
    """
    if offsets[0, 0] > begin or offsets[-1, 1] < over:
        return 0, 0
    start = np.searchsorted(offsets[:, 0], begin, side="right") - 1
    end = np.searchsorted(offsets[:, 1], over, side="left")
    return first + int(start), first + max(int(start), int(end))


class Found(NamedTuple):
    """The answers that a model finds."""

    texts: list[str]  # of each question, the best span; "" if its windows have no text
    gap: np.ndarray  # float [q], the score of no answer less that of the span

    def unless(self, threshold: float) -> list[str]:
        """The texts, but "" (no answer) for those with a gap above the threshold."""
        return [t if g <= threshold else "" for t, g in zip(self.texts, self.gap, strict=True)]


def answers(
    logits: np.ndarray, windows: Windows, questions: Examples, *, longest: int = 30
) -> Found:
    """What a model of logits [n, L, 2] answers each question.

    The score of a span is the logit of its first token and that of its last; the best of at most
    `longest` tokens of all the question's windows counts. No answer scores the logits of the first
    token, the least of those in the question's windows. SQuAD 1.1 wants `texts`; of 2.0 `unless`
    leaves out what a threshold, such as `scores.no_answer_threshold`, takes for no answer.
    """
    z = values.array("logits", logits)
    if z.shape != windows.offsets.shape:
        raise ValueError(
            f"logits are {z.shape} of windows {windows.offsets.shape[:2]}; give [n, L, 2], as "
            "models.Span makes them"
        )
    values.whole("longest", longest, 1)
    score, start, end = _best_spans(z, windows.examples["answerable"] > 0, longest)
    none = z[:, 0].sum(-1)
    texts, gaps = [], np.zeros(len(questions["question"]))
    for row, context in enumerate(questions["context"]):
        mine = np.flatnonzero(windows.question == row)
        best = mine[np.argmax(score[mine])] if len(mine) else None
        if best is None or not np.isfinite(score[best]):
            texts.append("")
            continue
        (begin, _), (_, over) = windows.offsets[best, [start[best], end[best]]]
        texts.append(context[begin:over])
        gaps[row] = none[mine].min() - score[best]
    return Found(texts, gaps)


def _best_spans(
    logits: np.ndarray, answerable: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(score, first token, last token) [n] of the best spans behind the first token."""
    behind = answerable.copy()
    behind[:, 0] = False
    first, last = (np.where(behind, logits[..., i], -np.inf) for i in (0, 1))
    n, length = behind.shape
    score, start, end = np.full(n, -np.inf), np.zeros(n, int), np.zeros(n, int)
    for more in range(min(longest, length)):
        total = first[:, : length - more] + last[:, more:]  # [n, L - more]
        place = total.argmax(1)
        value = total[np.arange(n), place]
        better = value > score
        score, start = np.where(better, value, score), np.where(better, place, start)
        end = np.where(better, place + more, end)
    return score, start, end
