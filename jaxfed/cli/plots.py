"""Plots of runs, finished or still going on, from what they left in their folders."""

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from jaxfed.analysis import look
from jaxfed.analysis.look import COLOURS, DASHES, written
from jaxfed.cli import recorded, studies
from jaxfed.cli.recorded import Run, megabytes, series
from jaxfed.cli.studies import Group
from jaxfed.simulation import records, stored


class Curve(NamedTuple):
    """One run's line in a plot, with what may stand behind it."""

    label: str
    x: np.ndarray  # [n]
    y: np.ndarray  # [n]
    band: tuple[np.ndarray, np.ndarray] | None = None  # low, high [n]
    faint: np.ndarray | None = None  # [n] before it was smoothed


def draw(groups: Sequence[Group], directory: str | Path, measure: str | None = None) -> list[Path]:
    """The PNG files written to `directory`: those for which the runs hold something to show.

    Several groups share one plot. Of a group of several runs it shows the mean, and behind it the
    95 % interval of the mean.
    """
    plots: list[tuple[str, Callable[[], Figure]]] = []
    runs = [run for group in groups for run in group.runs]
    measure = studies.main_measure(runs, measure)
    share = studies.is_share(measure, runs)
    many = any(len(group.runs) > 1 for group in groups)
    for kind, shown in curves(measure, groups).items():
        name = "loss_by_round" if kind == "loss" else f"{measure.replace('/', '_')}_{kind}"
        over = many and kind in ("by_round", "by_megabytes", "loss")
        plots.append((name, partial(_titled, partial(PLOTS[kind], measure, share, shown), over)))
    tables = tables_of_labels(groups)
    for run, group, labels in tables:
        name = f"labels_by_client_{run}" if len(tables) > 1 else "labels_by_client"
        title = group if len(tables) > 1 else ""
        plots.append((name, partial(_labels_plot, labels, title)))
    directory = look.place(directory)
    names = recorded.numbered([name for name, _ in plots])  # a measure may be called "labels"
    return [
        written(plot, directory / f"{name}.png")
        for name, (_, plot) in zip(names, plots, strict=True)
    ]


def curves(measure: str, groups: Sequence[Group]) -> dict[str, list[Curve]]:
    """{kind: a curve for each group that has something to show}, for the kinds that have any."""
    made = {kind: [make(measure, group) for group in groups] for kind, make in CURVES.items()}
    found = {kind: [c for c in each if c.x.size] for kind, each in made.items()}
    return {kind: each for kind, each in found.items() if each}


def _titled(plot: Callable[[], Figure], many: bool) -> Figure:
    """The figure, with a word on its bands if they are over runs."""
    figure = plot()
    if many:
        axes = figure.axes[0]
        axes.set_title(f"{axes.get_title(loc='left')}; mean of runs, 95 % interval", loc="left")
    return figure


def place(directory: Path) -> Path:
    """Where a run's plots lie; ValueError if a link there leads elsewhere."""
    stored.check_no_link(directory / "plots", "choose a folder for the plots with --to DIR")
    return directory / "plots"


def _mean(group: Group, values: Callable[[Run], tuple[np.ndarray, np.ndarray]]) -> Curve:
    """The mean over a group's runs of values(run) = (rounds, values), at the rounds of all."""
    rounds, each = studies.common([values(run) for run in group.runs])
    if len(each) < 2:
        return Curve(group.name, rounds, each[0])
    found = [studies.statistic(column) for column in each.T]
    low, high = (np.array([getattr(s, end) for s in found]) for end in ("low", "high"))
    return Curve(group.name, rounds, each.mean(0), band=(low, high))


def _by_round(measure: str, group: Group) -> Curve:
    return _mean(group, lambda run: series(run, measure))


def _by_megabytes(measure: str, group: Group) -> Curve:
    curve = _by_round(measure, group)

    def sent(run: Run) -> tuple[np.ndarray, np.ndarray]:
        return np.array([r["round"] for r in run.records], int), megabytes(run)

    rounds, each = studies.common([sent(run) for run in group.runs])
    return curve._replace(x=each.mean(0)[np.isin(rounds, curve.x)])


def _loss_by_round(measure: str, group: Group) -> Curve:
    curve = _mean(group, lambda run: series(run, "loss"))
    width = max(1, len(curve.x) // 50)
    if width == 1:
        return curve
    if curve.band is not None:
        low, high = (_smooth(end, width) for end in curve.band)
        return curve._replace(y=_smooth(curve.y, width), band=(low, high))
    return curve._replace(y=_smooth(curve.y, width), faint=curve.y)


def _smooth(y: np.ndarray, width: int) -> np.ndarray:
    """The mean over up to `width` neighbours around each value, fewer at the ends."""
    kernel = np.ones(width)
    return np.convolve(y, kernel, "same") / np.convolve(np.ones_like(y), kernel, "same")


def _over_clients(measure: str, group: Group) -> Curve:
    name = "loss" if measure == "test_loss" else records.named(measure)
    p10, p50, p90 = (
        studies.common([series(run, f"personal/{name}/{p}") for run in group.runs])
        for p in ("p10", "p50", "p90")
    )
    band = (p10[1].mean(0), p90[1].mean(0))
    return Curve(group.name, p50[0], p50[1].mean(0), band=band)


def _measure_plot(measure: str, share: bool, curves: Sequence[Curve]) -> Figure:
    title = f"{studies.title(measure)} by round"
    return _lines(title, "round", _of_test_set(measure), curves, share=share)


def _of_test_set(measure: str) -> str:
    """What is on the axis of a measure."""
    if measure.startswith("personal/"):
        return f"{studies.in_words(measure)}, clients' own test data"
    return f"{studies.title(measure).lower()}, test set"


def _sent_plot(measure: str, share: bool, curves: Sequence[Curve]) -> Figure:
    ends = [curve.x[-1] for curve in curves]
    unit, size = ("GB", 1e3) if max(ends) >= 1e4 else ("MB", 1.0)
    figure = _lines(
        f"{studies.title(measure)} by communication",
        f"sent up and down by all clients together ({unit})",
        _of_test_set(measure),
        [curve._replace(x=curve.x / size) for curve in curves],
        share=share,
    )
    if is_wide(curves):
        figure.axes[0].set_xscale("log")
        figure.axes[0].xaxis.set_major_formatter("{x:g}")
        figure.axes[0].set_xlabel(f"sent up and down by all clients together ({unit}, log scale)")
    return figure


def is_wide(curves: Sequence[Curve]) -> bool:
    """True if some runs sent so much more than others that a logarithmic axis shows them best."""
    ends = [curve.x[-1] for curve in curves]
    return bool(min(curve.x.min() for curve in curves) > 0 and max(ends) > 8 * min(ends))


def _loss_plot(measure: str, share: bool, curves: Sequence[Curve]) -> Figure:
    smoothed = any(curve.faint is not None for curve in curves)
    title = "Training loss by round" + (", and its running mean" if smoothed else "")
    return _lines(title, "round", "mean loss of the round's clients", curves)


def _spread(measure: str, share: bool, curves: Sequence[Curve]) -> Figure:
    name = studies.in_words(measure)
    return _lines(
        f"{name.capitalize()} over clients: median, 10th to 90th percentile",
        "round",
        f"{name} on clients' own test data",
        curves,
        share=share,
    )


def _by_client(measure: str, group: Group) -> Curve:
    """The clients of all runs of a group, from the worst to the best, in the newest evaluation."""
    name = "loss" if measure == "test_loss" else records.named(measure)
    y = np.sort([x for run in group.runs for x in run.clients.get(name, []) if x is not None])
    return Curve(group.name, (np.arange(len(y)) + 0.5) / max(1, len(y)), y)


def _sorted(measure: str, share: bool, curves: Sequence[Curve]) -> Figure:
    name = studies.in_words(measure)
    figure = _lines(
        f"{name.capitalize()} of each client, in the newest evaluation",
        "share of clients at or below",
        f"{name} on a client's own test data",
        curves,
        share=share,
    )
    figure.axes[0].xaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


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


CURVES: dict[str, Callable[[str, Group], Curve]] = {
    "by_round": _by_round,
    "by_megabytes": _by_megabytes,
    "loss": _loss_by_round,
    "over_clients": _over_clients,
    "by_client": _by_client,
}
PLOTS: dict[str, Callable[[str, bool, Sequence[Curve]], Figure]] = {
    "by_round": _measure_plot,
    "by_megabytes": _sent_plot,
    "loss": _loss_plot,
    "over_clients": _spread,
    "by_client": _sorted,
}


def tables_of_labels(groups: Sequence[Group]) -> list[tuple[str, str, np.ndarray]]:
    """(the first run that has it, its group, who has which labels [N, classes]) of each table."""
    found: dict[tuple, tuple[str, str, np.ndarray]] = {}
    for group in groups:
        for run in group.runs:
            if run.labels is not None and run.labels.sum():
                key = run.labels.shape, run.labels.tobytes()
                found.setdefault(key, (run.name, group.name, run.labels))
    return list(found.values())


def by_label(labels: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(clients [n], shares of their labels [n, classes]), by their commonest label and its share.

    Of more than `most` clients, that many, evenly spaced in this order.
    """
    shares = labels / np.maximum(labels.sum(1, keepdims=True), 1)  # [N, classes]
    order = np.lexsort((-shares.max(1), shares.argmax(1)))
    if len(order) > most:
        order = order[np.linspace(0, len(order) - 1, most).round().astype(int)]
    return order, shares[order]


def _labels_plot(labels: np.ndarray, title: str, most: int = 1000) -> Figure:
    """Who has which labels: a column a client, a row a label, and above it the client's size.

    Clients stand by their commonest label, then by its share, so that skew shows as a staircase;
    of more than `most` clients, that many are shown, evenly spaced in this order.
    """
    order, shares = by_label(labels, most)
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
        shares.T,
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
