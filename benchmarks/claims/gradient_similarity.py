"""Are low-rank approximations of clients' gradients more alike than the gradients themselves?

    python benchmarks/claims/gradient_similarity.py --data-dir DIR

The claim is that of FedLoRU's second version (arXiv 2409.12371v2). Clients of equal size share rows
drawn from the training set; at the start and after some epochs of training on all of it, each
client's gradient G_k of the hidden layers' kernels is compared, by the mean cosine over pairs of
clients, with its best approximation of rank r in each layer, T_r(G_k). The gain is

    mean cos(T_r(G_j), T_r(G_k)) - mean cos(G_j, G_k).

It is set against the gains of these null models (likeness.py), with S the gradient of all training
examples and E_k = G_k - S:

  white      S + Gaussian noise of E_k's norm in each layer: truncation removes noise that has no
             structure. A larger gain means that clients differ mostly in trailing directions, a
             smaller one that they differ in leading ones.
  rotated    S + E_k's own singular values on random singular vectors: noise as low in rank as the
             clients' own, but unrelated to S. A smaller gain means that clients differ in the very
             directions in which they agree; a larger one that they differ elsewhere.
  projected  A'G_k with one random A [in, r] for all clients, which is what factors with a common A
             see of the first step: low dimension without a choice of directions.
  unrelated  G_k's singular values on random singular vectors: matrices that share nothing. A gain
             would mean that truncation makes any two matrices alike.

A finished run, one seed of one network on one data set, is kept in the results' .json and not made
again; runs with other settings are refused. `--full` is for a GPU: ResNet-18 on whole images.
"""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

import intervals
import kept
import likeness
import numpy as np
import trained
from matplotlib.figure import Figure

from jaxfed.analysis import look

# {null model: what it means if the measured gain is (larger, smaller) than its own}
MEANING = {
    "white": (
        "clients differ more in trailing directions than noise without structure would",
        "clients differ in leading directions too, so truncation gains less than it would from "
        "noise of that size without structure",
    ),
    "rotated": (
        "clients differ less in the leading directions than noise of their own singular values "
        "at random directions would",
        "clients differ in the very directions in which they agree",
    ),
    "projected": (
        "it is the choice of the leading directions, not the low dimension, that makes them alike",
        "random directions, the same for all clients, keep more of their likeness",
    ),
    "unrelated": (
        "truncation makes clients more alike, and leaves unrelated matrices as they were",
        "truncation makes clients less alike, and leaves unrelated matrices as they were",
    ),
}
SPLITS = {1.0: "iid", 0.5: "half by label", 0.0: "by label"}
QUICK = {
    "networks": ("mlp", "cnn"),
    "data": ("fashion_mnist", "cifar10"),
    "epochs": (0, 1, 5),
    "ranks": (1, 2, 4, 8, 16, 32),
    "clients": 8,
}
FULL = {
    "networks": ("resnet18",),
    "data": ("cifar10", "cifar100"),
    "epochs": (0, 1, 5, 20, 45),
    "ranks": (1, 2, 4, 8, 16, 32, 64, 128),
    "clients": 20,
}


class Found(NamedTuple):
    """All runs of all cells: mean cosines, whole and at each rank."""

    axes: tuple[list[str], list[int], list[float], list[int]]  # cells, epochs, similarities, sizes
    ranks: list[int]
    cosines: dict[str, np.ndarray]  # {model: [seeds, cells, epochs, similarities, sizes, 1 + R]}

    def gain(self, model: str) -> np.ndarray:
        """[seeds, cells, epochs, similarities, sizes, R]; of `projected` over the whole gradient"""
        return self.cosines[model][..., 1:] - self.cosines[model][..., :1]

    def beyond(self, null: str) -> np.ndarray:
        """The measured gain less that of a null model."""
        return self.gain("measured") - self.gain(null)


def gathered(content: Mapping[str, Any], layer: str = likeness.ALL) -> Found:
    """The runs of the seeds that every cell has; a cell is data/network."""
    settings, names = content["settings"], sorted({k.rpartition("/")[0] for k in content["runs"]})
    axes = (names, settings["epochs"], settings["similarities"], settings["sizes"])
    seeds = sorted({int(k.rpartition("/")[2]) for k in content["runs"]})
    whole = [s for s in seeds if all(f"{cell}/{s}" in content["runs"] for cell in names)]

    def of(model: str) -> np.ndarray:
        values = [
            content["runs"][f"{cell}/{seed}"]["gradients"][f"{t}/{s}/{size}"][model][layer]
            for seed in whole
            for cell in names
            for t in axes[1]
            for s in axes[2]
            for size in axes[3]
        ]
        return np.reshape(values, (len(whole), *map(len, axes), -1))

    return Found(axes, settings["ranks"], {m: of(m) for m in ("measured", *likeness.NULLS)})


def interval(values: np.ndarray) -> str:
    """Mean over all but the first axis, and its interval over seeds [seeds, ...]."""
    mean, low, high = intervals.student(values.reshape(len(values), -1).mean(1))
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def by(found: Found, axes: tuple[int, int], shown: int) -> str:
    """Markdown: a row for each pair of values of two of the axes, the others averaged over.

    `shown` is the rank whose gain stands beside those of the null models.
    """
    at = found.ranks.index(shown)
    rows = []
    for i, first in enumerate(found.axes[axes[0]]):
        for j, second in enumerate(found.axes[axes[1]]):

            def cut(x: np.ndarray, i: int = i, j: int = j) -> np.ndarray:
                return np.take(np.take(x, [i], axis=axes[0] + 1), [j], axis=axes[1] + 1)

            cosines = cut(found.cosines["measured"]).mean(axis=(0, 1, 2, 3, 4))  # [1 + R]
            gains = [f"{cut(found.gain(null))[..., at].mean():+.3f}" for null in likeness.NULLS]
            rows.append(
                [_name(axes[0], first), _name(axes[1], second)]
                + [f"{c:.3f}" for c in cosines]
                + [interval(cut(found.gain("measured"))[..., at]), *gains]
            )
    head = ["", "", "whole", *(f"rank {r}" for r in found.ranks), f"gain at rank {shown}"]
    return intervals.table([*head, *likeness.NULLS], rows)


def _name(axis: int, value: Any) -> str:
    known = {1: f"epoch {value}", 2: SPLITS.get(value, f"s = {value}"), 3: f"{value} examples"}
    return known.get(axis, str(value))


def signs(values: np.ndarray) -> np.ndarray:
    """+1, -1 or 0 for each setting: is the interval over seeds [seeds, ...] above, below, around 0?

    Without adjustment for their number: of settings without any effect, 5 % are off by chance.
    """
    _, low, high = np.apply_along_axis(intervals.student, 0, values)
    return np.where(low > 0, 1, np.where(high < 0, -1, 0))


def counted(found: Found) -> str:
    """Markdown: in how many settings the gain, or what it is beyond a null's, is above zero."""
    rows = []
    for name, values in _compared(found).items():
        sign = signs(values)  # [cells, epochs, similarities, sizes, R]
        flat = sign.reshape(-1, len(found.ranks))
        rows.append([name, *(f"{(s > 0).sum()} / {(s < 0).sum()}" for s in flat.T), str(len(flat))])
    return intervals.table(["", *(f"rank {r}" for r in found.ranks), "settings"], rows)


def _compared(found: Found) -> dict[str, np.ndarray]:
    beyond = {f"gain beyond that of `{null}`": found.beyond(null) for null in likeness.NULLS}
    return {"gain": found.gain("measured"), **beyond}


def means(found: Found) -> str:
    """Markdown: the same, averaged over all settings."""
    rows = [
        [name, *(interval(values[..., i]) for i in range(len(found.ranks)))]
        for name, values in _compared(found).items()
    ]
    return intervals.table(["", *(f"rank {r}" for r in found.ranks)], rows)


def by_layer(content: Mapping[str, Any]) -> str:
    """Markdown: gains of each layer alone, averaged over all settings of its network."""
    rows = []
    for cell in gathered(content).axes[0]:
        alone = {k: r for k, r in content["runs"].items() if k.rpartition("/")[0] == cell}
        first = next(iter(next(iter(alone.values()))["gradients"].values()))
        for layer in first["measured"]:
            if layer == likeness.ALL:
                continue
            found = gathered({**content, "runs": alone}, layer)
            gains = (interval(found.gain("measured")[..., i]) for i in range(len(found.ranks)))
            rows.append([cell, layer, f"{found.cosines['measured'][..., 0].mean():.3f}", *gains])
    head = ["", "layer", "whole", *(f"gain at rank {r}" for r in gathered(content).ranks)]
    return intervals.table(head, rows)


def sent(content: Mapping[str, Any]) -> dict[float, np.ndarray]:
    """{s: mean cosines of updates [seeds, cells x epochs, 3]}: full, truncated, factors."""
    found, settings = gathered(content), content["settings"]
    seeds = sorted({int(k.rpartition("/")[2]) for k in content["runs"]})[: len(found.gain("white"))]
    names = ("full", "full, truncated", "factors")
    return {
        s: np.array(
            [
                [
                    [content["runs"][f"{cell}/{seed}"]["updates"][f"{t}/{s}"][n] for n in names]
                    for cell in found.axes[0]
                    for t in settings["epochs"]
                ]
                for seed in seeds
            ]
        )
        for s in settings["similarities"]
    }


def of_updates(content: Mapping[str, Any]) -> str:
    """Markdown: cosines of clients' updates after local work, a row a split."""
    rows = []
    for s, x in sent(content).items():
        gains = [interval(x[..., i] - x[..., 0]) for i in (1, 2)]
        rows.append([SPLITS.get(s, f"s = {s}"), *(f"{c:.3f}" for c in x.mean((0, 1))), *gains])
    rank = likeness.Local(*content["settings"]["local"]).rank
    head = ["", "full", f"full, at rank {rank}", f"factors of rank {rank}"]
    return intervals.table([*head, "gain of truncation", "gain of factors"], rows)


def verdict(values: np.ndarray, yes: str, no: str, unclear: str) -> str:
    """One of three words for numbers [seeds, ...], by the interval of their mean over seeds."""
    _, low, high = intervals.student(values.reshape(len(values), -1).mean(1))
    return yes if low > 0 else no if high < 0 else unclear


def findings(content: Mapping[str, Any]) -> list[str]:
    """The sentences of the page, each made from the numbers."""
    found = gathered(content)
    gain, lines = found.gain("measured"), []
    for i, r in enumerate(found.ranks):
        says = verdict(gain[..., i], "holds on average", "is reversed on average", "is undecided")
        sign = signs(gain[..., i])
        lines.append(
            f"Rank {r}: the claim {says}, with a gain of {interval(gain[..., i])}; it is above "
            f"zero in {(sign > 0).sum()} and below in {(sign < 0).sum()} of {sign.size} settings."
        )
    for null in likeness.NULLS:
        beyond = found.beyond(null)
        words = [
            f"{verdict(beyond[..., i], 'larger', 'smaller', 'no different')} at {r}"
            for i, r in enumerate(found.ranks)
        ]
        says = verdict(beyond, *MEANING[null], "the two cannot be told apart")
        lines.append(
            f"The gain beside that of `{null}`, by rank: {', '.join(words)}; by "
            f"{interval(beyond)} over all ranks: {says}."
        )
    at = gain.reshape(*gain.shape[:-1], -1).mean((0, -1))  # [cells, epochs, similarities, sizes]
    for axis, values in enumerate(found.axes):
        others = tuple(i for i in range(4) if i != axis)
        words = [f"{_name(axis, v)} {g:+.3f}" for v, g in zip(values, at.mean(others), strict=True)]
        lines.append(f"The gain, averaged over ranks: {', '.join(words)}.")
    moved = np.stack(list(sent(content).values()))  # [similarities, seeds, ..., 3]
    for i, name in ((1, "approximations of full updates"), (2, "updates of factors")):
        x = np.moveaxis(moved[..., i] - moved[..., 0], 0, 1)
        says = verdict(x, "more alike than", "less alike than", "not told apart in likeness from")
        lines.append(f"After local work, {name} are {says} full updates: {interval(x)}.")
    return lines


def draw(content: Mapping[str, Any]) -> Figure:
    """Gain against rank, a panel a split and client size: measured and null models."""
    found = gathered(content)
    _, _, splits, sizes = found.axes
    figure = Figure(figsize=(3.2 * len(sizes), 2.6 * len(splits) + 0.5), layout="constrained")
    grid = figure.subplots(len(splits), len(sizes), squeeze=False, sharex=True, sharey="row")
    for i, s in enumerate(splits):
        for j, size in enumerate(sizes):
            axes = grid[i, j]
            for number, model in enumerate(("measured", *likeness.NULLS)):
                gain = found.gain(model)[:, :, :, i, j].mean((1, 2))  # [seeds, R]
                low, high = np.array([intervals.student(g)[1:] for g in gain.T]).T
                colour, dash = look.COLOURS[number], "-" if number == 0 else "--"
                axes.fill_between(found.ranks, low, high, color=colour, alpha=0.2, linewidth=0)
                axes.plot(found.ranks, gain.mean(0), dash, color=colour, label=model)
            axes.axhline(0, color="#666666", linewidth=0.8)
            axes.set_xscale("log", base=2)
            axes.set_xticks(found.ranks, [str(r) for r in found.ranks])
            axes.set_title(f"{_name(2, s)}, {size} examples", fontsize=10)
    for axes in grid[-1]:
        axes.set_xlabel("rank")
    for axes in grid[:, 0]:
        axes.set_ylabel("gain in cosine")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    settings, found = content["settings"], gathered(content)
    work, training = likeness.Local(*settings["local"]), trained.Training(*settings["training"])
    about = []
    for cell in found.axes[0]:
        runs = [r for key, r in content["runs"].items() if key.rpartition("/")[0] == cell]
        about.append(trained.about(cell, runs))
    shown = 4 if 4 in found.ranks else found.ranks[0]
    parts = [
        "# Gradient similarity: are low-rank approximations of clients' gradients more alike?",
        kept.head(content, {}),
        "\n".join(about),
        f"{settings['clients']} clients of equal size; trained centrally by SGD in batches of "
        f"{training.batch}, learning rate {training.rate:g}, momentum {training.momentum:g}. The "
        "kernels of the hidden layers are compared, all together unless said otherwise. `by label`:"
        " all rows sorted by label and cut; `half by label`: half of them. Intervals are 95 %, by "
        f"Student's t over {len(found.gain('white'))} seeds; pairs of clients of one seed are one "
        "observation. Null models: see the head of the script.",
        "\n".join(f"* {line}" for line in findings(content)),
        f"![gain against rank]({picture})",
        "## Gains, averaged over all settings",
        means(found),
        "The part of the gain that is beyond a null model's is measured gain less null's gain.",
        "## In how many settings the interval is above / below zero",
        counted(found),
        "A setting is a network on a data set, an epoch, a split and a client size. One in twenty "
        "would be off by chance.",
        "## By split and client size",
        f"Mean cosines, whole and at each rank; gains at rank {shown}, measured and of the nulls.",
        by(found, (2, 3), shown),
        "## By network and epoch",
        by(found, (0, 1), shown),
        "## By layer",
        by_layer(content),
        "## Updates after local work",
        f"Clients of {work.size} examples, {work.epochs} epochs of batches of {work.batch}, "
        f"learning rate {work.rate:g}, on the hidden layers' kernels alone; factors of rank "
        f"{work.rank} with scale 2 and a common down factor, the up factor at zero.",
        of_updates(content),
    ]
    return "\n\n".join(parts) + "\n"


def settings_of(asked: argparse.Namespace) -> dict[str, Any]:
    """The settings on which results depend."""
    size = FULL if asked.full else QUICK
    given = {name: getattr(asked, name) for name in size}
    chosen = {name: size[name] if value is None else value for name, value in given.items()}
    if min(asked.sizes) < 2 or chosen["clients"] < 2:
        raise SystemExit("sizes and clients must be at least 2, or there is nothing to compare")
    return {
        **chosen,
        "sizes": asked.sizes,
        "similarities": asked.similarities,
        "training": trained.Training(100, 0.05, 0.9),
        "local": likeness.Local(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--full", action="store_true", help="whole images; for a GPU")
    parser.add_argument("--data", nargs="+", choices=list(trained.WHOLE))
    parser.add_argument("--networks", nargs="+", choices=list(trained.NETWORKS))
    parser.add_argument("--epochs", nargs="+", type=int, help="after which to compare; 0: before")
    parser.add_argument("--ranks", nargs="+", type=int)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--sizes", nargs="+", type=int, default=[20, 100, 500])
    parser.add_argument("--similarities", nargs="+", type=float, default=list(SPLITS))
    trained.add_arguments(parser, "gradient_similarity", seeds=5)
    asked = parser.parse_args()
    settings = settings_of(asked)
    cells = [f"{data}/{network}" for data in settings["data"] for network in settings["networks"]]
    trained.run(likeness.one, cells, asked, settings, page, draw)


if __name__ == "__main__":
    main()
