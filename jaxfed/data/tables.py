"""Tables of text or numbers with a label, and perhaps a user, in each row: as arrays.

table = tables.read("reviews.csv", text="review", label="stars", user="customer")
data = federate(table.source, table.parts, personal_parts=table.personal_parts)
"""

import array
import reprlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxfed import values
from jaxfed.data import fields, memory, partition, rows
from jaxfed.data.federated import hold_out
from jaxfed.data.sources import Examples, Source


class Table(NamedTuple):
    """A source whose labels count through `classes`, and whose rows they are."""

    source: Source
    """{"text": str [n], "pair": str [n], "x": float32 [n, d], "label": int32 [n]} as asked for."""

    classes: tuple[str, ...]
    """The names of the labels, sorted; as numbers, if all of them are whole numbers."""

    users: tuple[np.ndarray, np.ndarray] | None = None
    """The user's name of each training and test row [n]."""

    @property
    def parts(self) -> partition.Named:
        """The training rows of each user, for `federate`; ValueError if there are no users."""
        return partition.natural(self._users()[0])

    @property
    def personal_parts(self) -> partition.Named:
        """The test rows of each user that trains, for `federate`; others stay in the test set."""
        train, test = self._users()
        known = np.isin(test, train).nonzero()[0]
        if not len(known):
            return partition.Named([], [])
        own = partition.natural(test[known])
        return partition.Named((known[part] for part in own), own.names)

    def _users(self) -> tuple[np.ndarray, np.ndarray]:
        if self.users is None:
            raise ValueError("the table was read without users; name their column, user=")
        return self.users


class Columns(NamedTuple):
    """The columns of a table that are read, by their names."""

    label: str
    text: str | None
    pair: str | None
    user: str | None
    numbers: tuple[str, ...]

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(name for name in (self.text, self.pair) if name is not None)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.label, self.user) if name is not None)


class Read(NamedTuple):
    """What a table holds."""

    number: np.ndarray  # int64 [n], of the line or row
    kept: list[list[str]]  # [n] of the label, the user, the text and the pair, if asked for
    x: np.ndarray  # float32 [n, d]


def read(
    train: Any,
    test: Any = None,
    *,
    label: str,
    text: str | None = None,
    pair: str | None = None,
    numbers: Sequence[str] | None = None,
    user: str | None = None,
    missing: Literal["refuse", "drop"] = "refuse",
    encoding: str = "utf-8",
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Table:
    """The table of a file, or of a training and a test file, with labels and users as names.

    Files are .csv, .tsv, .jsonl and .parquet; the text ones may be compressed, .csv.gz. Objects are
    taken as they are: a `datasets.Dataset`, or a torch Dataset of dicts or tuples, whose columns
    are "0", "1", ... Without `test`, each user (or the whole file) gives `test_fraction` of its
    rows to the test set, and that part of each label to within one row.

    Args:
        train: a path or an object.
        test: likewise; its labels must be among those of the training set.
        label: the column of the classes. Numbers are names, too.
        text: the column of a text.
        pair: the column of a second text.
        numbers: the columns of numbers or lists of numbers; without `text`, by default all others.
        user: the column of a user's name.
        missing: what becomes of rows with an empty field: an error, or left out with a warning.
        encoding: of text files.
        test_fraction: of the rows, if there is no `test`.
        seed: decides which rows these are.

    Raises ValueError, with file, line and remedy, for what cannot be used: unknown or doubled
    columns, rows of another length, empty fields, text in place of numbers, another encoding,
    labels that the training set lacks, and tables for which there is not enough memory.
    """
    values.choice("missing", missing, ("refuse", "drop"))
    values.whole("seed", seed, 0)
    if not 0 < values.number("test_fraction", test_fraction) < 1:
        raise ValueError(f"test_fraction={test_fraction}; use a number above 0 and below 1")
    tables = [rows.table(train, "the training set", encoding)]
    if test is not None:
        tables.append(rows.table(test, "the test set", encoding))
    columns = _columns(tables[0], label, text, pair, numbers, user)
    for each in tables:
        rows.check_columns(each, [*columns.names, *columns.words, *columns.numbers])
    parts = [_collected(each, columns, drop=missing == "drop") for each in tables]
    classes = sorted_classes(tables[0].name, label, parts[0].kept[0])
    made = [_examples(*pair, columns, classes) for pair in zip(tables, parts, strict=True)]
    if user is not None:
        made = [{**m, USER: np.array(p.kept[1], object)} for m, p in zip(made, parts, strict=True)]
    if test is None:
        held = held_out(made[0]["label"], made[0].get(USER), test_fraction, seed)
        made = [{name: x[one] for name, x in made[0].items()} for one in (~held, held)]
    users = (made[0].pop(USER), made[1].pop(USER)) if user is not None else None
    return Table(Source(*made), classes, users)


USER = "user"  # beside the arrays until rows are divided


def standardise(source: Source, name: str = "x") -> Source:
    """The source with (x - mean) / std for x [n, d], each column by its training rows.

    A column that is constant in training is only shifted.
    """
    values.choice("name", name, source.train)
    x = np.asarray(source.train[name])
    mean, std = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    std = np.where(std > 0, std, 1)
    scaled = [((part[name] - mean) / std).astype(np.float32) for part in source]
    return Source(*({**part, name: z} for part, z in zip(source, scaled, strict=True)))


# ---------------------------------------------------------------------- columns


def _columns(
    table: rows.Rows,
    label: str,
    text: str | None,
    pair: str | None,
    numbers: Sequence[str] | None,
    user: str | None,
) -> Columns:
    """The columns by what they are for; raises TypeError or ValueError if they contradict."""
    given = {"label": label, "text": text, "pair": pair, "user": user}
    for name, value in given.items():
        if value is not None or name == "label":
            values.kind(name, value, str, "the name of a column")
    if isinstance(numbers, str):
        raise TypeError(f"numbers={numbers!r} is one name; give several, ({numbers!r},)")
    if pair is not None and text is None:
        raise ValueError(f"pair={pair!r} is a second text; name the first, text=")
    taken = [value for value in given.values() if value is not None]
    if numbers is None:
        numbers = () if text else [name for name in table.columns if name not in taken]
        if "" in numbers:
            raise ValueError(
                f"{table.name} has a column without a name, as of an index; name those to read, "
                "numbers="
            )
    if doubled := [name for name in (*taken, *numbers) if (*taken, *numbers).count(name) > 1]:
        raise ValueError(f"the column {doubled[0]!r} is given twice; give each for one purpose")
    if not numbers and text is None:
        raise ValueError(f"{table.name} has no column beside {taken}; give it one to learn from")
    return Columns(label, text, pair, user, tuple(numbers))


def _collected(table: rows.Rows, columns: Columns, *, drop: bool) -> Read:
    """The columns, read row by row; rows with an empty field are dropped or refused."""
    asked = [*columns.names, *columns.words, *columns.numbers]
    first, last = len(columns.names), len(columns.names) + len(columns.words)
    number, x = array.array("q"), array.array("f")
    kept: list[list[str]] = [[] for _ in range(last)]
    dropped = held = 0
    found, share = table.read(asked)
    for at, row in found:
        names, words = [fields.name(field) for field in row[:first]], row[first:last]
        floats = fields.floats(row[last:])
        if floats is None or not all(names) or not all(map(fields.is_text, words)):
            empty, fault = fields.fault(asked, row, first, last)
            if not empty or not drop:
                raise ValueError(f"{table.at(at)}: {fault}")
            dropped += 1
            continue
        if number and len(floats) * len(number) != len(x):
            raise ValueError(
                f"{table.at(at)} has {len(floats)} numbers, and the rows before it have "
                f"{len(x) // len(number)}; give each row as many"
            )
        number.append(at)
        x.extend(floats)
        for into, value in zip(kept, (*names, *words), strict=True):
            into.append(value)
        held += 4 * len(floats) + 8 * (last + 1) + sum(map(sys.getsizeof, words))
        if len(number) >= LOOK and not len(number) & (len(number) - 1):  # each power of two
            _check_memory(table, held / max(share(), 1e-9))
    if dropped:
        warnings.warn(
            f"{table.name}: {dropped:,} of {dropped + len(number):,} rows have an empty field and "
            "are left out",
            stacklevel=3,
        )
    if not number:
        raise ValueError(f"{table.name} has no row to learn from; give one for each example")
    return Read(
        np.frombuffer(number, np.int64), kept, _finite(table, number, x).reshape(len(number), -1)
    )


LOOK = 1024  # rows, and then twice as many, after which the memory of all is estimated


def _check_memory(table: rows.Rows, needed: float) -> None:
    """Raises ValueError if the whole table will not fit beside a copy of it."""
    if 2 * needed > (free := memory.free()):
        raise ValueError(
            f"{table.name} needs about {2 * needed / 1e9:.2g} GB of memory, and {free / 1e9:.2g} "
            "GB are free; read fewer columns, or a file of fewer rows"
        )


def _finite(table: rows.Rows, number: Sequence[int], x: array.array) -> np.ndarray:
    """The numbers as float32 [n d]; raises ValueError for one beyond its range."""
    made = np.frombuffer(x, np.float32)
    if not np.isfinite(made).all():
        row = int(np.argmin(np.isfinite(made))) * len(number) // len(made)
        raise ValueError(
            f"{table.at(number[row])} has a number above {np.finfo(np.float32).max:.2g}, the "
            "largest of float32; scale its column"
        )
    return made


# ---------------------------------------------------------------------- labels and test rows


def sorted_classes(table: str, column: str, labels: Sequence[str]) -> tuple[str, ...]:
    """The distinct labels, sorted; raises ValueError if they are no classes."""
    distinct = set(labels)
    if len(distinct) < 2:
        raise ValueError(
            f"{table} has {labels[0]!r} for {column!r} in every row; give two classes or more"
        )
    if len(labels) >= 20 and 2 * len(distinct) > len(labels):
        raise ValueError(
            f"{table} has {len(distinct)} different values of {column!r} in {len(labels)} "
            f"rows, such as {labels[0]!r}; give a column of classes (or round it to some)"
        )
    whole = all(label.removeprefix("-").isdecimal() for label in distinct)
    return tuple(sorted(distinct, key=int if whole else None))


def numbered(labels: Sequence[str], classes: Sequence[str], at: Callable[[int], str]) -> np.ndarray:
    """The place of each label among the classes, int32 [n].

    ValueError if one is no class, with its place `at(row)`.
    """
    place = {name: i for i, name in enumerate(classes)}
    if unseen := sorted(set(labels) - set(place)):
        raise ValueError(
            f"{at(labels.index(unseen[0]))} has the label {unseen[0]!r} ({len(unseen)} such "
            f"labels), and the training set has only {reprlib.repr(list(classes))}; leave such "
            "rows out"
        )
    return np.array([place[label] for label in labels], np.int32)


def _examples(table: rows.Rows, found: Read, columns: Columns, classes: Sequence[str]) -> Examples:
    """The arrays; raises ValueError for a label that is no class."""
    label = numbered(found.kept[0], classes, lambda i: table.at(found.number[i]))
    named = zip(("text", "pair"), found.kept[len(columns.names) :], strict=False)
    return {
        **{name: np.array(words, object) for name, words in named},
        **({"x": found.x} if columns.numbers else {}),
        "label": label,
    }


def held_out(label: np.ndarray, users: np.ndarray | None, fraction: float, seed: int) -> np.ndarray:
    """Which rows are the test set's, bool [n]: that fraction of each user's, and of each label."""
    owner = np.zeros(len(label), int) if users is None else np.unique(users, return_inverse=True)[1]
    order = np.argsort(owner, kind="stable")
    held = np.empty(len(label), bool)
    held[order] = hold_out(owner[order], label[order].astype(int), fraction, seed)
    if not held.any():
        raise ValueError(
            f"test_fraction={fraction} of no user's rows is a row; give test=, or a larger fraction"
        )
    return held
