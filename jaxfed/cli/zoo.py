"""jaxfed zoo: the table of the methods, or one of them with its paper's pseudo-code."""

import inspect
import sys
import textwrap
from typing import Any

from jaxfed.algorithms import zoo
from jaxfed.algorithms.row import Row
from jaxfed.analysis import look
from jaxfed.cli.watching import Watch

HEAD = ["method", "family", "theta", "sent", "kept", "exact", "oracle", "source"]


def command(arguments: list[str], watch: Watch) -> None:
    """Carries out `jaxfed zoo [NAME]`."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        raise ValueError("give at most one method: jaxfed zoo, or jaxfed zoo NAME")
    watch.clear()
    print(one(arguments[0]) if arguments else table())


def table() -> str:
    """A line for each row."""
    return look.aligned([HEAD, *map(_cells, zoo.TABLE)], left=tuple(HEAD))


def one(name: str) -> str:
    """A row with the docstrings of its function and of the function's file."""
    row = zoo.on_encoder(name)
    cells = zip(HEAD, _cells(row), strict=True)
    function = row.function
    paper = inspect.getdoc(sys.modules[function.__module__]) or ""
    arguments = ", ".join(inspect.signature(function).parameters)
    parts = [
        "\n".join(f"{head:8}{cell}" for head, cell in cells),
        f"tests/{row.oracle.file}::{row.oracle.test}",
        paper,
        *([] if row.beside is None else [_beside(row.beside)]),
        f"{function.__module__}.{function.__name__}({arguments})",
        textwrap.indent(inspect.getdoc(function) or "", "    "),
    ]
    return "\n\n".join(parts)


def _beside(thing: Any) -> str:
    """The name of a module or function, and its docstring."""
    name = getattr(thing, "__module__", "")
    name = f"{name}.{thing.__name__}" if name else thing.__name__
    return f"{name}\n\n{textwrap.indent(inspect.getdoc(thing) or '', '    ')}"


def _cells(row: Row) -> list[str]:
    exact = "yes" if row.exact else ""
    about = [row.sends, row.keeps, exact, row.oracle.kind, row.source]
    return [row.name, row.family, row.trains, *about]
