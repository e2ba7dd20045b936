"""Facts about a run as notebooks show them: one line, or a table of HTML."""

import html
from collections.abc import Mapping
from typing import Any


def line(name: str, facts: Mapping[str, Any]) -> str:
    """`Name(rounds 20, accuracy 0.95)`."""
    return f"{name}({', '.join(f'{n} {value}' for n, value in facts.items())})"


def table(name: str, facts: Mapping[str, Any]) -> str:
    """The facts as a table of HTML below the name."""
    rows = "".join(
        f'<tr><th style="text-align: left">{html.escape(n)}</th>'
        f"<td>{html.escape(str(value))}</td></tr>"
        for n, value in facts.items()
    )
    return f"<table><caption>{html.escape(name)}</caption>{rows}</table>"


def measured(records: list[dict]) -> dict[str, str]:
    """The newest accuracy, test loss and loss among the records of a run."""
    found: dict[str, str] = {}
    for name in ("accuracy", "test_loss", "loss"):
        values = [r[name] for r in records if isinstance(r.get(name), int | float)]
        if values:
            found[name] = f"{values[-1]:.4f}"
    return found
