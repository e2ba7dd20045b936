"""Plots of an analysis, in the style of all plots."""

from collections.abc import Mapping

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxfed.analysis import gradients, look, spectrum


def density(nodes: spectrum.Nodes, found: spectrum.Spectrum, points: int = 600) -> Figure:
    """The spectral density on a log scale, smoothed by 1/60 of the width of the plot."""
    values = np.asarray(nodes.values)
    low, high = min(0.0, values.min()), max(0.0, values.max())
    room = 0.08 * (high - low) or 1.0
    grid = np.linspace(low - room, high + room, points)
    smooth = spectrum.smooth(nodes, grid, (grid[-1] - grid[0]) / 60)
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot(
        title="Spectrum of the Hessian, all clients' examples",
        xlabel=f"eigenvalue (norm {float(found.norm):.3g}, "
        f"stable rank {float(found.stable_rank):.3g})",
        ylabel="density (log scale)",
        yscale="log",
    )
    axes.plot(grid, smooth, color=look.COLOURS[0], linewidth=1.8)
    axes.set_ylim(bottom=1e-6 * smooth.max())
    axes.yaxis.set_major_formatter("{x:g}")
    return figure


def stable_ranks(ids: np.ndarray, server: spectrum.Spectrum, clients: spectrum.Spectrum) -> Figure:
    """Each client's stable rank with its standard error, sorted, and the server's as a line."""
    ranks, errors = (np.asarray(x) for x in (clients.stable_rank, clients.stable_rank_error))
    order = np.argsort(ranks)
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.add_subplot(
        title="Stable rank of the Hessians",
        xlabel=f"{len(ids)} clients, by stable rank",
        ylabel="||H||_F^2 / ||H||_2^2",
    )
    axes.errorbar(
        np.arange(1, len(ids) + 1),
        ranks[order],
        errors[order],
        fmt="o",
        ms=4,
        linewidth=1,
        color=look.COLOURS[0],
        label="each client's loss",
    )
    level, error = float(server.stable_rank), float(server.stable_rank_error)
    colour = look.COLOURS[1]
    axes.axhspan(level - error, level + error, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(level, color=colour, linewidth=1.8, label="all clients' examples together")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes.legend()
    return figure


def cosines(found: Mapping[str, Mapping[str, jax.Array]]) -> Figure:
    """Cosines between clients: median, 10th and 90th percentile over all pairs, by kind."""
    rows = [
        (f"{name}, {kind}", np.percentile(gradients.pairs(gram), [10, 50, 90]), number)
        for number, (name, kinds) in enumerate(found.items())
        for kind, gram in kinds.items()
    ]
    figure = Figure(figsize=(7, 1.6 + 0.34 * len(rows)), layout="constrained")
    axes = figure.add_subplot(
        title="Likeness of clients", xlabel="cosine of two clients: median, 10th to 90th percentile"
    )
    for place, (_, (low, middle, high), number) in enumerate(rows):
        colour = look.COLOURS[number]
        axes.plot([low, high], [place, place], color=colour, linewidth=3, alpha=0.35)
        axes.plot(middle, place, "o", color=colour)
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.invert_yaxis()
    axes.set_xlim(right=1.02)
    return figure


def singular_values(layers: Mapping[str, jax.Array], most: int = 14) -> Figure:
    """The singular values of each layer's W_t - W_0, divided by the largest, for `most` layers."""
    figure = Figure(figsize=(7, 4.6), layout="constrained")
    axes = figure.add_subplot(
        title="Change of the weights during training",
        xlabel="index of the singular value",
        ylabel="singular value by the largest (log scale)",
        yscale="log",
    )
    for number, (path, sigma) in enumerate(list(layers.items())[:most]):
        colour = look.COLOURS[number % len(look.COLOURS)]
        dash = look.DASHES[number // len(look.COLOURS)]
        axes.plot(np.arange(1, len(sigma) + 1), sigma / sigma[0], dash, color=colour, label=path)
    axes.set_ylim(1e-4, 1.5)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    figure.legend(loc="outside lower left", ncols=3, fontsize=9)
    return figure
