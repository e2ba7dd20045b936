"""Are low-rank approximations of clients' gradients more alike than the gradients themselves?

    python benchmarks/claim_gradient_similarity.py --data-dir DIR

The claim is that of FedLoRU's second version (arXiv 2409.12371v2). Clients of equal size share rows
drawn from the training set; at the start and after some epochs of training on all of it, each
client's gradient G_k of the hidden layers' kernels is compared, by the mean cosine over pairs of
clients, with its best approximation of rank r in each layer, T_r(G_k). The gain is

    mean cos(T_r(G_j), T_r(G_k)) - mean cos(G_j, G_k).

It is set against what these null models give, with S the gradient of all training examples and
E_k = G_k - S:

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
import functools
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import trained
from matplotlib.figure import Figure

from jaxfed import local, lowrank
from jaxfed.algorithm import Cohort
from jaxfed.analysis import gradients, look, operators
from jaxfed.data import partition
from jaxfed.lowrank import Theta
from jaxfed.simulation import engine

NULLS = ("white", "rotated", "projected", "unrelated")
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
ALL = "all"
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


class Local(NamedTuple):
    """Local work of the clients whose updates are compared; factors have scale 2."""

    size: int = 100
    epochs: int = 2
    batch: int = 20
    rate: float = 0.05
    rank: int = 4


# ---------------------------------------------------------------------- how alike


def alike(stacked: Mapping[str, jax.Array], ranks: Sequence[int]) -> dict[str, jax.Array]:
    """{layer, and `all` together: mean cosine over pairs, whole and at each rank [1 + R]}."""
    # One client after another: several SVDs of stacks of matrices in one program were seen to wait
    # for each other for ever on a CPU of two threads (jaxlib 0.10.2).
    low = jax.lax.map(partial(gradients.low_rank, rank=max(ranks)), dict(stacked))
    grams = {
        p: [gradients.inner({p: w})]
        + [gradients.inner_of_products(_layer(gradients.leading(low, r), p)) for r in ranks]
        for p, w in stacked.items()
    }
    return _cosines(grams)


def projected(
    stacked: Mapping[str, jax.Array], ranks: Sequence[int], key: jax.Array
) -> dict[str, jax.Array]:
    """As `alike`, but of A'G_k, with a common random A of r orthonormal columns in each layer."""
    grams = {}
    for i, (p, w) in enumerate(stacked.items()):
        g = _matrices(w)  # [K, m, n]
        a = haar(jax.random.fold_in(key, i), g.shape[1], min(max(ranks), g.shape[1]))
        seen = jnp.einsum("mr,kmn->krn", a, g)
        grams[p] = [gradients.inner(g)] + [gradients.inner(seen[:, :r]) for r in ranks]
    return _cosines(grams)


def _layer(low: Theta, path: str) -> Theta:
    return Theta({}, {path: low.factors[path]})


def _cosines(grams: Mapping[str, list[jax.Array]]) -> dict[str, jax.Array]:
    together = {ALL: [sum(layer) for layer in zip(*grams.values(), strict=True)], **grams}
    return {
        p: jnp.stack([jnp.mean(gradients.pairs(gradients.cosines(g))) for g in of])
        for p, of in together.items()
    }


def _matrices(w: jax.Array) -> jax.Array:
    """[K, in..., out] -> [K, m, n]."""
    return w.reshape(len(w), -1, w.shape[-1])


# ---------------------------------------------------------------------- null models


def haar(key: jax.Array, rows: int, columns: int) -> jax.Array:
    """Orthonormal columns [rows, columns], uniform over all such."""
    q, r = jnp.linalg.qr(jax.random.normal(key, (rows, columns)))
    return q * jnp.sign(jnp.diag(r))


def white(w: jax.Array, key: jax.Array) -> jax.Array:
    """A Gaussian matrix of w's shape and norm."""
    noise = jax.random.normal(key, w.shape)
    return noise * (jnp.linalg.norm(w) / jnp.linalg.norm(noise))


def rotated(w: jax.Array, key: jax.Array) -> jax.Array:
    """w's singular values on uniformly random singular vectors; w [in..., out]."""
    left, right = jax.random.split(key)
    matrix = w.reshape(-1, w.shape[-1])
    sigma = jnp.linalg.svd(matrix, compute_uv=False)
    u, v = (haar(k, n, len(sigma)) for k, n in zip((left, right), matrix.shape, strict=True))
    return ((u * sigma) @ v.T).reshape(w.shape)


def redrawn(
    draw: Callable[[jax.Array, jax.Array], jax.Array],
    stacked: Mapping[str, jax.Array],
    key: jax.Array,
) -> dict[str, jax.Array]:
    """Each client's matrix in each layer drawn anew by `draw`, [K, ...]."""
    return {
        p: jax.lax.map(
            lambda x: draw(*x), (w, jax.random.split(jax.random.fold_in(key, i), len(w)))
        )
        for i, (p, w) in enumerate(stacked.items())
    }


def compared(
    found: Mapping[str, jax.Array],
    signal: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    ranks: Sequence[int],
) -> dict[str, dict[str, jax.Array]]:
    """{"measured" or a null model: `alike`} of gradients [K, ...], with S = `signal` [...]."""
    rest = {p: g - signal[p] for p, g in found.items()}
    keys = jax.random.split(key, len(NULLS))
    noises = [redrawn(draw, rest, k) for draw, k in zip((white, rotated), keys[:2], strict=True)]
    with_signal = [{p: signal[p] + e for p, e in noise.items()} for noise in noises]
    return {
        "measured": alike(found, ranks),
        "white": alike(with_signal[0], ranks),
        "rotated": alike(with_signal[1], ranks),
        "projected": projected(found, ranks, keys[2]),
        "unrelated": alike(redrawn(rotated, found, keys[3]), ranks),
    }


# ---------------------------------------------------------------------- clients


def clients(labels: np.ndarray, count: int, size: int, s: float, seed: Sequence[int]) -> np.ndarray:
    """Rows of `count` clients of `size` examples each, one client's after another's.

    A fraction s of each label is dealt at random, the rest by label (partition.label_similarity).
    """
    rng = np.random.default_rng(seed)
    pool = rng.choice(len(labels), count * size, replace=False)
    parts = partition.label_similarity(labels[pool], count, s=s, seed=int(rng.integers(2**31)))
    return pool[np.concatenate(parts)]


class Programs(NamedTuple):
    """Compiled once for all seeds."""

    made: trained.Prepared
    signal: Callable  # (theta, examples) -> S
    gradients: dict[int, Callable]  # {size: (theta, examples, seed, moment) -> [K, ...]}
    compared: Callable
    updates: Callable  # (theta, examples, seed, moment) -> {what: mean cosine}


@functools.cache
def programs(
    data: str,
    network: str,
    data_dir: str,
    training: trained.Training,
    work: Local,
    sizes: tuple[int, ...],
    ranks: tuple[int, ...],
) -> Programs:
    made = trained.prepared(data, network, data_dir, training)
    select = lowrank.Select(factors=made.network.hidden, rank=work.rank, alpha=2 * work.rank)
    factored = trained.classifier(data, network, data_dir, select)

    def gradient(base: dict, theta: Theta, k: Any) -> dict:
        found = operators.gradient(partial(made.task.loss, base), theta, k, 500).full
        return {p: w for p, w in found.items() if re.search(made.network.hidden, p)}

    def signal(theta: Theta, examples: dict) -> dict:
        return gradient({}, theta, operators.union(examples, jax.random.key(0)))

    def of_clients(size: int) -> Callable:
        run = operators.of_clients(gradient, _verb())
        return jax.jit(lambda theta, x, seed, t: run({}, theta, trained.blocks(x, size, seed, t)))

    return Programs(
        made,
        jax.jit(signal),
        {size: of_clients(size) for size in sizes},
        jax.jit(partial(compared, ranks=ranks)),
        jax.jit(partial(updates, made, factored.init, work)),
    )


def _verb() -> Callable:
    return engine.for_each_client(engine.machine(1), uniform=True)


def updates(
    made: trained.Prepared,
    factors: Callable,
    work: Local,
    theta: Theta,
    examples: dict,
    seed: jax.Array,
    moment: jax.Array,
) -> dict[str, jax.Array]:
    """Mean cosines of what clients would send after local work on the hidden layers' kernels.

    `full`: the kernels themselves are trained (FedAvg), and their best approximations of rank r.
    `factors`: factors of rank r beside them, up zero (FedLoRA), as changes of the kernels.
    """
    optimizer, local_work = optax.sgd(work.rate), local.Work(work.batch, epochs=work.epochs)

    def train(base: dict, theta: Theta, k: Cohort) -> Theta:
        loss = partial(made.task.loss, base)
        return optax.tree.sub(local.sgd(loss, optimizer, theta, k, local_work)[0], theta)

    run = operators.of_clients(train, _verb())
    cohort = trained.blocks(examples, work.size, seed, moment)
    frozen, kernels = operators.only({}, theta, lambda p: bool(re.search(made.network.hidden, p)))
    whole = alike(run(frozen, kernels, cohort).full, (work.rank,))[ALL]
    begun = factors(cohort.round_key)[1]
    moved = gradients.moved(begun, run(theta.full, begun, cohort))
    sent = gradients.cosines(gradients.inner_of_products(moved))
    return {
        "full": whole[0],
        "full, truncated": whole[1],
        "factors": jnp.mean(gradients.pairs(sent)),
    }


def one(data: str, network: str, seed: int, data_dir: str, settings: Mapping[str, Any]) -> dict:
    """One run: {"gradients": {"epoch/s/size": {model: {layer: [1 + R]}}}, "updates": ...}."""
    begun, work = time.perf_counter(), Local(*settings["local"])
    sizes, ranks = tuple(settings["sizes"]), tuple(settings["ranks"])
    training = trained.Training(*settings["training"])
    run = programs(data, network, data_dir, training, work, sizes, ranks)
    made, labels = run.made, trained.read(data, data_dir).train["label"]
    theta, alike, sent, losses = made.begin(seed), {}, {}, []
    for epoch in range(max(settings["epochs"]) + 1):
        if epoch:
            key = jax.random.fold_in(jax.random.key(seed), epoch)
            theta, loss = made.epoch(theta, made.examples, key)
            losses.append(loss)
        if epoch not in settings["epochs"]:
            continue
        signal = run.signal(theta, made.examples)
        for s in settings["similarities"]:

            def drawn(size: int, s: float = s, epoch: int = epoch) -> dict:
                chosen = clients(labels, settings["clients"], size, s, [seed, epoch, size])
                return trained.rows(made.examples, chosen)

            for size in sizes:
                found = run.gradients[size](theta, drawn(size), seed, epoch)
                key = jax.random.fold_in(jax.random.key(seed), 1000 * epoch + size)
                alike[f"{epoch}/{s}/{size}"] = run.compared(found, signal, key)
            sent[f"{epoch}/{s}"] = run.updates(theta, drawn(work.size), seed, epoch)
    found = {"gradients": alike, "updates": sent, "losses": losses}
    return {
        **trained.rounded(jax.device_get(found)),
        "parameters": made.parameters,
        "examples": len(labels),
        "seconds": round(time.perf_counter() - begun, 1),
    }


# ---------------------------------------------------------------------- what was found


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


def gathered(kept: Mapping[str, Any], layer: str = ALL) -> Found:
    """The runs of the seeds that every cell has; a cell is data/network."""
    settings, names = kept["settings"], sorted({k.rpartition("/")[0] for k in kept["runs"]})
    axes = (names, settings["epochs"], settings["similarities"], settings["sizes"])
    seeds = sorted({int(k.rpartition("/")[2]) for k in kept["runs"]})
    whole = [s for s in seeds if all(f"{cell}/{s}" in kept["runs"] for cell in names)]

    def of(model: str) -> np.ndarray:
        values = [
            kept["runs"][f"{cell}/{seed}"]["gradients"][f"{t}/{s}/{size}"][model][layer]
            for seed in whole
            for cell in names
            for t in axes[1]
            for s in axes[2]
            for size in axes[3]
        ]
        return np.reshape(values, (len(whole), *map(len, axes), -1))

    return Found(axes, settings["ranks"], {m: of(m) for m in ("measured", *NULLS)})


def interval(values: np.ndarray) -> str:
    """Mean over all but the first axis, and its interval over seeds [seeds, ...]."""
    mean, low, high = trained.student(values.reshape(len(values), -1).mean(1))
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def by(found: Found, axes: tuple[int, int], shown: int) -> str:
    """Markdown: a row for each pair of values of two of the axes, the others averaged over.

    `shown` is the rank whose gain is told beside those of the null models.
    """
    at = found.ranks.index(shown)
    rows = []
    for i, first in enumerate(found.axes[axes[0]]):
        for j, second in enumerate(found.axes[axes[1]]):

            def cut(x: np.ndarray, i: int = i, j: int = j) -> np.ndarray:
                return np.take(np.take(x, [i], axis=axes[0] + 1), [j], axis=axes[1] + 1)

            cosines = cut(found.cosines["measured"]).mean(axis=(0, 1, 2, 3, 4))  # [1 + R]
            gains = [f"{cut(found.gain(null))[..., at].mean():+.3f}" for null in NULLS]
            rows.append(
                [_name(axes[0], first), _name(axes[1], second)]
                + [f"{c:.3f}" for c in cosines]
                + [interval(cut(found.gain("measured"))[..., at]), *gains]
            )
    head = ["", "", "whole", *(f"rank {r}" for r in found.ranks), f"gain at rank {shown}"]
    return trained.table([*head, *NULLS], rows)


def _name(axis: int, value: Any) -> str:
    known = {1: f"epoch {value}", 2: SPLITS.get(value, f"s = {value}"), 3: f"{value} examples"}
    return known.get(axis, str(value))


def signs(values: np.ndarray) -> np.ndarray:
    """+1, -1 or 0 for each setting: is the interval over seeds [seeds, ...] above, below, around 0?

    Without adjustment for their number: of settings without any effect, 5 % are off by chance.
    """
    _, low, high = np.apply_along_axis(trained.student, 0, values)
    return np.where(low > 0, 1, np.where(high < 0, -1, 0))


def counted(found: Found) -> str:
    """Markdown: in how many settings the gain, or what it is beyond a null's, is above zero."""
    rows = []
    for name, values in _compared(found).items():
        sign = signs(values)  # [cells, epochs, similarities, sizes, R]
        flat = sign.reshape(-1, len(found.ranks))
        rows.append([name, *(f"{(s > 0).sum()} / {(s < 0).sum()}" for s in flat.T), str(len(flat))])
    return trained.table(["", *(f"rank {r}" for r in found.ranks), "settings"], rows)


def _compared(found: Found) -> dict[str, np.ndarray]:
    beyond = {f"gain beyond that of `{null}`": found.beyond(null) for null in NULLS}
    return {"gain": found.gain("measured"), **beyond}


def means(found: Found) -> str:
    """Markdown: the same, averaged over all settings."""
    rows = [
        [name, *(interval(values[..., i]) for i in range(len(found.ranks)))]
        for name, values in _compared(found).items()
    ]
    return trained.table(["", *(f"rank {r}" for r in found.ranks)], rows)


def by_layer(kept: Mapping[str, Any]) -> str:
    """Markdown: gains of each layer alone, averaged over all settings of its network."""
    rows = []
    for cell in gathered(kept).axes[0]:
        alone = {k: r for k, r in kept["runs"].items() if k.rpartition("/")[0] == cell}
        first = next(iter(next(iter(alone.values()))["gradients"].values()))
        for layer in first["measured"]:
            if layer == ALL:
                continue
            found = gathered({**kept, "runs": alone}, layer)
            gains = (interval(found.gain("measured")[..., i]) for i in range(len(found.ranks)))
            rows.append([cell, layer, f"{found.cosines['measured'][..., 0].mean():.3f}", *gains])
    head = ["", "layer", "whole", *(f"gain at rank {r}" for r in gathered(kept).ranks)]
    return trained.table(head, rows)


def sent(kept: Mapping[str, Any]) -> dict[float, np.ndarray]:
    """{s: mean cosines of updates [seeds, cells x epochs, 3]}: full, truncated, factors."""
    found, settings = gathered(kept), kept["settings"]
    seeds = sorted({int(k.rpartition("/")[2]) for k in kept["runs"]})[: len(found.gain("white"))]
    names = ("full", "full, truncated", "factors")
    return {
        s: np.array(
            [
                [
                    [kept["runs"][f"{cell}/{seed}"]["updates"][f"{t}/{s}"][n] for n in names]
                    for cell in found.axes[0]
                    for t in settings["epochs"]
                ]
                for seed in seeds
            ]
        )
        for s in settings["similarities"]
    }


def of_updates(kept: Mapping[str, Any]) -> str:
    """Markdown: cosines of clients' updates after local work, a row a split."""
    rows = []
    for s, x in sent(kept).items():
        gains = [interval(x[..., i] - x[..., 0]) for i in (1, 2)]
        rows.append([SPLITS.get(s, f"s = {s}"), *(f"{c:.3f}" for c in x.mean((0, 1))), *gains])
    rank = Local(*kept["settings"]["local"]).rank
    head = ["", "full", f"full, at rank {rank}", f"factors of rank {rank}"]
    return trained.table([*head, "gain of truncation", "gain of factors"], rows)


def verdict(values: np.ndarray, yes: str, no: str, unclear: str) -> str:
    """One of three words for numbers [seeds, ...], by the interval of their mean over seeds."""
    _, low, high = trained.student(values.reshape(len(values), -1).mean(1))
    return yes if low > 0 else no if high < 0 else unclear


def findings(kept: Mapping[str, Any]) -> list[str]:
    """The sentences of the page, each made from the numbers."""
    found = gathered(kept)
    gain, lines = found.gain("measured"), []
    for i, r in enumerate(found.ranks):
        says = verdict(gain[..., i], "holds on average", "is reversed on average", "is undecided")
        sign = signs(gain[..., i])
        lines.append(
            f"Rank {r}: the claim {says}, with a gain of {interval(gain[..., i])}; it is above "
            f"zero in {(sign > 0).sum()} and below in {(sign < 0).sum()} of {sign.size} settings."
        )
    for null in NULLS:
        beyond = found.beyond(null)
        told = [
            f"{verdict(beyond[..., i], 'larger', 'smaller', 'no different')} at {r}"
            for i, r in enumerate(found.ranks)
        ]
        says = verdict(beyond, *MEANING[null], "the two cannot be told apart")
        lines.append(
            f"The gain beside that of `{null}`, by rank: {', '.join(told)}; by "
            f"{interval(beyond)} over all ranks: {says}."
        )
    at = gain.reshape(*gain.shape[:-1], -1).mean((0, -1))  # [cells, epochs, similarities, sizes]
    for axis, values in enumerate(found.axes):
        others = tuple(i for i in range(4) if i != axis)
        told = [f"{_name(axis, v)} {g:+.3f}" for v, g in zip(values, at.mean(others), strict=True)]
        lines.append(f"The gain, averaged over ranks: {', '.join(told)}.")
    moved = np.stack(list(sent(kept).values()))  # [similarities, seeds, ..., 3]
    for i, name in ((1, "approximations of full updates"), (2, "updates of factors")):
        x = np.moveaxis(moved[..., i] - moved[..., 0], 0, 1)
        says = verdict(x, "more alike than", "less alike than", "not told apart in likeness from")
        lines.append(f"After local work, {name} are {says} full updates: {interval(x)}.")
    return lines


def draw(kept: Mapping[str, Any]) -> Figure:
    """Gain against rank, a panel a split and client size: measured and null models."""
    found = gathered(kept)
    _, _, splits, sizes = found.axes
    figure = Figure(figsize=(3.2 * len(sizes), 2.6 * len(splits) + 0.5), layout="constrained")
    grid = figure.subplots(len(splits), len(sizes), squeeze=False, sharex=True, sharey="row")
    for i, s in enumerate(splits):
        for j, size in enumerate(sizes):
            axes = grid[i, j]
            for number, model in enumerate(("measured", *NULLS)):
                gain = found.gain(model)[:, :, :, i, j].mean((1, 2))  # [seeds, R]
                low, high = np.array([trained.student(g)[1:] for g in gain.T]).T
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


def page(kept: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    settings, found = kept["settings"], gathered(kept)
    work, training = Local(*settings["local"]), trained.Training(*settings["training"])
    about = []
    for cell in found.axes[0]:
        runs = [r for key, r in kept["runs"].items() if key.rpartition("/")[0] == cell]
        about.append(trained.about(cell, runs))
    shown = 4 if 4 in found.ranks else found.ranks[0]
    parts = [
        "# Gradient similarity: are low-rank approximations of clients' gradients more alike?",
        "\n".join(
            f"* {k}: {v}" for k, v in ({"command": kept["command"]} | kept["machine"]).items()
        ),
        "\n".join(about),
        f"{settings['clients']} clients of equal size; trained centrally by SGD in batches of "
        f"{training.batch}, learning rate {training.rate:g}, momentum {training.momentum:g}. The "
        "kernels of the hidden layers are compared, all together unless said otherwise. `by label`:"
        " all rows sorted by label and cut; `half by label`: half of them. Intervals are 95 %, by "
        f"Student's t over {len(found.gain('white'))} seeds; pairs of clients of one seed are one "
        "observation. Null models: see the head of the script.",
        "\n".join(f"* {line}" for line in findings(kept)),
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
        by_layer(kept),
        "## Updates after local work",
        f"Clients of {work.size} examples, {work.epochs} epochs of batches of {work.batch}, "
        f"learning rate {work.rate:g}, on the hidden layers' kernels alone; factors of rank "
        f"{work.rank} with scale 2 and a common down factor, the up factor at zero.",
        of_updates(kept),
    ]
    return "\n\n".join(parts) + "\n"


def settings_of(asked: argparse.Namespace) -> dict[str, Any]:
    """What decides the results of runs."""
    size = FULL if asked.full else QUICK
    chosen = {name: getattr(asked, name) or value for name, value in size.items()}
    if min(asked.sizes) < 2 or chosen["clients"] < 2:
        raise SystemExit("sizes and clients must be at least 2, or there is nothing to compare")
    return {
        **chosen,
        "sizes": asked.sizes,
        "similarities": asked.similarities,
        "training": trained.Training(100, 0.05, 0.9),
        "local": Local(),
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
    trained.add_arguments(parser, "claim_gradient_similarity", seeds=5)
    asked = parser.parse_args()
    settings = settings_of(asked)
    cells = [f"{data}/{network}" for data in settings["data"] for network in settings["networks"]]
    trained.run(one, cells, asked, settings, page, draw)


if __name__ == "__main__":
    main()
