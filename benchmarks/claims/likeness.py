"""How alike clients' gradients and updates are, whole and at low rank, and under null models.

The measurements of gradient_similarity.py, whose head describes them; `one` makes a run.
"""

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

from jaxfed import local, lowrank
from jaxfed.algorithm import Cohort
from jaxfed.analysis import gradients, operators
from jaxfed.data import partition
from jaxfed.lowrank import Theta

NULLS = ("white", "rotated", "projected", "unrelated")
ALL = "all"


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
    """draw(w, key) in place of each client's matrix w in each layer, [K, ...]."""
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
    updates: Callable  # (theta, examples, seed, moment) -> {kind of update: mean cosine}


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

    return Programs(
        made,
        jax.jit(signal),
        {size: trained.on_blocks(gradient, size) for size in sizes},
        jax.jit(partial(compared, ranks=ranks)),
        jax.jit(partial(updates, made, factored.init, work)),
    )


def updates(
    made: trained.Prepared,
    factors: Callable,
    work: Local,
    theta: Theta,
    examples: dict,
    seed: jax.Array,
    moment: jax.Array,
) -> dict[str, jax.Array]:
    """Mean cosines of clients' updates after local work on the hidden layers' kernels.

    `full`: the kernels themselves are trained (FedAvg), and their best approximations of rank r.
    `factors`: factors of rank r beside them, up zero (FedLoRA), as changes of the kernels.
    """
    optimizer, local_work = optax.sgd(work.rate), local.Work(work.batch, epochs=work.epochs)

    def train(base: dict, theta: Theta, k: Cohort) -> Theta:
        loss = partial(made.task.loss, base)
        return optax.tree.sub(local.sgd(loss, optimizer, theta, k, local_work)[0], theta)

    run = operators.of_clients(train, trained.one_device())
    cohort = trained.blocks(examples, work.size, seed, moment)
    frozen, kernels = operators.only({}, theta, lambda p: bool(re.search(made.network.hidden, p)))
    whole = alike(run(frozen, kernels, cohort).full, (work.rank,))[ALL]
    first = factors(cohort.round_key)[1]
    moved = gradients.moved(first, run(theta.full, first, cohort))
    sent = gradients.cosines(gradients.inner_of_products(moved))
    return {
        "full": whole[0],
        "full, truncated": whole[1],
        "factors": jnp.mean(gradients.pairs(sent)),
    }


def one(data: str, network: str, seed: int, data_dir: str, settings: Mapping[str, Any]) -> dict:
    """One run: {"gradients": {"epoch/s/size": {model: {layer: [1 + R]}}}, "updates": ...}."""
    started, work = time.perf_counter(), Local(*settings["local"])
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
        "seconds": round(time.perf_counter() - started, 1),
    }
