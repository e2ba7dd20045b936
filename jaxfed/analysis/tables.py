"""The report of an analysis: tables of plain text, and plots."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed.analysis import gradients, look, pictures, spectrum, updates


class Analysis(NamedTuple):
    """The measurements of one run after one round."""

    name: str  # of the run
    round: int
    part: str
    parameters: int  # n, of that part
    ids: np.ndarray  # [K]
    sizes: np.ndarray  # [K] examples of each
    server: spectrum.Spectrum  # of the loss over all clients' examples
    nodes: spectrum.Nodes  # of its density
    clients: spectrum.Spectrum  # [K, ...]
    gradients: dict[str, jax.Array]  # {"whole", "rank 1", ...: cosines [K, K]}
    updates: dict[str, jax.Array]  # likewise, of these clients' uploads in the next round
    discrepancy: jax.Array | None  # of those uploads; None if no factors are averaged
    layers: dict[str, jax.Array]  # {path: singular values of W_t - W_0}
    share: jax.Array | None  # of W_t - W_0 in the top eigenvectors; None unless part is "weights"
    top: int  # number of these eigenvectors


def tables(found: Analysis) -> str:
    """The whole analysis as tables of plain text."""
    over = {"weights": "all chosen weights", "trained": "trained parameters", "factors": "factors"}
    parts = [
        f"{found.name} after round {found.round}; Hessians over {over[found.part]}, "
        f"{found.parameters:,} numbers",
        _spectra(found),
        _likeness(found),
    ]
    if found.discrepancy is not None and len(found.ids) > 1:
        parts.append(
            f"averaging A and B separately loses {100 * float(found.discrepancy):.3g} % of the "
            "mean product"
        )
    parts += [_layers(found)] if found.layers else []
    if found.share is not None:
        random = min(1, found.top / found.parameters)
        parts.append(
            f"{float(found.share):.2%} of W_{found.round} - W_0 lies in the Hessian's top "
            f"{found.top} eigenvectors; of a random change {random:.2%} would"
        )
    return "\n\n".join(parts)


def _spectra(found: Analysis, most: int = 30) -> str:
    """One line for the server, one for each of the first `most` clients, and one sentence."""
    s, c = found.server, found.clients
    head = ("loss of", "examples", "norm", "+-", "squared F.", "+-", "stable rank", "+-")
    rows = [_spectrum_row("all clients", "-", s)]
    for i in range(min(most, len(found.ids))):
        mine = spectrum.Spectrum(*(x[i] for x in c))
        rows.append(_spectrum_row(f"client {found.ids[i]}", f"{found.sizes[i]}", mine))
    above = int(np.sum(np.asarray(c.stable_rank) > np.asarray(s.stable_rank)))
    summary = (
        f"the stable rank is above that of all clients together at {above} of {len(found.ids)} "
        f"clients; their median is {np.median(np.asarray(c.stable_rank)):.4g}"
    )
    return f"{look.aligned([list(head), *rows], left=head[:1])}\n{summary}"


def _spectrum_row(name: str, count: str, s: spectrum.Spectrum) -> list[str]:
    measured = (
        (s.norm, s.errors[0]),
        (s.squared, s.squared_error),
        (s.stable_rank, s.stable_rank_error),
    )
    return [
        name,
        count,
        *(cell for x, e in measured for cell in (f"{float(x):.4g}", f"{float(e):.2g}")),
    ]


def _likeness(found: Analysis) -> str:
    head = ["cosine of", "mean", "p10", "p50", "p90"]
    rows = [
        [f"{name}, {kind}", f"{each.mean():.4f}", *_percentiles(each)]
        for name, kinds in (("gradients", found.gradients), ("updates", found.updates))
        for kind, cosines in kinds.items()
        if (each := np.asarray(gradients.pairs(cosines))).size
    ]
    if not rows:
        return "there is only one client; give several to compare gradients and updates"
    return look.aligned([head, *rows], left=(head[0],))


def _percentiles(values: np.ndarray) -> list[str]:
    return [f"{v:.4f}" for v in np.percentile(values, [10, 50, 90])]


def _layers(found: Analysis) -> str:
    head = [f"W_{found.round} - W_0", "norm", "stable rank", "effective rank", "of"]
    rows = [
        [
            path,
            f"{float(jnp.linalg.norm(sigma)):.4g}",
            f"{float(updates.stable_rank(sigma)):.2f}",
            f"{float(updates.effective_rank(sigma)):.2f}",
            f"{len(sigma)}",
        ]
        for path, sigma in found.layers.items()
    ]
    return look.aligned([head, *rows], left=(head[0],))


def draw(found: Analysis, directory: str | Path) -> list[Path]:
    """The paths of the PNG files written to `directory`."""
    directory = look.place(directory)
    plots: dict[str, Callable] = {
        "hessian_density": partial(pictures.density, found.nodes, found.server),
        "stable_rank": partial(pictures.stable_ranks, found.ids, found.server, found.clients),
    }
    if len(found.ids) > 1:
        kinds = {"gradients": found.gradients, "updates": found.updates}
        plots["cosines"] = partial(pictures.cosines, kinds)
    if found.layers:
        plots["update_singular_values"] = partial(pictures.singular_values, found.layers)
    return [look.written(plot, directory / f"{name}.png") for name, plot in plots.items()]
