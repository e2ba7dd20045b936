"""The style of all tables and plots: colours, columns."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from jaxfed.simulation import stored

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colour-blind safe palette, without its yellow, which is hard to see on white."""


DASHES = ("-", "--", ":", "-.")


LOOK: Any = {  # not dict[str, ...]: matplotlib types each key
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": "#333333",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": "#666666",
    "ytick.color": "#666666",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "legend.frameon": False,
    "text.parse_math": False,
    "figure.constrained_layout.w_pad": 0.15,
    "figure.constrained_layout.h_pad": 0.12,
}


def aligned(lines: list[list[str]], left: tuple[str, ...]) -> str:
    """The lines as columns of text; the first line is the head, and only `left` is left-aligned."""
    columns = []
    for head, *cells in zip(*lines, strict=True):
        width = max(map(len, (head, *cells)))
        columns.append([c.ljust(width) if head in left else c.rjust(width) for c in (head, *cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def written(plot: Callable[[], Figure], path: Path) -> Path:
    """The path of the PNG file, once the plot is drawn there in the style of all plots."""
    image = io.BytesIO()
    with mpl.rc_context(LOOK):
        plot().savefig(image, dpi=150)
    return stored.save(path, image.getvalue(), ELSEWHERE)


ELSEWHERE = "put this right, or choose another folder for the plots with --to DIR"


def place(directory: str | Path) -> Path:
    """The folder for plots, which is made if need be; OSError if it cannot be."""
    directory = Path(directory)
    with stored.writing(directory, ELSEWHERE):
        directory.mkdir(parents=True, exist_ok=True)
    return directory
