"""`jaxfed report --html`: one page that needs nothing else, not even a network.

Curves are inline SVG, drawn here, so that they are there without JavaScript too; page.html, the
template, adds what happens on hover and on a click. Whatever a run's folder says is escaped.
"""

import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxfed.cli import labels, plots, studies, tables
from jaxfed.cli.plots import Curve
from jaxfed.cli.studies import Group, Statistic

TEMPLATE = Path(__file__).with_name("page.html")
WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 56, 538, 12, 288  # of the axes
POINTS = 600  # of a curve, at most
COLOURS, DASHES = 7, ("", "7 4", "2 3", "9 3 2 3")


class Axis(NamedTuple):
    """Where numbers from `low` to `high` lie between the pixels `begin` and `end`."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        low, high, x = (np.log(v) if self.log else v for v in (self.low, self.high, values))
        return np.asarray(self.begin + (x - low) / (high - low) * (self.end - self.begin))


def page(groups: Sequence[Group], goal: float | None = None, measure: str | None = None) -> str:
    """The page of these groups of runs, as HTML."""
    runs = [run for group in groups for run in group.runs]
    main = studies.main_measure(runs, measure)
    drawn = plots.curves(main, groups)
    going = sum(len(r.records) < (r.settings.get("rounds") or 0) for r in runs)
    about = [f"{len(runs)} run{'s' * (len(runs) > 1)}"]
    about += [f"{len(groups)} groups"] if len(groups) < len(runs) else []
    about += [f"{going} not at the last round"] if going else []
    several = any(len(group.runs) > 1 for group in groups)
    parts = [
        _legend(groups),
        f'<div class="charts">{"".join(_figures(main, groups, drawn))}</div>',
        '<p class="note">Bands are 95 % intervals of the mean over runs; over clients, the 10th to '
        "90th percentile.</p>",
        f"<h2>{'Groups' if several else 'Runs'}</h2>{_runs(groups, goal, measure)}",
        _pairs(groups, measure),
        labels.cards(groups),
        _settings(groups),
    ]
    title = runs[0].name if len(runs) == 1 else "Runs compared"
    made = {"title": _text(title), "about": _text(", ".join(about)), "body": "\n".join(parts)}
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub("@(title|about|body)@", lambda found: made[found[1]], template)


def _text(words: Any) -> str:
    return html.escape(str(words))


def _legend(groups: Sequence[Group]) -> str:
    buttons = (
        f'<button type="button" data-group="{i}" aria-pressed="true">'
        f'<i style="color: var(--c{i % COLOURS})"></i>{_text(group.name)}</button>'
        for i, group in enumerate(groups)
    )
    return f'<nav class="legend" aria-label="curves">{"".join(buttons)}</nav>'


# ---------------------------------------------------------------------- curves


def _figures(measure: str, groups: Sequence[Group], drawn: dict[str, list[Curve]]) -> Iterable[str]:
    """A figure for each kind of curve that the runs hold."""
    name, title = studies.in_words(measure), studies.title(measure)
    share = studies.is_share(measure, [run for group in groups for run in group.runs])
    numbers = {group.name: i for i, group in enumerate(groups)}
    captions = {
        "by_round": (title, "round", share),
        "by_megabytes": (f"{title} by communication", "MB sent by all clients", share),
        "loss": ("Training loss", "round", False),
        "over_clients": (f"{name.capitalize()} over clients: median", "round", share),
        "by_client": (f"{name.capitalize()} of each client", "share of clients", share),
    }
    for kind, curves in drawn.items():
        caption, label, percent = captions[kind]
        yield _figure(caption, label, percent, kind, [(numbers[c.label], c) for c in curves])


def _figure(
    caption: str, label: str, share: bool, kind: str, curves: Sequence[tuple[int, Curve]]
) -> str:
    thin = [(i, _thinned(curve)) for i, curve in curves]
    x, y = _axes([curve for _, curve in thin], share, kind)
    data = {
        "label": label,
        "share": share,
        "percent": kind == "by_client",
        "log": x.log,
        "x": [x.begin, x.end, x.low, x.high],
        "curves": [
            {
                "name": curve.label,
                "group": i,
                "x": _numbers(curve.x),
                "y": _numbers(curve.y),
                **({"low": _numbers(curve.band[0]), "high": _numbers(curve.band[1])}
                   if curve.band is not None else {}),
            }
            for i, curve in thin
        ],
    }  # fmt: skip
    shapes = "".join(_shapes(i, curve, x, y) for i, curve in thin)
    clip = f"clip-{kind}"
    return (
        f'<figure data-chart="{_text(json.dumps(data, separators=(",", ":")))}">'
        f"<figcaption>{_text(caption)}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{_text(caption)}">'
        f'<clipPath id="{clip}"><rect x="{LEFT - 4}" y="{TOP}" width="{RIGHT - LEFT + 8}" '
        f'height="{BOTTOM - TOP}"/></clipPath>'
        f'{_grid(x, y, label, share, kind)}<g clip-path="url(#{clip})">{shapes}</g>'
        f'<line class="guide" x1="{LEFT}" x2="{LEFT}" y1="{TOP}" y2="{BOTTOM}"/></svg>'
        '<div class="tip" role="status"></div></figure>'
    )


def _thinned(curve: Curve) -> Curve:
    """The curve at up to POINTS of its places, both ends among them."""
    if len(curve.x) <= POINTS:
        return curve
    kept = np.unique(np.linspace(0, len(curve.x) - 1, POINTS).round().astype(int))
    band = None if curve.band is None else (curve.band[0][kept], curve.band[1][kept])
    return Curve(curve.label, curve.x[kept], curve.y[kept], band)


def _numbers(values: np.ndarray) -> list[float | None]:
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in values]


def _axes(curves: Sequence[Curve], share: bool, kind: str) -> tuple[Axis, Axis]:
    x = np.concatenate([curve.x for curve in curves]).astype(float)
    log = kind == "by_megabytes" and plots.is_wide(curves)
    y = np.concatenate([curve.y for curve in curves] + [b for c in curves for b in c.band or ()])
    y = y[np.isfinite(y)] if np.isfinite(y).any() else np.zeros(1)
    low, high = float(y.min()), float(y.max())
    room = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    low, high = low - room, high + room
    if share:
        low, high = (low if y.min() < 0 else max(low, 0.0)), min(high, 1.02)
    first, last = (0.0, 1.0) if kind == "by_client" else (float(x.min()), float(x.max()))
    if first == last:
        first, last = (first / 2, 2 * last) if log else (first - 0.5, last + 0.5)
    return Axis(first, last, LEFT, RIGHT, log), Axis(low, high, BOTTOM, TOP)


def _shapes(i: int, curve: Curve, x: Axis, y: Axis) -> str:
    """The band and the line of the curve of group i."""
    style = f'data-group="{i}" style="--colour: var(--c{i % COLOURS})"'
    dash = DASHES[i // COLOURS % len(DASHES)]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    across = x.place(curve.x.astype(float))
    band = ""
    if curve.band is not None and all(np.isfinite(end).all() for end in curve.band):
        low, high = (y.place(end) for end in curve.band)
        edge = [*zip(across, low, strict=True), *list(zip(across, high, strict=True))[::-1]]
        band = f'<path class="band" {style} d="{_path(edge)}Z"/>'
    points = list(zip(across, y.place(curve.y), strict=True))
    dots = "".join(
        f'<circle {style} cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="var(--colour)"/>'
        for a, b in (points if len(points) <= 30 else ())
        if math.isfinite(b)
    )
    return f'{band}<path class="curve" {style}{dashed} d="{_path(points)}"/>{dots}'


def _path(points: Iterable[tuple[float, float]]) -> str:
    """An SVG path through the points, broken where one is not finite."""
    words, pen = [], "M"
    for a, b in points:
        if math.isfinite(b):
            words.append(f"{pen}{a:.1f} {b:.1f}")
        pen = "L" if math.isfinite(b) else "M"
    return "".join(words)


def _grid(x: Axis, y: Axis, label: str, share: bool, kind: str) -> str:
    lines = []
    for value in ticks(y.low, y.high):
        at = float(y.place(np.array(value)))
        words = f"{100 * value:g} %" if share else f"{value:g}"
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{words}</text>'
        )
    for value in decades(x.low, x.high) if x.log else ticks(x.low, x.high):
        at = float(x.place(np.array(value)))
        words = f"{100 * value:g} %" if kind == "by_client" else f"{value:,.10g}"
        lines.append(f'<text x="{at:.1f}" y="{BOTTOM + 18}" text-anchor="middle">{words}</text>')
    middle = (LEFT + RIGHT) / 2
    words = f"{label} (log scale)" if x.log else label
    return (
        f'{"".join(lines)}<line class="axis" x1="{LEFT}" x2="{RIGHT}" y1="{BOTTOM}" y2="{BOTTOM}"/>'
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{_text(words)}</text>'
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Up to `most` round numbers from low to high: 1, 2, 2.5 or 5 times a power of ten apart."""
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(
        s * power for s in (1, 2, 2.5, 5, 10, 20) if (high - low) / (s * power) <= most + 1e-9
    )
    first = math.ceil(low / step - 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def decades(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten from low to high; the powers alone over many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    found = (float(f"{s}e{p}") for p in powers for s in steps)
    return [value for value in found if low <= value <= high]


# ---------------------------------------------------------------------- tables


def _runs(groups: Sequence[Group], goal: float | None, measure: str | None) -> str:
    found = tables.table(groups, goal, measure)
    head = list(found.rows[0])
    shown = [line.values() for line in tables.cells(found)]
    body = [
        [(words, _key(value)) for words, value in zip(line, row.values(), strict=True)]
        for line, row in zip(shown, found.rows, strict=True)
    ]
    return _table(head, body, sortable=True)


def _key(value: Any) -> str:
    """What a column is sorted by."""
    if isinstance(value, Statistic):
        return repr(value.mean)
    return "" if value is None else str(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[tuple[str, str]]], sortable: bool) -> str:
    heads = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    lines = (
        "".join(f'<td data-value="{_text(key)}">{_text(words)}</td>' for words, key in row)
        for row in rows
    )
    kind = ' class="sortable"' if sortable else ""
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    table = f"<table{kind}><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="card">{table}</div>'


def _pairs(groups: Sequence[Group], measure: str | None) -> str:
    if all(len(group.runs) == 1 for group in groups):
        return ""
    head, rows = tables.pairs(groups, measure)
    if not rows:
        return ""
    body = [
        [(name, name), (size, size), (mean, repr(s.mean)), (interval, repr(s.mean))]
        for s, (name, size, mean, interval) in rows
    ]
    return f"<h2>Paired differences</h2>{_table(head, body, sortable=True)}"


def _settings(groups: Sequence[Group]) -> str:
    """What differs between runs, and below it, folded, what is the same in all."""
    runs = [run for group in groups for run in group.runs]
    names = dict.fromkeys(name for run in runs for name in ("config", *run.settings))
    each = {
        n: [run.config if n == "config" else run.settings.get(n) for run in runs] for n in names
    }
    differ = [n for n, values in each.items() if len({repr(v) for v in values}) > 1]

    def shown(value: Any) -> tuple[str, str]:
        return ("-", "") if value is None else (str(value), str(value))

    same = [[(n, n), shown(values[0])] for n, values in each.items() if n not in differ]
    rows = [
        [(run.name, run.name), *(shown(each[n][i]) for n in differ)] for i, run in enumerate(runs)
    ]
    first = (
        f"<h2>What differs</h2>{_table(['run', *differ], rows, sortable=True)}" if differ else ""
    )
    alone = len(runs) == 1
    words = "Settings" if alone else "Settings that are the same in all runs"
    table = _table(["setting", "value"], same, sortable=False)
    return f"{first}<details{' open' if alone else ''}><summary>{words}</summary>{table}</details>"
