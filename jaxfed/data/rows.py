"""Rows of a table: of CSV, TSV, JSONL and Parquet files, and of objects that behave like one.

A file is read in a stream and only the columns that are asked for are kept. Objects are those of
Hugging Face's `datasets` and of torch's `Dataset`, known by what they can do: neither package is
imported here.
"""

import codecs
import csv
import gzip
import io
import itertools
import json
import reprlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from jaxfed import values

Numbered: TypeAlias = Iterator[tuple[int, Sequence[Any]]]

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)
FIRST = 100  # lines of a JSONL file that tell its columns
PAGE = 1000  # rows of an object that are read at once


class Rows(NamedTuple):
    """A table that is not read yet."""

    name: str  # of the file or object
    unit: str  # "line" from 1 of a text file, "row" from 0 of others
    columns: Sequence[str]
    read: Callable[[Sequence[str]], tuple[Numbered, Callable[[], float]]]
    """columns -> (their values row by row, each with its number; the share that is read so far)."""

    def at(self, number: int) -> str:
        """A row's place, for a sentence about it."""
        return f"{self.name}, {self.unit} {number}"


def table(given: Any, name: str, encoding: str = "utf-8") -> Rows:
    """The rows of a path to a file, or of an object; `name` is what to call an object.

    Raises TypeError or ValueError for what is no table, a file that is empty or damaged, and for
    columns without a name or with the same name.
    """
    if isinstance(given, str | Path):
        found = _file(Path(given).expanduser(), encoding)
    elif isinstance(given, Mapping):
        raise TypeError(
            f"{name} is a dict of {reprlib.repr(sorted(given))}; give one data set of it"
        )
    elif hasattr(given, "column_names") and hasattr(given, "features"):
        found = _columnar(given, name)
    elif hasattr(given, "__getitem__") and hasattr(given, "__len__"):
        found = _indexed(given, name)
    else:
        raise TypeError(
            f"{name} is a {type(given).__name__}; give a path, a data set of Hugging Face's "
            "`datasets`, or a torch Dataset with a length (an iterable one must be written out)"
        )
    return found


def check_columns(rows: Rows, wanted: Sequence[str]) -> None:
    """Raises ValueError for a wanted column that the table lacks or has twice."""
    if unknown := [name for name in wanted if name not in rows.columns]:
        raise ValueError(
            f"{rows.name} has no column {unknown[0]!r}; its columns are {_listed(rows.columns)}"
        )
    if double := [name for name in wanted if list(rows.columns).count(name) > 1]:
        raise ValueError(
            f"{rows.at(1) if rows.unit == 'line' else rows.name} has {double[0]!r} for a column "
            f"{list(rows.columns).count(double[0])} times; give each column a name of its own"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:20]))
    return f"{shown} and {len(names) - 20} more" if len(names) > 20 else shown


# ---------------------------------------------------------------------- files


def _file(path: Path, encoding: str) -> Rows:
    kind = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give one file of it")
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the path of one")
    if kind.lower() not in SUFFIXES or (kind == ".parquet" and path.suffix == ".gz"):
        raise ValueError(
            f"{path} is no {', '.join(SUFFIXES)} (the text ones may end in .gz); write it as one"
        )
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; give a file with a row for each example")
    if kind.lower() == ".parquet":
        return _parquet(path)
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ValueError(f"encoding={encoding!r} is unknown; use one such as 'utf-8'") from None
    if kind.lower() in (".jsonl", ".ndjson"):
        return _jsonl(path, encoding)
    return _delimited(path, encoding, tabs=kind.lower() == ".tsv")


def _lines(path: Path, encoding: str) -> tuple[Iterator[str], Callable[[], float]]:
    """(the lines of a text file, compressed or not; the share that is read so far)."""
    raw, size = open(path, "rb"), path.stat().st_size  # noqa: SIM115 (the generator closes it)
    stream: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
    encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding

    def lines() -> Iterator[str]:
        with raw, io.TextIOWrapper(stream, encoding, "surrogateescape", newline="") as file:
            try:
                for number, line in enumerate(file, 1):
                    if not line.isascii() and (strange := _undecoded(line)):
                        raise _encoded_otherwise(path, number, strange, encoding)
                    yield line
            except (*DAMAGED, UnicodeError) as error:
                raise ValueError(f"{path} cannot be read ({error}); write it again") from None

    return lines(), lambda: 1.0 if raw.closed else raw.tell() / size


def _undecoded(line: str) -> str:
    """The first character that stands for a byte which is no text, or ''."""
    return next((c for c in line if "\udc80" <= c <= "\udcff"), "")


def _encoded_otherwise(path: Path, number: int, strange: str, encoding: str) -> ValueError:
    byte = ord(strange) - 0xDC00
    other = "utf-16" if number == 1 and byte >= 0xFE else "cp1252"
    return ValueError(
        f"{path}, line {number}: the byte 0x{byte:02x} is no {encoding.removesuffix('-sig')}; save "
        f"the file as UTF-8, or give its encoding, such as encoding={other!r}"
    )


def _delimited(path: Path, encoding: str, *, tabs: bool) -> Rows:
    """Of a CSV file, separated by commas, or by semicolons if its header has no comma; or of a TSV.

    Quotes in a TSV mean nothing, as in the format's definition.
    """
    first = next(_lines(path, encoding)[0], "")
    mark = "\t" if tabs else ";" if ";" in first and "," not in first else ","

    def parsed():
        lines, share = _lines(path, encoding)
        if tabs:
            return csv.reader(lines, delimiter=mark, quoting=csv.QUOTE_NONE), share
        return csv.reader(lines, delimiter=mark, strict=True), share

    def records() -> Iterator[tuple[int, list[str]]]:
        """(line, fields) of each that is not blank, the header too."""
        begin = 1
        try:
            for fields in reader:
                if fields:
                    yield begin, fields
                begin = reader.line_num + 1
        except csv.Error as error:
            raise ValueError(
                f"{path}, line {begin}: {error}; close each quote, and double quotes inside of them"
            ) from None

    reader, _ = parsed()
    header = [name.strip() for name in next(records(), (1, []))[1]]
    if "\0" in first:
        raise ValueError(f"{path}, line 1 has NUL bytes; save the file as UTF-8")
    if not any(header):
        raise ValueError(f"{path}, line 1 has no names of columns; write them there")

    def read(columns: Sequence[str]) -> tuple[Numbered, Callable[[], float]]:
        nonlocal reader
        places = [header.index(name) for name in columns]
        reader, share = parsed()

        def rows() -> Numbered:
            for line, fields in itertools.islice(records(), 1, None):
                if len(fields) != len(header):
                    raise ValueError(
                        f"{path}, line {line} has {len(fields)} fields, and the header has "
                        f"{len(header)}; mend the line (put a field with {mark!r} in it in quotes)"
                    )
                yield line, [fields[i] for i in places]

        return rows(), share

    return Rows(str(path), "line", header, read)


def _jsonl(path: Path, encoding: str) -> Rows:
    """Of one JSON object a line. A column is a name in any of the first objects."""

    def objects(lines: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path}, line {number} is no JSON ({error}); write one object a line"
                ) from None
            if not isinstance(found, dict):
                raise ValueError(
                    f"{path}, line {number} is a {type(found).__name__}; write one object a line, "
                    '{"text": ..., "label": ...}'
                )
            yield number, found

    first = itertools.islice(objects(_lines(path, encoding)[0]), FIRST)
    columns = tuple(dict.fromkeys(name for _, one in first for name in one))

    def read(columns: Sequence[str]) -> tuple[Numbered, Callable[[], float]]:
        lines, share = _lines(path, encoding)
        return ((n, [one.get(name) for name in columns]) for n, one in objects(lines)), share

    return Rows(str(path), "line", columns, read)


def _parquet(path: Path) -> Rows:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(
            f"{path} needs pyarrow to be read: pip install 'jaxfed[parquet]'"
        ) from None
    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is no Parquet file ({error}); write it again") from None
    total = max(file.metadata.num_rows, 1)

    def read(columns: Sequence[str]) -> tuple[Numbered, Callable[[], float]]:
        done = 0

        def rows() -> Numbered:
            nonlocal done
            try:
                for batch in file.iter_batches(columns=list(columns)):
                    held = [batch.column(name).to_pylist() for name in columns]
                    yield from enumerate(zip(*held, strict=True), done)
                    done += batch.num_rows
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{path} cannot be read ({error}); write it again") from None

        return rows(), lambda: done / total

    return Rows(str(path), "row", file.schema_arrow.names, read)


# ---------------------------------------------------------------------- objects


def _columnar(given: Any, name: str) -> Rows:
    """Of a `datasets.Dataset`; a label with names is read as its name, and -1 as missing."""
    if not hasattr(given, "__len__"):
        raise TypeError(f"{name} is a stream of unknown length; load it without streaming=True")

    def read(columns: Sequence[str]) -> tuple[Numbered, Callable[[], float]]:
        part, done = given.select_columns(list(columns)), 0
        names = [getattr(given.features[column], "names", None) for column in columns]

        def rows() -> Numbered:
            nonlocal done
            for begin in range(0, len(part), PAGE):
                page = part[begin : begin + PAGE]
                held = [_named(page[c], of) for c, of in zip(columns, names, strict=True)]
                yield from enumerate(zip(*held, strict=True), begin)
                done = min(begin + PAGE, len(part))

        return rows(), lambda: done / max(len(part), 1)

    return Rows(name, "row", tuple(given.column_names), read)


def _named(numbers: Any, names: Sequence[str] | None) -> Sequence[Any]:
    if names is None:
        return numbers
    return [names[int(i)] if i is not None and i >= 0 else None for i in numbers]


def _indexed(given: Any, name: str) -> Rows:
    """Of a torch Dataset or another sequence, whose items are dicts, or tuples.

    The columns of tuples are called "0", "1" and so on.
    """
    if not len(given):
        raise ValueError(f"{name} is empty; give a row for each example")

    def item(row: int) -> Mapping[str, Any]:
        found = given[row]
        if isinstance(found, tuple | list):
            return {str(i): part for i, part in enumerate(found)}
        values.kind(f"{name}[{row}]", found, Mapping, "a dict or a tuple for each example")
        return found

    def read(columns: Sequence[str]) -> tuple[Numbered, Callable[[], float]]:
        done = 0

        def rows() -> Numbered:
            nonlocal done
            for done in range(len(given)):
                one = item(done)
                yield done, [one.get(column) for column in columns]

        return rows(), lambda: (done + 1) / len(given)

    return Rows(name, "row", tuple(item(0)), read)
