"""One field of a table: as a name, a text or numbers, and a sentence if it is none of them."""

import math
import reprlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any


def plain(field: Any) -> Any:
    """A number, text or list of them, in place of an array or tensor."""
    return field.tolist() if hasattr(field, "tolist") else field


def name(field: Any) -> str:
    """A label or user as text, "" if it is empty or no such thing; 2.0, as of JSON, is "2"."""
    field = plain(field)
    if isinstance(field, float) and field.is_integer():
        field = int(field)
    if isinstance(field, float) and math.isnan(field):
        return ""
    return sys.intern(str(field).strip()) if isinstance(field, str | int | float) else ""


def is_text(field: Any) -> bool:
    """True for a string with something in it."""
    return isinstance(field, str) and bool(field) and not field.isspace()


def is_empty(field: Any) -> bool:
    """True for what files have in place of a value."""
    if isinstance(field, str):
        return not field or field.isspace() or field.strip().lower() == "nan"
    return field is None or (isinstance(field, float) and math.isnan(field))


def floats(fields: Sequence[Any]) -> list[float] | None:
    """Numbers, and those in lists one after the other; None if something is no finite number."""
    try:
        row = list(map(float, fields))
    except (TypeError, ValueError):
        try:
            row = [float(value) for field in fields for value in _flat(field)]
        except (TypeError, ValueError):
            return None
    return row if math.isfinite(sum(row)) or all(map(math.isfinite, row)) else None


def _flat(field: Any) -> Iterator[Any]:
    field = plain(field)
    if isinstance(field, list):
        for part in field:
            yield from _flat(part)
    else:
        yield field


def fault(columns: Sequence[str], fields: Sequence[Any], first: int, last: int) -> tuple[bool, str]:
    """(whether it is empty, a sentence about it) of the first field that cannot be used."""

    def usable(place: int) -> bool:
        field = fields[place]
        if place < last:
            return bool(name(field)) if place < first else is_text(field)
        return floats([field]) is not None

    place = next(place for place in range(len(fields)) if not usable(place))
    column, field = columns[place], plain(fields[place])
    if is_empty(field):
        return True, f"{column!r} is empty; fill it in, or leave such rows out by missing='drop'"
    kind, remedy = (
        ("name", "give text or a whole number")
        if place < first
        else ("text", "put it in quotes, or in numbers=")
        if place < last
        else ("finite number", "mend it, or name the columns of numbers, numbers=")
    )
    return False, f"{column!r} has {reprlib.repr(field)}, which is no {kind}; {remedy}"
