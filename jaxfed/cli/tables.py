"""Tables of runs and of groups of runs: plain text, CSV and LaTeX."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxfed.analysis.look import aligned
from jaxfed.cli import studies
from jaxfed.cli.recorded import Run, best, measures, megabytes, series
from jaxfed.cli.studies import Group, Statistic


class Column(NamedTuple):
    """A column of numbers over the runs of a group."""

    name: str
    write: Callable[[float], str]
    is_cost: bool  # rounds, megabytes and seconds, whose interval is in the CSV alone
    of: Callable[[Group], Statistic | None]


class Table(NamedTuple):
    """Rows of numbers over runs, and how each column is written."""

    rows: list[dict[str, Any]]  # {column: Statistic, text, or None}
    columns: dict[str, Column]  # those that hold numbers
    runs: list[int]  # how many each row is of


def table(groups: Sequence[Group], goal: float | None = None, measure: str | None = None) -> Table:
    """One row a group.

    When runs first reached `goal` (of the measure, by default accuracy or else the task's first),
    in rounds and megabytes, is what makes them comparable; by default see studies.goal_of. "own" is
    the mean over clients of what their own models end with. Seconds a round are a run's median.
    """
    runs = [run for group in groups for run in group.runs]
    measure = studies.main_measure(runs, measure)
    goal = studies.goal_of(runs, measure) if goal is None else goal
    others = [n for n in dict.fromkeys(n for r in runs for n in measures(r)) if n != measure]
    others = [n for n in others if n != "test_loss"]
    write = _kind(measure, runs)
    reached = "goal" if goal is None else write(goal)
    ends = [
        Column("best", write, False, _over(lambda run: best(run, measure))),
        Column("last", write, False, _over(lambda run: studies.last(run, measure))),
    ]
    if not measure.startswith("personal/"):
        ends.append(Column("own", write, False, _last(studies.of_own_models(measure))))
    costs = [
        Column(f"round of {reached}", "{:.4g}".format, True, _to(goal, measure, 0)),
        Column(f"MB to {reached}", _number, True, _to(goal, measure, 1)),
        Column("MB up", _number, True, _over(lambda run: _sent(run, "up"))),
        Column("MB down", _number, True, _over(lambda run: _sent(run, "down", "broadcast"))),
        Column("s/round", "{:.3g}".format, True, _over(lambda run: _median(run, "seconds"))),
    ]
    taken = ["run", "group", "method", "runs", "rounds", *(c.name for c in (*ends, *costs))]
    own = [Column(n, _kind(m, runs), False, _last(m)) for n, m in _apart(others, taken).items()]
    columns = [*ends, *own, *costs]
    rows = [_names(group) | {c.name: c.of(group) for c in columns} for group in groups]
    some = ("method", *(c.name for c in (*ends[2:], *own)))
    empty = {n for n in some if not any(row.get(n) for row in rows)}
    rows = [{n: v for n, v in row.items() if n not in empty} for row in rows]
    return Table(rows, {c.name: c for c in columns}, [len(group.runs) for group in groups])


def _apart(names: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """{column: measure}, where a measure with the name of another column is called "test NAME"."""
    found: dict[str, str] = {}
    for name in names:
        column = name
        while column in {*taken, *found} or (column != name and column in names):
            column = f"test {column}"
        found[column] = name
    return found


def _over(number: Callable[[Run], float | None]) -> Callable[[Group], Statistic | None]:
    return lambda group: studies.over_runs([number(run) for run in group.runs])


def _last(measure: str) -> Callable[[Group], Statistic | None]:
    return _over(lambda run: studies.last(run, measure))


def _to(goal: float | None, measure: str, part: int) -> Callable[[Group], Statistic | None]:
    """Rounds (part 0) or megabytes (part 1) to the goal."""
    return lambda group: None if goal is None else studies.to_goal(group, goal, measure)[part]


def _sent(run: Run, *names: str) -> float | None:
    sent = megabytes(run, *names)
    return sent[-1] if sent.size else None


def _median(run: Run, name: str) -> float | None:
    values = series(run, name)[1]
    return float(np.median(values)) if values.size else None


def _names(group: Group) -> dict[str, Any]:
    """The columns that say which runs a row is of."""
    done = [(len(run.records), run.settings.get("rounds")) for run in group.runs]
    rounds = list(dict.fromkeys(f"{n}/{p}" if p and p != n else f"{n}" for n, p in done))
    shown = (
        rounds[0] if len(rounds) == 1 else f"{min(n for n, _ in done)}-{max(n for n, _ in done)}"
    )
    if group.keys == ((),):
        run = group.runs[0]
        return {"run": run.name, "method": str(run.settings.get("method", "")), "rounds": shown}
    return {"group": group.name, "runs": str(len(group.runs)), "rounds": shown}


def _kind(measure: str, runs: Sequence[Run]) -> Callable[[float], str]:
    return _percent if studies.is_share(measure, runs) else _number


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def text(found: Table) -> str:
    """The table in columns of plain text."""
    rows = cells(found)
    lines = [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []
    return aligned(lines, left=("run", "group", "method"))


def cells(found: Table) -> list[dict[str, str]]:
    """The rows in words: of several runs, mean +- deviation [95 % interval].

    Of costs there is no interval, and of equal numbers no deviation.
    """
    return [
        {n: _cell(found, n, v, of) for n, v in row.items()}
        for row, of in zip(found.rows, found.runs, strict=True)
    ]


def _cell(found: Table, name: str, value: Any, of: int) -> str:
    if value is None:
        return "-"
    if not isinstance(value, Statistic):
        return value
    write, is_cost = found.columns[name].write, found.columns[name].is_cost
    some = _some(value, of)
    if value.size < 2 or not value.deviation:
        return write(value.mean) + some
    mean = f"{write(value.mean)} +- {write(value.deviation)}"
    return mean + some if is_cost else f"{mean} [{write(value.low)}, {write(value.high)}]"


def _some(value: Statistic, of: int) -> str:
    """How many of a group's runs have the number, if not all have it."""
    return f" ({value.size} of {of})" if value.size < of else ""


def pairs(
    groups: Sequence[Group], measure: str | None = None
) -> tuple[list[str], list[tuple[Statistic, list[str]]]]:
    """(head, [(difference, its row in words)]): other groups less the best, in the last evaluation.

    Paired as studies.differences has it; there is no row without a pair. Differences of shares are
    in percentage points.
    """
    runs = [run for group in groups for run in group.runs]
    measure = studies.main_measure(runs, measure)
    top, found = studies.differences(groups, measure)
    points = studies.is_share(measure, runs)
    head = [f"{measure} less that of {top}", "pairs", "mean", "95 % interval"]
    return head, [(s, [name, f"{s.size}", *_difference(s, points)]) for name, s in found.items()]


def paired(groups: Sequence[Group], measure: str | None = None) -> str:
    """`pairs` in columns of plain text; "" if there is no pair."""
    head, rows = pairs(groups, measure)
    return aligned([head, *(words for _, words in rows)], left=(head[0],)) if rows else ""


def _difference(s: Statistic, points: bool) -> tuple[str, str]:
    """(mean, interval) in words."""
    mean, low, high = (
        f"{100 * x:+.2f}" if points else f"{x:+.4g}" for x in (s.mean, s.low, s.high)
    )
    return f"{mean} points" if points else mean, "-" if s.size < 2 else f"[{low}, {high}]"


def as_csv(found: Table) -> str:
    """The table as CSV, numbers in full; a statistic has a column for each of its parts."""
    flat = [dict(_flat(row, found)) for row in found.rows]
    head = list(dict.fromkeys(name for row in flat for name in row))
    lines = io.StringIO()
    writer = csv.DictWriter(lines, head, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return lines.getvalue()


def _flat(row: dict[str, Any], found: Table) -> Any:
    several = max(found.runs, default=1) > 1
    for name, value in row.items():
        if isinstance(value, str):
            yield name, _harmless(value)
        elif value is None:
            yield f"{name} mean" if several else name, ""
        elif not several:
            yield name, value.mean
        else:
            parts = value._asdict().items()
            yield from ((f"{name} {part}", x) for part, x in parts if x == x)


def _harmless(words: str) -> str:
    """The words as a spreadsheet takes them for text: it would run those that start a formula."""
    return f"'{words}" if words.lstrip()[:1] in ("=", "+", "-", "@") else words


def as_latex(found: Table) -> str:
    """The table as a LaTeX tabular with booktabs' rules: mean, deviation, and of how many runs."""
    names = [n for n in (found.rows[0] if found.rows else {}) if n != "runs"]
    left = ("run", "group", "method")
    lines = [
        rf"\begin{{tabular}}{{{''.join('l' if n in left else 'r' for n in names)}}}",
        r"\toprule",
        " & ".join(map(_escaped, names)) + r" \\",
        r"\midrule",
        *(
            " & ".join(_latex(found, n, row[n], of) for n in names) + r" \\"
            for row, of in zip(found.rows, found.runs, strict=True)
        ),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def _latex(found: Table, name: str, value: Any, of: int) -> str:
    if not isinstance(value, Statistic):
        return "--" if value is None else _escaped(value)
    write = found.columns[name].write
    mean, deviation = (_escaped(write(x)) for x in (value.mean, value.deviation))
    some = _some(value, of)
    if value.size < 2 or not value.deviation:
        return mean + some
    return rf"{mean} $\pm$ {deviation}{some}"


def _escaped(words: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in words)
