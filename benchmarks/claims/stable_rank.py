"""Do Hessians of fewer examples have larger stable rank? FedLoRU's Theorem 3.2 and Figure 2(a).

    python benchmarks/claims/stable_rank.py --data-dir DIR

A network is trained on all training examples. After some epochs, stable ranks ||H||_F^2 / ||H||_2^2
of the loss Hessian over all weights are measured on fresh random training examples: on a set of
500, and on the ten sets of 50 that make it up, as a server's loss is made up of ten clients'. The
claim (arXiv 2409.12371) is that the smaller set has the larger stable rank.

DIR holds fashion_mnist.npz and cifar10.npz (jaxfed.data.sources.npz), or the sets as TFDS prepares
them. A finished run, one seed of one network on one data set, is kept in the results' .json and not
made again; runs with other settings are refused. `--full` is for a GPU: ResNet-18 on whole images,
45 epochs. A part: `--data cifar10 --networks mlp --seeds 1 --results try`.

Stable ranks are estimates, by Lanczos' method and random probes. Of a network so small that its
Hessian fits into memory they are also computed from the Hessian itself, entry by entry:

    python benchmarks/claims/stable_rank.py --data-dir DIR --exact

The page has the results of both.
"""

import argparse
import functools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import intervals
import jax
import jax.numpy as jnp
import kept
import numpy as np
import trained
from jax import flatten_util
from matplotlib.figure import Figure

from jaxfed.algorithm import Cohort
from jaxfed.analysis import look, operators, spectrum

LATE = (1, 5, 10, 15, 20, 25, 30, 35, 40, 45)
# {network: (epochs at which to measure, sizes of the sets)}
QUICK = {
    "mlp": {"epochs": LATE, "sizes": (50, 500, 5000)},
    "cnn": {"epochs": LATE[:4], "sizes": (50, 500)},
}
SHORTER = {("fashion_mnist", "cnn"): {"epochs": LATE[:3]}}
EXACT = {"small": {"epochs": (1, 3, 10, 30), "sizes": (50, 500)}}
EXACTLY = "stable_rank_exact"  # the name of their results
MOST = 2000  # weights of a network whose Hessian is also computed whole
FULL = {
    "resnet18": {"epochs": LATE, "sizes": (50, 500, 5000)},
    "cnn_whole": {"epochs": LATE, "sizes": (50, 500, 5000)},
}

# The authors' three repeats, {epoch: ((n=50, n=500) of each)}, as they gave them in their reply to
# reviewers (OpenReview). From epoch 15 on the third is the first again, but for one digit.
PAPER = {
    1: ((1.441, 1.053), (9.672, 6.723), (1.441, 1.504)),
    5: ((17.562, 6.825), (3.853, 1.808), (106.194, 7.217)),
    10: ((263.935, 7.217), (49.407, 12.705), (5.578, 4.528)),
    15: ((67.226, 6.794), (9.481, 5.158), (67.226, 6.793)),
    20: ((64.468, 10.269), (25.455, 3.359), (64.468, 10.268)),
    25: ((72.798, 15.989), (6.100, 5.958), (72.798, 15.989)),
    30: ((7.232, 1.958), (105.749, 9.034), (7.233, 1.958)),
    35: ((912.511, 11.685), (108.535, 15.085), (91.251, 11.685)),
    40: ((3.484, 3.150), (14.925, 18.354), (3.485, 3.150)),
    45: ((372.260, 28.769), (6.248, 1.645), (372.263, 28.769)),
}


class Lanczos(NamedTuple):
    """How closely a stable rank is measured: each step and each probe is a product with H."""

    depth: int
    probes: int
    batch: int = 500


def subsets(made: trained.Prepared, size: int, how: Lanczos) -> Callable:
    """(theta, examples [m, ...], seed, epoch) -> the values below, on each of K = m / size sets.

    Of the Hessian over all weights: stable rank, its standard error, norm, and the lowest Ritz
    value by the norm. Of the losses l_i: their mean, and (sum l)^2 / sum l^2, by how many of the
    examples the loss is carried: all if they are equal, one if the rest is zero. If the network has
    at most `MOST` weights, `exact` is the stable rank by the Hessian's entries.
    """

    def measured(base: dict, theta: Any, k: Cohort) -> dict:
        loss = partial(made.task.loss, base)
        apply = operators.hessian(loss, theta, k, min(size, how.batch))
        found, _ = spectrum.measure(apply, theta, k.key, depth=how.depth, probes=how.probes)

        def alone(i: jax.Array) -> jax.Array:
            batch = k.data.at(i[None])
            return loss(theta, {**batch, "mask": jnp.ones(1)}, k.key)

        each = jax.lax.map(alone, jnp.arange(size), batch_size=min(size, how.batch))  # [size]
        whole = {"exact": entries(apply, theta)} if made.parameters <= MOST else {}
        return {
            **whole,
            "rank": found.stable_rank,
            "error": found.stable_rank_error,
            "norm": found.norm,
            "lowest": jnp.min(found.values) / found.norm,
            "loss": jnp.mean(each),
            "carried": jnp.sum(each) ** 2 / jnp.maximum(jnp.sum(each**2), 1e-30),
        }

    return trained.on_blocks(measured, size)


def entries(apply: operators.Operator, theta: Any) -> jax.Array:
    """||H||_F^2 / ||H||_2^2 of the Hessian, by its product with every unit vector."""
    flat, restore = flatten_util.ravel_pytree(theta)

    def column(unit: jax.Array) -> jax.Array:
        return flatten_util.ravel_pytree(apply(restore(unit)))[0]

    hessian = jax.lax.map(column, jnp.eye(flat.size), batch_size=32)  # [weights, weights]
    values = jnp.linalg.eigvalsh((hessian + hessian.T) / 2)
    return jnp.sum(values**2) / jnp.max(values**2)


@functools.cache
def programs(
    data: str,
    network: str,
    data_dir: str,
    training: trained.Training,
    sizes: tuple[int, ...],
    how: Lanczos,
) -> tuple[trained.Prepared, dict[int, Callable]]:
    """(the network, {size: `subsets`}), compiled once for all seeds."""
    made = trained.prepared(data, network, data_dir, training)
    return made, {size: subsets(made, size, how) for size in sizes}


def one(data: str, network: str, seed: int, data_dir: str, settings: Mapping[str, Any]) -> dict:
    """One run: the values after each epoch of its cell, {name: [epochs, ...]}."""
    started, cell = time.perf_counter(), settings["cells"][f"{data}/{network}"]
    training, how = trained.Training(*settings["training"]), Lanczos(*settings["lanczos"])
    sizes = tuple(cell["sizes"])
    made, look = programs(data, network, data_dir, training, sizes, how)
    theta, found = made.begin(seed), []
    for epoch in range(1, max(cell["epochs"]) + 1):
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        theta, loss = made.epoch(theta, made.examples, key)
        if epoch in cell["epochs"]:
            found.append({"train_loss": loss, "test": made.scores(theta, made.test)})
            found[-1] |= _on_subsets(made, look, theta, seed, epoch)
    stacked = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(found))
    about = {"parameters": made.parameters, "examples": len(made.examples["label"])}
    return {**trained.rounded(stacked), **about, "seconds": round(time.perf_counter() - started, 1)}


def _on_subsets(
    made: trained.Prepared, look: Mapping[int, Callable], theta: Any, seed: int, epoch: int
) -> dict:
    """{size: values of `subsets`}: the first `server` rows as its clients, and the sets beyond."""
    server, most = sorted(look)[1], max(look)
    n = len(made.examples["label"])
    chosen = np.random.default_rng([seed, epoch]).choice(n, most, replace=False)
    return {
        str(size): run(theta, trained.rows(made.examples, chosen[: max(size, server)]), seed, epoch)
        for size, run in look.items()
    }


# ---------------------------------------------------------------------- what was found


def exactly(content: Mapping[str, Any]) -> str:
    """Markdown: the small network's pairs, by the Hessian's entries and by Lanczos' method."""
    (cell,) = cells(content)
    sizes = sizes_of(content, cell)
    pairs, runs = of_cell(content, cell, sizes), _runs(content, cell)
    exact = pairs.small["exact"] > pairs.large["exact"]  # [seeds, epochs, K]
    off = np.concatenate(
        [np.abs(part["rank"] / part["exact"] - 1).ravel() for part in (pairs.small, pairs.large)]
    )
    rows = []
    for i, epoch in enumerate(pairs.epochs):
        ranks = [f"{np.median(part['exact'][:, i]):.2f}" for part in (pairs.small, pairs.large)]
        shares = [share(held[:, i].astype(float)) for held in (exact, pairs.held)]
        accuracy = np.median([r["test"]["accuracy"][i] for r in runs])
        rows.append([str(epoch), *ranks, *shares, f"{accuracy:.3f}"])
    head = ["epoch", *(f"stable rank on {s}, exact" for s in sizes), "share, exact"]
    listed = intervals.table([*head, "share, Lanczos", "test accuracy"], rows)
    return (
        f"{trained.about(cell, runs)}\n\n{listed}\n\n"
        f"Over these epochs {verdict(exact.astype(float))}: share {share(exact.astype(float))} by "
        f"the entries of the Hessians and {share(pairs.held)} by Lanczos' method, which orders "
        f"{100 * np.mean(exact == pairs.held):.0f} % of the pairs alike; it is "
        f"{100 * np.median(off):.1f} % off in the median and {100 * np.quantile(off, 0.95):.0f} % "
        "at the 95 % quantile. So the shares of this page are not made by the estimate."
    )


class Pairs(NamedTuple):
    """Of one cell: every set of the smaller size against the one that it is part of."""

    epochs: list[int]
    small: dict[str, np.ndarray]  # {name: [seeds, epochs, K]}
    large: dict[str, np.ndarray]  # {name: [seeds, epochs, 1]}

    @property
    def held(self) -> np.ndarray:
        """Whether the smaller set has the larger stable rank [seeds, epochs, K]; nan if H = 0."""
        a, b = self.small["rank"], self.large["rank"]
        return np.where(np.isfinite(a) & np.isfinite(b), a > b, np.nan)

    @property
    def decided(self) -> np.ndarray:
        """Whether they are more than two standard errors apart [seeds, epochs, K]."""
        a, b = self.small, self.large
        return abs(a["rank"] - b["rank"]) > 2 * np.hypot(a["error"], b["error"])


def of_cell(content: Mapping[str, Any], cell: str, sizes: Sequence[int]) -> Pairs:
    """The runs of a cell that are there, one set size against another."""
    runs = _runs(content, cell)
    small, large = (
        {name: np.array([r[str(size)][name] for r in runs]) for name in runs[0][str(size)]}
        for size in sizes
    )
    return Pairs(content["settings"]["cells"][cell]["epochs"], small, large)


def _runs(content: Mapping[str, Any], cell: str) -> list[dict]:
    return [r for key, r in content["runs"].items() if key.rpartition("/")[0] == cell]


def share(held: np.ndarray) -> str:
    """Of pairs [seeds, ...]: the share that holds, and its interval over seeds."""
    mean, low, high = intervals.bootstrap(np.nanmean(held.reshape(len(held), -1), axis=1))
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]"


def verdict(held: np.ndarray) -> str:
    """How often the smaller set has the larger stable rank, by the share's interval over seeds."""
    _, low, high = intervals.bootstrap(np.nanmean(held.reshape(len(held), -1), axis=1))
    if low > 0.9:
        return "the smaller set nearly always has the larger stable rank"
    if low > 0.5:
        return "the smaller set more often has the larger stable rank, with many exceptions"
    if high < 0.5:
        return "the larger set more often has the larger stable rank"
    return "neither order is clearly the more frequent one"


def cells(content: Mapping[str, Any]) -> list[str]:
    """Those of which there is a run, as data/network."""
    return [cell for cell in content["settings"]["cells"] if _runs(content, cell)]


def sizes_of(content: Mapping[str, Any], cell: str) -> list[int]:
    return content["settings"]["cells"][cell]["sizes"]


def compared(content: Mapping[str, Any]) -> str:
    """Markdown: the shares, a row a cell and one for all of them."""
    found = {cell: of_cell(content, cell, sizes_of(content, cell)[:2]) for cell in cells(content)}
    rows = [[cell, *_shares([pairs])] for cell, pairs in found.items()]
    rows.append(["all", *_shares(list(found.values()))])
    head = ["", "seeds", "(seed, epoch) pairs", "share, one small set a pair"]
    head += ["share, every small set", "median of the small sets", "beyond 2 standard errors"]
    return intervals.table([*head, "share of those"], rows)


def _shares(found: Sequence[Pairs]) -> list[str]:
    held, decided = together([p.held for p in found]), together([p.decided for p in found])
    first = together([p.held[..., :1] for p in found])
    middle = together([np.median(p.small["rank"], 2) > p.large["rank"][..., 0] for p in found])
    of_decided = np.where(decided > 0, held, np.nan)
    cells = [share(first), share(held), share(middle), f"{np.mean(decided):.2f}"]
    return [str(len(held)), str(first.size), *cells, share(of_decided)]


def together(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pairs of several cells [seeds, ...] by seed [seeds, n]; of the seeds that all cells have."""
    seeds = min(len(part) for part in parts)
    return np.concatenate([part[:seeds].reshape(seeds, -1) for part in parts], axis=1)


def by_epoch(content: Mapping[str, Any], cell: str) -> str:
    """Markdown: medians over seeds, a row an epoch."""
    runs, sizes = _runs(content, cell), sizes_of(content, cell)
    pairs = of_cell(content, cell, sizes[:2])
    rows = []
    for i, epoch in enumerate(pairs.epochs):
        ranks = [
            "{1:.2f} ({0:.2f} to {2:.2f})".format(
                *np.percentile([r[str(s)]["rank"][i] for r in runs], [25, 50, 75])
            )
            for s in sizes
        ]
        carried = [f"{np.median([r[str(s)]['carried'][i] for r in runs]):.1f}" for s in sizes]
        train = np.median([r["train_loss"][i] for r in runs])
        test = np.median([r["test"]["accuracy"][i] for r in runs])
        middle = [f"{np.nanmean(pairs.held[:, i]):.2f}", *carried]
        rows.append([str(epoch), *ranks, *middle, f"{train:.3g}", f"{test:.3f}"])
    head = ["epoch", *(f"stable rank on {s}" for s in sizes), "share"]
    head += [f"examples that carry the loss on {s}" for s in sizes]
    return intervals.table([*head, "training loss", "test accuracy"], rows)


def where(content: Mapping[str, Any]) -> str:
    """Markdown: the share among thirds of all pairs of a cell, by what might explain it."""
    rows = []
    for cell in cells(content):
        pairs = of_cell(content, cell, sizes_of(content, cell)[:2])
        for name, values in explanations(pairs).items():
            bounds = np.quantile(values, [1 / 3, 2 / 3])
            third = np.digitize(values, bounds)
            shares = [f"{np.nanmean(pairs.held[third == i]):.2f}" for i in range(3)]
            rows.append([cell, name, *(f"{b:.3g}" for b in bounds), *shares])
    return intervals.table(
        ["", "by", "1st third ends", "2nd ends", "share in 1st", "in 2nd", "in 3rd"], rows
    )


def explanations(pairs: Pairs) -> dict[str, np.ndarray]:
    """{name: [seeds, epochs, K]} of the smaller set of each pair."""
    whole = np.broadcast_to(pairs.large["norm"], pairs.small["norm"].shape)
    return {
        "loss on the small set": pairs.small["loss"],
        "examples that carry it": pairs.small["carried"],
        "its norm by the large set's": pairs.small["norm"] / np.maximum(whole, 1e-30),
        "its lowest eigenvalue by its norm": pairs.small["lowest"],
    }


def falling(content: Mapping[str, Any]) -> list[str]:
    """From the second size to the third, how often the stable rank falls."""
    return [
        f"{cell}: larger on {sizes[1]} than on {sizes[2]} in {share(pairs.held)} of the pairs"
        for cell in cells(content)
        if len(sizes := sizes_of(content, cell)) > 2
        for pairs in [of_cell(content, cell, sizes[1:3])]
    ]


def of_paper() -> list[str]:
    """Sentences on the authors' own three repeats."""
    held = np.array([[small > large for small, large in row] for row in PAPER.values()])
    distinct = held[:, :2].sum() + held[:3, 2].sum()
    total = held[:, :2].size + 3
    return [
        f"The authors' three repeats of 10 epochs: {held.sum()} of {held.size} pairs. The third "
        f"repeats the first from epoch 15 on; without those pairs {distinct} of {total}."
    ]


def findings(content: Mapping[str, Any]) -> list[str]:
    """The sentences of the page, each made from the numbers."""
    found = {cell: of_cell(content, cell, sizes_of(content, cell)[:2]) for cell in cells(content)}
    everything = together([p.held for p in found.values()])
    first, last = (together([p.held[:, [i]] for p in found.values()]) for i in (0, -1))
    failed, norms, most = everything == 0, *_extremes(found)
    return [
        f"All together: {verdict(everything)}; share {share(everything)} over "
        f"{len(everything)} seeds.",
        *(f"{cell}: {verdict(p.held)}; share {share(p.held)}." for cell, p in found.items()),
        f"It is a matter of when: at the first epoch measured, {verdict(first)} (share "
        f"{share(first)}); at the last, {verdict(last)} (share {share(last)}). So the order of the "
        "figure is not a general one, and the shares above depend on the epochs chosen.",
        *(_along(cell, p, sizes_of(content, cell)[0]) for cell, p in found.items()),
        f"Where the order is reversed, the small set's Hessian has {np.median(norms[failed]):.1f} "
        "times the norm of the large set's, in the median; elsewhere, "
        f"{np.median(norms[~failed]):.1f}.",
        *(f"{line}." for line in falling(content)),
        *of_paper(),
        f"The largest stable rank of any small set here is {most:.1f}; the authors' are up to "
        f"{max(pair[0] for row in PAPER.values() for pair in row):.1f}.",
    ]


def _extremes(found: Mapping[str, Pairs]) -> tuple[np.ndarray, float]:
    """(the norm of small sets by that of large ones [seeds, n], the largest rank of a small)."""
    norms = [p.small["norm"] / np.maximum(p.large["norm"], 1e-30) for p in found.values()]
    return together(norms), max(float(np.nanmax(p.small["rank"])) for p in found.values())


def _along(cell: str, pairs: Pairs, size: int) -> str:
    """A sentence: how the share and the losses change from the first epoch to the last."""
    share = np.nanmean(pairs.held, axis=(0, 2))  # [epochs]
    carried, loss, lowest = (
        np.median(pairs.small[name], axis=(0, 2)) for name in ("carried", "loss", "lowest")
    )
    return (
        f"{cell}: from epoch {pairs.epochs[0]} to {pairs.epochs[-1]} the share goes from "
        f"{share[0]:.2f} to {share[-1]:.2f}. Meanwhile the loss on a small set goes from "
        f"{loss[0]:.2g} to {loss[-1]:.2g}, carried first by {carried[0]:.1f} and then by "
        f"{carried[-1]:.1f} of its {size} examples, and the lowest eigenvalue from "
        f"{lowest[0]:.2f} to {lowest[-1]:.2f} of the norm (medians)."
    )


def draw(content: Mapping[str, Any]) -> Figure:
    """Stable rank against epoch: medians and quartiles over seeds (and small sets), by size."""
    shown = cells(content)
    columns = min(2, len(shown))
    figure = Figure(
        figsize=(4.6 * columns, 3.4 * math.ceil(len(shown) / columns)), layout="constrained"
    )
    grid = figure.subplots(math.ceil(len(shown) / columns), columns, squeeze=False)
    for axes, cell in zip(grid.flat, shown, strict=False):
        runs = _runs(content, cell)
        for size, colour in zip(sizes_of(content, cell), look.COLOURS, strict=False):
            ranks = np.array([r[str(size)]["rank"] for r in runs])  # [seeds, epochs, K]
            low, middle, high = np.nanpercentile(ranks, [25, 50, 75], axis=(0, 2))
            epochs = content["settings"]["cells"][cell]["epochs"]
            axes.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(epochs, middle, "o-", ms=3, color=colour, label=f"{size} examples")
        axes.set(title=cell, xlabel="epoch", yscale="log", ylabel="stable rank of the Hessian")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    grid.flat[0].legend()
    return figure


def shortened(content: Mapping[str, Any]) -> str:
    """A sentence on the epochs of the authors' figure that are left out here."""
    last = max(PAPER)
    early = [
        f"{cell} ends after epoch {epochs[-1]}"
        for cell in cells(content)
        if (epochs := content["settings"]["cells"][cell]["epochs"])[-1] < last
    ]
    return f"Of the authors' {last} epochs: {', '.join(early) or 'all'}." + (
        " Images are shrunk and training sets smaller where it is said above."
    )


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    settings = content["settings"]
    training = trained.Training(*settings["training"])
    how = Lanczos(*settings["lanczos"])
    parts = [
        "# Theorem 3.2 and Figure 2(a) of FedLoRU: stable rank on few and on many examples",
        kept.head(content, {}),
        "\n".join(trained.about(cell, _runs(content, cell)) for cell in cells(content)),
        "The theorem is about a limit: for one function and weights of ever higher dimension, of "
        "random Hessians whose noise falls with the number of examples. Trained networks of one "
        "size can neither prove nor refute it. What is measured is how general the order of the "
        "figure is: in which share of pairs the smaller set has the larger stable rank.",
        f"SGD in batches of {training.batch}, learning rate {training.rate:g}, momentum "
        f"{training.momentum:g} begun anew in each epoch, no augmentation, no weight decay. The "
        f"paper does not say which network and data its figure is of. Spectra: {how.depth} steps "
        f"of Lanczos' method and {how.probes} probes. Sets are fresh random training examples at "
        "each epoch; the small ones are the parts of the large one. Intervals are 95 %, by "
        "resampling seeds, as epochs and sets of one seed are not independent. "
        f"{shortened(content)}",
        "\n".join(f"* {line}" for line in findings(content)),
        f"![stable rank against epoch]({picture})",
        "## The share of pairs in which the smaller set has the larger stable rank",
        compared(content),
        "`one small set a pair` is the paper's comparison. The third share is that of (seed, epoch)"
        " pairs in which the median over the small sets is above the large set's.",
        *beside(),
        "## Where the smaller set has the larger stable rank",
        where(content),
        "Examples that carry the loss: (sum l)^2 / sum l^2 over the set's losses l.",
        *(f"## {cell} by epoch\n\n{by_epoch(content, cell)}" for cell in cells(content)),
        "Medians over seeds (and small sets), with quartiles.",
    ]
    return "\n\n".join(parts) + "\n"


def beside() -> list[str]:
    """The section on exact Hessians, if their results lie in the folder of results."""
    path = kept.path(EXACTLY)
    if not path.exists():
        return []
    return ["## By exact Hessians", exactly(json.loads(path.read_text()))]


def settings_of(asked: argparse.Namespace) -> dict[str, Any]:
    """The settings on which results depend; a cell is one network on one data set."""
    table = FULL if asked.full else EXACT if asked.exact else QUICK
    cells = {}
    sets = ("cifar10", "cifar100") if asked.full else ("fashion_mnist", "cifar10")
    sets = ("fashion_mnist",) if asked.exact else sets
    for data in asked.data or sets:
        for network in asked.networks or table:
            cell = dict(table.get(network, QUICK["mlp"]))
            if not asked.full:
                cell |= SHORTER.get((data, network), {})
            cells[f"{data}/{network}"] = cell
    for cell in cells.values():
        cell |= {"epochs": tuple(asked.epochs)} if asked.epochs else {}
        cell |= {"sizes": tuple(sorted(asked.sizes))} if asked.sizes else {}
        if len(cell["sizes"]) < 2 or cell["sizes"][1] % cell["sizes"][0]:
            raise SystemExit(f"sizes {cell['sizes']}: the second must be a multiple of the first")
    training = trained.Training(100, 0.05, 0.9)
    return {"cells": cells, "training": training, "lanczos": Lanczos(asked.depth, asked.probes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="ResNet-18, 45 epochs; for a GPU")
    parser.add_argument("--exact", action="store_true", help="the small network, by its Hessians")
    parser.add_argument("--data", nargs="+", choices=list(trained.WHOLE))
    parser.add_argument("--networks", nargs="+", choices=list(trained.NETWORKS))
    parser.add_argument("--epochs", nargs="+", type=int, help="after which to measure")
    parser.add_argument("--sizes", nargs="+", type=int, help="examples in a set")
    parser.add_argument("--depth", type=int, default=12, help="steps of Lanczos' method")
    parser.add_argument("--probes", type=int, default=5, help="of the Frobenius norm")
    trained.add_arguments(parser, "stable_rank", seeds=10)
    asked = parser.parse_args()
    settings = settings_of(asked)
    if asked.exact and asked.results == "stable_rank":
        asked.results = EXACTLY
    trained.run(one, list(settings["cells"]), asked, settings, page, draw)


if __name__ == "__main__":
    main()
