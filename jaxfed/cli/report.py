"""Tables and plots of runs, finished or still going on, from what they left in their folders."""

import functools
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxfed.analysis import look
from jaxfed.analysis.look import COLOURS, DASHES, aligned, written
from jaxfed.cli.recorded import Run, best, megabytes, reached, series
from jaxfed.simulation import stored

MEASURES = ("matthews", "f1")  # of the last evaluation, where some run has them


def table(runs: Sequence[Run], accuracy: float | None = None) -> str:
    """One line a run, in columns of plain text.

    When a run first reached `accuracy`, in rounds and megabytes, is what makes runs comparable;
    by default it is 95 % of the best accuracy among them. Seconds a round are the median.
    """
    bests = [found for run in runs if (found := best(run)) is not None]
    if accuracy is None and bests:
        accuracy = 0.95 * max(bests)
    rows = [_row(run, accuracy) for run in runs]
    none = [n for n in ("method", *MEASURES) if not any(row[n] for row in rows)]
    rows = [{n: v for n, v in row.items() if n not in none} for row in rows]
    cells = [list(rows[0]), *(list(row.values()) for row in rows)] if rows else []
    return aligned(cells, left=("run", "method"))


def _row(run: Run, accuracy: float | None) -> dict[str, str]:
    _, accuracies = series(run, "accuracy")
    _, seconds = series(run, "seconds")
    rounds, planned = len(run.records), run.settings.get("rounds")
    first = None if accuracy is None else reached(run, accuracy)
    goal = "goal" if accuracy is None else _percent(accuracy)
    up, down = megabytes(run, "up"), megabytes(run, "down", "broadcast")
    return {
        "run": run.name,
        "method": str(run.settings.get("method", "")),
        "rounds": f"{rounds}/{planned}" if planned and planned != rounds else f"{rounds}",
        "best": _percent(best(run)),
        "last": _percent(accuracies[-1] if accuracies.size else None),
        **{n: _percent(v[-1]) if (v := series(run, n)[1]).size else "" for n in MEASURES},
        f"round of {goal}": f"{first[0]}" if first else "-",
        f"MB to {goal}": _number(first[1]) if first else "-",
        "MB up": _number(up[-1]) if rounds else "-",
        "MB down": _number(down[-1]) if rounds else "-",
        "s/round": f"{np.median(seconds):.3g}" if seconds.size else "-",
    }


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def draw(runs: Sequence[Run], directory: str | Path) -> list[Path]:
    """The PNG files written to `directory`: those for which the runs hold something to show.

    Several runs share one plot, and are told apart by the settings in which they differ.
    """
    plots: list[tuple[str, Callable[[], Figure]]] = []
    named = list(zip(runs, legend(runs), strict=True))
    for name, curves, plot in (
        ("accuracy_by_round", _accuracy_by_round, _accuracy_plot),
        ("accuracy_by_megabytes", _accuracy_by_megabytes, _megabytes_plot),
        ("loss_by_round", _loss_by_round, _loss_plot),
        ("accuracy_over_clients", _accuracy_over_clients, _spread_plot),
    ):
        shown = [c for c in (curves(run, label) for run, label in named) if c.x.size]
        if shown:
            plots.append((name, functools.partial(plot, shown)))
    for run, label in named:
        if run.labels is not None and run.labels.sum():
            name = "labels_by_client" if len(runs) == 1 else f"labels_by_client_{run.name}"
            title = label if len(runs) > 1 else ""
            plots.append((name, functools.partial(_labels_plot, run.labels, title)))
    directory = look.place(directory)
    return [written(plot, directory / f"{name}.png") for name, plot in plots]


def place(directory: Path) -> Path:
    """Where a run's plots lie; ValueError if a link there leads elsewhere."""
    stored.check_no_link(directory / "plots", "choose a folder for the plots with --to DIR")
    return directory / "plots"


def legend(runs: Sequence[Run]) -> list[str]:
    """A label for each run: the settings in which the runs differ, or its folder's name."""
    settings = [{"config": run.config, **run.settings} for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one))
    differ = [n for n in names if len({repr(one.get(n)) for one in settings}) > 1]
    labels = [
        ", ".join(f"{n}={one[n]}" for n in differ if one.get(n) is not None) for one in settings
    ]
    return [
        (label if labels.count(label) == 1 else f"{label} ({run.name})") if label else run.name
        for label, run in zip(labels, runs, strict=True)
    ]


class Curve(NamedTuple):
    """One run's line in a plot, with what may stand behind it."""

    label: str
    x: np.ndarray  # [n]
    y: np.ndarray  # [n]
    band: tuple[np.ndarray, np.ndarray] | None = None  # low, high [n]
    faint: np.ndarray | None = None  # [n] before it was smoothed


def _accuracy_by_round(run: Run, label: str) -> Curve:
    return Curve(label, *series(run, "accuracy"))


def _accuracy_by_megabytes(run: Run, label: str) -> Curve:
    rounds, accuracies = series(run, "accuracy")
    sent = dict(zip((r["round"] for r in run.records), megabytes(run), strict=True))
    return Curve(label, np.array([sent[t] for t in rounds]), accuracies)


def _loss_by_round(run: Run, label: str) -> Curve:
    rounds, losses = series(run, "loss")
    width = max(1, len(rounds) // 50)
    if width == 1:
        return Curve(label, rounds, losses)
    return Curve(label, rounds, _smooth(losses, width), faint=losses)


def _smooth(y: np.ndarray, width: int) -> np.ndarray:
    """The mean over up to `width` neighbours around each value, fewer at the ends."""
    kernel = np.ones(width)
    return np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")


def _accuracy_over_clients(run: Run, label: str) -> Curve:
    p10, p50, p90 = (series(run, "personal", "accuracy", p) for p in ("p10", "p50", "p90"))
    return Curve(label, *p50, band=(p10[1], p90[1]))


def _accuracy_plot(curves: Sequence[Curve]) -> Figure:
    return _lines("Test accuracy by round", "round", "accuracy on the test set", curves, share=True)


def _megabytes_plot(curves: Sequence[Curve]) -> Figure:
    ends = [curve.x[-1] for curve in curves]
    unit, size = ("GB", 1e3) if max(ends) >= 1e4 else ("MB", 1.0)
    figure = _lines(
        "Test accuracy by communication",
        f"sent up and down by all clients together ({unit})",
        "accuracy on the test set",
        [curve._replace(x=curve.x / size) for curve in curves],
        share=True,
    )
    if min(ends) > 0 and max(ends) > 8 * min(ends):
        figure.axes[0].set_xscale("log")
        figure.axes[0].xaxis.set_major_formatter("{x:g}")
        figure.axes[0].set_xlabel(f"sent up and down by all clients together ({unit}, log scale)")
    return figure


def _loss_plot(curves: Sequence[Curve]) -> Figure:
    smoothed = any(curve.faint is not None for curve in curves)
    title = "Training loss by round" + (", and its running mean" if smoothed else "")
    return _lines(title, "round", "mean loss of the round's clients", curves)


def _spread_plot(curves: Sequence[Curve]) -> Figure:
    return _lines(
        "Accuracy over clients: median, and 10th to 90th percentile",
        "round",
        "accuracy on clients' own test data",
        curves,
        share=True,
    )


def _lines(title: str, x: str, y: str, curves: Sequence[Curve], *, share: bool = False) -> Figure:
    """Curves over one pair of axes, with a legend below if there are several."""
    columns = min(4, max(1, 90 // (8 + max(len(curve.label) for curve in curves))))
    below = 0.22 * -(-len(curves) // columns) if len(curves) > 1 else 0  # the legend, in inches
    figure = Figure(figsize=(7, 4.4 + below), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    for number, curve in enumerate(curves):
        _line(axes, curve, COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % 4])
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10], integer=x == "round"))
    if share:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(curves) > 1:
        figure.legend(loc="outside lower left", ncols=columns, handlelength=2.4, fontsize=9)
    return figure


def _line(axes: Axes, curve: Curve, colour: str, dash: str) -> None:
    marker = "o" if len(curve.x) <= 30 else None
    label = textwrap.fill(curve.label, 90)
    if curve.band is not None:
        axes.fill_between(curve.x, *curve.band, color=colour, alpha=0.12, linewidth=0)
        axes.plot(curve.x, np.stack(curve.band, 1), dash, color=colour, alpha=0.5, linewidth=0.8)
    if curve.faint is not None:
        axes.plot(curve.x, curve.faint, color=colour, alpha=0.25, linewidth=0.7, zorder=1)
    axes.plot(curve.x, curve.y, dash, color=colour, label=label, linewidth=1.8, marker=marker, ms=4)


def _labels_plot(labels: np.ndarray, title: str, most: int = 1000) -> Figure:
    """Who has which labels: a column a client, a row a label, and above it the client's size.

    Clients stand by their commonest label, then by its share, so that skew shows as a staircase;
    of more than `most` clients, that many are shown, evenly spaced in this order.
    """
    shares = labels / np.maximum(labels.sum(1, keepdims=True), 1)  # [N, classes]
    order = np.lexsort((-shares.max(1), shares.argmax(1)))
    if len(order) > most:
        order = order[np.linspace(0, len(order) - 1, most).round().astype(int)]
    clients = len(order)

    figure = Figure(figsize=(8, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 3.2))
    what = (
        f"{clients:,} of {len(labels):,} clients"
        if clients < len(labels)
        else f"{clients:,} clients"
    )
    above.set_title(textwrap.fill(f"Labels by client{': ' * bool(title)}{title}", 80))
    above.fill_between(
        np.arange(clients + 1) - 0.5,
        np.append(labels[order].sum(1), 0),
        step="post",
        color=COLOURS[0],
        linewidth=0,
    )
    above.set(ylabel="examples", ylim=(0, None))
    above.tick_params(labelbottom=False)
    picture = below.imshow(
        shares[order].T,
        aspect="auto",
        cmap="Blues",
        vmin=0,
        interpolation="nearest",
        origin="lower",
    )
    below.grid(visible=False)
    below.set(ylabel="label", xlabel=f"{what}, ordered by their commonest label")
    below.yaxis.set_major_locator(MaxNLocator(12, integer=True, min_n_ticks=1))
    bar = figure.colorbar(picture, ax=below, pad=0.015, format=PercentFormatter(1.0))
    bar.set_label("share of the client's examples")
    bar.outline.set_visible(False)
    return figure
