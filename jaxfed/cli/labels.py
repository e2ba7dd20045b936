"""Who has which labels, as inline SVG for the page of a report."""

import html
from collections.abc import Sequence

import numpy as np

from jaxfed.cli import plots
from jaxfed.cli.studies import Group

WIDTH, HEIGHT, SIZES = 560, 330, 50  # pixels; SIZES of the bars above
LEFT, RIGHT, BOTTOM = 56, 538, 296
CLIENTS, LABELS = 100, 100  # shown, at most
LEAST = 0.005  # share of a client's examples that is drawn


def cards(groups: Sequence[Group]) -> str:
    """A figure for each table of labels among the runs, under a heading; "" without any."""
    found = plots.tables_of_labels(groups)
    if not found:
        return ""
    figures = (_figure(run if len(found) > 1 else "", table) for run, _, table in found)
    return f'<h2>Labels by client</h2><div class="charts">{"".join(figures)}</div>'


def _figure(name: str, table: np.ndarray) -> str:
    """A column a client, a row a label, darker for a larger share; above it the clients' sizes."""
    order, shares = plots.by_label(table, CLIENTS)
    sizes, rows = table[order].sum(1), min(shares.shape[1], LABELS)
    wide, high = (RIGHT - LEFT) / len(order), (BOTTOM - SIZES - 8) / rows
    cells = [
        _rect(LEFT + i * wide, BOTTOM - (label + 1) * high, wide, high, shares[i, label])
        for i, label in np.argwhere(shares[:, :rows] > LEAST)
    ]
    heights = SIZES * sizes / max(1, sizes.max())
    bars = [_rect(LEFT + i * wide, SIZES - h, wide, h, 1) for i, h in enumerate(heights)]
    shown = f"{len(order):,} of {len(table):,}" if len(order) < len(table) else f"{len(table):,}"
    ends = [(BOTTOM - high / 2, 0), (BOTTOM - (rows - 0.5) * high, rows - 1)]
    words = "".join(
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        for y, label in ends[:rows]
    )
    about = f"{html.escape(name)}: " if name else ""
    return (
        f"<figure><figcaption>{about}labels of {shown} clients</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="labels by client" '
        f'fill="var(--c0)">{"".join(bars)}{"".join(cells)}{words}'
        f'<text x="{LEFT - 8}" y="12" text-anchor="end">{sizes.max():,}</text>'
        f'<text x="{(LEFT + RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        "clients, by their commonest label; above, how many examples they have</text></svg>"
        "</figure>"
    )


def _rect(x: float, y: float, width: float, height: float, share: float) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.2f}" height="{height:.2f}" '
        f'fill-opacity="{share:.2f}"/>'
    )
