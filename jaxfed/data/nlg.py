"""Text to be written: files of it, and tokens with a mark on those that a model is to predict.

JSON lines, such as prompts and responses, WebNLG's XML, and E2E's CSV. As for `text.tokenise`, all
rows of a split have one length.
"""

import csv
import gzip
import json
import lzma
import tarfile
import xml.etree.ElementTree as ElementTree
import zlib
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

import numpy as np

from jaxfed import values
from jaxfed.data.sources import Examples
from jaxfed.data.text import BUCKETS, check_form, check_text, kept_of, limited

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def prompted(
    examples: Examples,
    tokenizer: "Tokenizer",
    *,
    end: int | None,
    pad: int = 0,
    max_length: int = 256,
    longer: Literal["cut", "drop"] = "cut",
    buckets: Sequence[int] = BUCKETS,
) -> Examples:
    """The examples with arrays of tokens in place of "prompt" and "response" [n], or of "text" [n].

    "tokens" int32 [n, L]: the prompt with the tokenizer's own special tokens, the response, `end`
    (None: no such token), and `pad` to fill up. "scored" int8 [n, L] is 1 for the response and its
    end; in a "text", for all but the first token. "length" int32 [n] counts the tokens that are not
    padding. The mask decides what counts, not the padding's id, so any id will do for `pad`.

    Rows of more than `max_length` tokens are cut or dropped; a row of whose response nothing is
    left is dropped, too. A warning counts what is dropped. L is the smallest of the buckets that
    holds the longest row, at most `max_length`. ValueError for an empty response or text.
    """
    check_form(tokenizer, pad, values.whole("max_length", max_length, 2), longer, buckets)
    if end is not None:
        values.whole("end", end, 0)
    names = ("prompt", "response") if "response" in examples else ("text",)
    if missing := set(names) - set(examples):
        raise ValueError(f"the examples have no {sorted(missing)}; they have {sorted(examples)}")
    check_text(examples, names)
    _check_written(examples, names[-1])
    whole = limited(tokenizer, None)
    columns = [whole.encode_batch(list(examples[names[0]]))]
    if len(names) == 2:
        columns.append(whole.encode_batch(list(examples["response"]), add_special_tokens=False))
    last = [] if end is None else [end]
    rows = [[*chain(*(one.ids for one in row)), *last] for row in zip(*columns, strict=True)]
    first = np.array([len(one.ids) for one in columns[0]] if len(names) == 2 else [1] * len(rows))
    length = np.array([len(row) for row in rows], np.int32)
    fits = (length <= max_length) if longer == "drop" else (first < max_length) & (length > 1)
    kept = kept_of(fits, max_length)
    length, first = np.minimum(length, max_length)[kept], first[kept]
    width = min(b for b in (*buckets, max_length) if b >= length.max())
    tokens = np.full((len(kept), width), pad, np.int32)
    for row, i in enumerate(kept):
        tokens[row, : length[row]] = rows[i][:max_length]
    place = np.arange(width)
    scored = (place >= first[:, None]) & (place < length[:, None])
    rest = {key: np.asarray(x)[kept] for key, x in examples.items() if key not in names}
    return {"tokens": tokens, "scored": scored.astype(np.int8), "length": length, **rest}


def _check_written(examples: Examples, name: str) -> None:
    if empty := [row for row, line in enumerate(examples[name]) if not line.strip()]:
        raise ValueError(
            f"{name!r} is empty in row {empty[0]} ({len(empty)} such rows); leave them out"
        )


def jsonl(path: str | Path, names: Sequence[str] = ("prompt", "response")) -> Examples:
    """{name: strings [n]} of these names from a file of one JSON object a line, plain or .gz.

    ValueError, with the line, for one that lacks a name or holds no string there.
    """
    path = Path(path).expanduser()
    columns: dict[str, list[str]] = {name: [] for name in names}
    for number, line in enumerate(_lines(path), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{path}, line {number} is no JSON ({error}); write one object"
            ) from None
        for name in names:
            if not isinstance(row, dict) or not isinstance(row.get(name), str):
                has = sorted(row) if isinstance(row, dict) else type(row).__name__
                raise ValueError(f"{path}, line {number} has no string {name!r}; it has {has}")
            columns[name].append(row[name])
    if not columns[names[0]]:
        raise ValueError(f"{path} has no lines; give one JSON object a line")
    return {name: np.array(column, dtype=object) for name, column in columns.items()}


def _lines(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8-sig") as file:
        try:
            yield from (line for line in file if line.strip())
        except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} cannot be read ({error}); download it again") from None


WEBNLG = {"train": "train/", "dev": "dev/", "test": "testdata_with_lex.xml"}
UNSEEN = "testdata_unseen_with_lex.xml"


def webnlg(path: str | Path, split: Literal["train", "dev", "test", "unseen"]) -> Examples:
    """A split of the WebNLG challenge 2017, from its folder or a tar of it, one row a reference.

    "prompt" is a set of triples, "subject | property | object" joined by " && ", "response" one of
    its texts, "entry" int32 the number of the set, and "category" its subject matter. "unseen" are
    those entries of the test set whose categories are not in the training set.
    """
    values.choice("split", split, (*WEBNLG, "unseen"))
    wanted = UNSEEN if split == "unseen" else WEBNLG[split]
    rows: list[tuple[str, str, int, str]] = []
    entries = 0
    for name, file in sorted(_xml(Path(path).expanduser(), wanted)):
        for entry in _root(name, file).iter("entry"):
            triples = [t.text or "" for t in entry.iterfind("modifiedtripleset/mtriple")]
            texts = [lex.text or "" for lex in entry.iterfind("lex")]
            shared = " && ".join(t.strip() for t in triples)
            rows += [(shared, text.strip(), entries, entry.get("category", "")) for text in texts]
            entries += 1
    if not rows:
        raise ValueError(f"{path} has no {wanted} of WebNLG 2017; give its folder or its tar")
    prompt, response, entry_of, category = zip(*rows, strict=True)
    strings = {"prompt": prompt, "response": response, "category": category}
    found = {name: np.array(column, dtype=object) for name, column in strings.items()}
    return {**found, "entry": np.array(entry_of, np.int32)}


def _root(name: str, data: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise ValueError(f"{name} cannot be read ({error}); download it again") from None


def _xml(path: Path, wanted: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each XML file in a folder or a tar whose path has `wanted` in it."""
    if path.is_dir():
        for file in path.rglob("*.xml"):
            if f"/{wanted}" in f"/{file.relative_to(path).as_posix()}":
                yield file.as_posix(), file.read_bytes()
        return
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                opened: IO[bytes] | None = tar.extractfile(member) if member.isfile() else None
                if opened and f"/{wanted}" in f"/{member.name}" and member.name.endswith(".xml"):
                    yield member.name, opened.read()
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"{path} cannot be read ({error}); download it again") from None


def e2e(path: str | Path) -> Examples:
    """A file of the E2E challenge, plain or .gz, one row a reference; arrays as in `webnlg`.

    It is a CSV with columns "mr" and "ref" (a name that ends in .csv or .csv.gz), or has lines
    "source||target". "prompt" is the meaning representation, "entry" its number; equal ones are one
    entry, wherever they stand. ValueError, with the line, for another layout.
    """
    path = Path(path).expanduser()
    pairs = list(_table(path) if ".csv" in path.suffixes else _split(path))
    if not pairs:
        raise ValueError(f"{path} has no rows; give the file as the E2E challenge publishes it")
    prompt, response = zip(*pairs, strict=True)
    number = {one: i for i, one in enumerate(dict.fromkeys(prompt))}
    return {
        "prompt": np.array(prompt, dtype=object),
        "response": np.array(response, dtype=object),
        "entry": np.array([number[one] for one in prompt], np.int32),
    }


def _table(path: Path) -> Iterator[tuple[str, str]]:
    rows = csv.DictReader(_lines(path))
    columns = {name.lower(): name for name in rows.fieldnames or ()}
    if missing := {"mr", "ref"} - set(columns):
        raise ValueError(f"{path} has no columns {sorted(missing)}; it has {sorted(columns)}")
    for row in rows:
        mr, ref = row[columns["mr"]], row[columns["ref"]]
        if mr is None or ref is None:
            raise ValueError(f"{path}, line {rows.line_num} has fewer than its columns; mend it")
        yield mr.strip(), ref.strip()


def _split(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_lines(path), 1):
        source, bars, target = line.partition("||")
        if not bars:
            raise ValueError(f"{path}, line {number} has no '||'; write source||target")
        yield source.strip(), target.strip()


def ending(tokenizer: "Tokenizer", end: str) -> int:
    """The number of the token that ends a text; ValueError if the tokenizer has none such."""
    number = tokenizer.token_to_id(end)
    if number is None:
        raise ValueError(f"the tokenizer has no token {end!r}; give the one that ends its texts")
    return number


def grouped(examples: Examples) -> tuple[Examples, list[list[str]]]:
    """(the first row of each "entry", without "response"; the responses of each), in order.

    For examples of several references, one a row, as `webnlg` and `e2e` make them.
    """
    if missing := {"entry", "response"} - set(examples):
        raise ValueError(f"the examples have no {sorted(missing)}; they have {sorted(examples)}")
    several: dict[int, list[str]] = {}
    for entry, text in zip(examples["entry"].tolist(), examples["response"], strict=True):
        several.setdefault(entry, []).append(text)
    rows = np.sort(np.unique(examples["entry"], return_index=True)[1])
    order = [several[entry] for entry in examples["entry"][rows].tolist()]
    return {name: x[rows] for name, x in examples.items() if name != "response"}, order
