"""A SQuAD file of a few words, for the words of `tiny_bert`."""

import json
from pathlib import Path

import numpy as np


def question(name, asked, context, *answers, impossible=None):
    """(question, context) of a file; an answer is (text, character where it starts)."""
    given = [{"text": text, "answer_start": start} for text, start in answers]
    one = {"id": name, "question": asked, "answers": given}
    if impossible is not None:
        one["is_impossible"] = impossible
    return one, context


def write(path: Path, rows, version: str = "v2.0") -> Path:
    """The file, each question with a paragraph and an article of its own."""
    data = [
        {"title": f"t{i % 4}", "paragraphs": [{"context": context, "qas": [one]}]}
        for i, (one, context) in enumerate(rows)
    ]
    path.write_text(json.dumps({"version": version, "data": data}))
    return path


def learnable(path: Path, count: int, seed: int) -> Path:
    """The answer is the one word b or j of the context; without one there is no answer."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        words = list(rng.choice(list("cdefg"), 6))
        if i % 3:
            at = int(rng.integers(6))
            words[at] = "bj"[i % 2]
            answers = [(words[at], 2 * at)]
        else:
            answers = []
        rows.append(question(f"q{i}", "h i", " ".join(words), *answers, impossible=not answers))
    return write(path, rows)
