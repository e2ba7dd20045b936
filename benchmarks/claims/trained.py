"""Networks trained on a whole data set, epoch by epoch: the machinery of the claims on rank.

    made = trained.prepared("cifar10", "mlp", data_dir, Training(100, 0.05, 0.9))
    theta = made.begin(seed)
    theta, loss = made.epoch(theta, made.examples, jax.random.key(1))

The optimizer restarts in each epoch. Images may be shrunk, by the network's own `sizes`.
"""

import argparse
import functools
import multiprocessing
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import kept
import numpy as np
import optax
from matplotlib.figure import Figure

from jaxfed import local, lowrank, models, tasks
from jaxfed.algorithm import Cohort, Data
from jaxfed.analysis import operators
from jaxfed.data import images, sources
from jaxfed.lowrank import Theta
from jaxfed.simulation import engine

WHOLE = {"fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}  # as published


class Network(NamedTuple):
    """A model, {data set: side to which its images are shrunk}, and its hidden layers' kernels."""

    model: Callable[[int], Any]
    sizes: Mapping[str, int]
    hidden: str
    name: str  # in words


NETWORKS = {
    "mlp": Network(
        lambda classes: models.MLP((64, 64), classes),
        {"cifar10": 16, "cifar100": 16},
        r"^dense.*kernel",
        "an MLP of two hidden layers of 64",
    ),
    "small": Network(
        lambda classes: models.MLP((12,), classes),
        {"fashion_mnist": 7, "cifar10": 7, "cifar100": 7},
        r"^dense.*kernel",
        "an MLP of one hidden layer of 12 on images of 7 x 7",
    ),
    "cnn": Network(
        lambda classes: models.FemnistCNN(classes),
        {"fashion_mnist": 12, "cifar10": 12, "cifar100": 12},
        r"^(conv_1|dense_0)/kernel",
        "the FEMNIST CNN on images of 12 x 12",
    ),
    "cnn_whole": Network(
        lambda classes: models.FemnistCNN(classes),
        {},
        r"^(conv_1|dense_0)/kernel",
        "the FEMNIST CNN on whole images",
    ),
    "resnet18": Network(
        lambda classes: models.resnet18(classes),
        {},
        r"^layer.*conv_[01]/kernel",
        "ResNet-18 with group normalisation",
    ),
}


class Training(NamedTuple):
    """SGD on all training examples."""

    batch: int
    rate: float
    momentum: float


class Prepared(NamedTuple):
    """A network on a data set, compiled once for all seeds."""

    task: tasks.Task
    network: Network
    examples: dict  # [n, ...] all training examples, on the device
    test: dict
    begin: Callable[[int], Theta]  # seed -> theta
    epoch: Callable  # (theta, examples, key) -> (theta, mean loss of its steps)
    scores: Callable  # (theta, examples) -> {"loss", "accuracy"}

    @property
    def parameters(self) -> int:
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(self.begin, 0)))


@functools.cache
def read(name: str, data_dir: str) -> sources.Source:
    """DIR/NAME.npz (see jaxfed.data.sources.npz), or else the set as TFDS prepared it in DIR."""
    path = pathlib.Path(data_dir).expanduser() / f"{name}.npz"
    return sources.npz(path) if path.exists() else sources.tfds(name, data_dir)


def classifier(
    name: str, network: str, data_dir: str, select: lowrank.Select = lowrank.everything
) -> tasks.Task:
    """The task, with images shrunk and normalised by the training set's own statistics."""
    chosen, source = NETWORKS[network], read(name, data_dir)
    shrink = [images.resize(chosen.sizes[name])] if name in chosen.sizes else []
    normal = images.normalise(*images.channel_statistics(source.train["image"]))
    return tasks.classification(
        chosen.model(int(source.train["label"].max()) + 1),
        source.test,
        select=select,
        preprocess=images.chain(*shrink, normal),
    )


@functools.cache
def prepared(name: str, network: str, data_dir: str, training: Training) -> Prepared:
    """`network` on the data set `name`, ready to be trained; kept for the next seed."""
    source, made = read(name, data_dir), classifier(name, network, data_dir)
    optimizer = optax.sgd(training.rate, training.momentum)
    work = local.Work(training.batch, epochs=1)

    def epoch(theta, examples, key):
        theta, metrics = local.sgd(
            partial(made.loss, {}), optimizer, theta, all_of(examples, key), work
        )
        return theta, metrics["loss"]

    def scores(theta, examples):
        def of(batch, key):
            count = jnp.maximum(jnp.sum(batch["mask"]), 1)
            return jax.tree.map(lambda x: x / count, made.evaluate({}, theta, batch))

        like = {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())}
        return operators.mean(of, like, operators.union(examples, jax.random.key(0)), 500)

    train, test = jax.device_put((source.train, source.test))
    begin = jax.jit(lambda seed: made.init(jax.random.key(seed))[1])
    return Prepared(made, NETWORKS[network], train, test, begin, jax.jit(epoch), jax.jit(scores))


def all_of(examples: dict, key: jax.Array) -> Cohort:
    """All examples as those of one client."""
    data, count, _ = operators.union(examples, key)
    return Cohort((), data, count, jnp.ones(()), key, jnp.int32(0), jnp.int32(0), key)


def blocks(examples: dict, size: int, seed: jax.Array, moment: jax.Array) -> Cohort:
    """A cohort of as many clients as `size` goes into the rows of `examples`, in order."""
    count = len(examples["label"]) // size
    ids = jnp.arange(count)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), moment), size)
    keys = jax.vmap(partial(jax.random.fold_in, key))(ids)
    data = Data(examples, ids * size, size)
    sizes, weight = jnp.full(count, size), jnp.full(count, 1 / count)
    return Cohort((), data, sizes, weight, keys, ids, jnp.int32(0), key)


def on_blocks(function: Callable, size: int) -> Callable:
    """(theta, examples, seed, moment) -> function({}, theta, k) of each of `blocks`, compiled."""
    run = operators.of_clients(function, one_device())
    return jax.jit(lambda theta, x, seed, moment: run({}, theta, blocks(x, size, seed, moment)))


def one_device() -> Callable:
    """The verb for clients of equal size on one device."""
    return engine.for_each_client(engine.machine(1), uniform=True)


def rows(examples: dict, chosen: np.ndarray) -> dict:
    return jax.tree.map(lambda x: x[chosen], examples)


# ---------------------------------------------------------------------- many seeds


def each(function: Callable, jobs: Sequence[tuple], workers: int) -> Iterator[tuple[tuple, Any]]:
    """(job, function(*job)) as they are done; each worker is a process with a core of its own."""
    if workers == 1:
        yield from ((job, function(*job)) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # more of its threads spin on a worker's one core
    cores = context.Queue()
    for i in range(workers):
        cores.put(i)
    with ProcessPoolExecutor(workers, context, _take_a_core, (cores,)) as pool:
        places = {pool.submit(function, *job): job for job in jobs}
        for done in as_completed(places):
            yield places[done], done.result()


def _take_a_core(cores: Any) -> None:
    """This process on one core: XLA then has one thread, and workers do not disturb each other."""
    mine = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {mine[cores.get() % len(mine)]})


def add_arguments(parser: argparse.ArgumentParser, name: str, seeds: int) -> None:
    """The arguments that all scripts on trained networks take, beside their own settings."""
    parser.add_argument("--data-dir", default="~/tensorflow_datasets")
    parser.add_argument("--seeds", type=int, default=seeds, help="how many")
    parser.add_argument("--workers", type=int, help="processes, each on a core of its own")
    parser.add_argument("--results", default=name, help="name in benchmarks/claims/results/")


def run(
    one: Callable,
    cells: Sequence[str],
    asked: argparse.Namespace,
    settings: Mapping[str, Any],
    page: Callable[[Mapping, str], str],
    draw: Callable[[Mapping], Figure],
) -> None:
    """one(data, network, seed, data_dir, settings) of each cell and seed not made before.

    Then the page and the picture. Every finished run is written at once.
    """
    found = kept.Kept(kept.path(asked.results), settings)
    jobs = [
        (*cell.split("/"), seed, asked.data_dir, settings)
        for seed in range(asked.seeds)
        for cell in cells
        if f"{cell}/{seed}" not in found.runs
    ]
    usual = 1 if asked.full else 2
    workers = usual if asked.workers is None else asked.workers
    with tempfile.TemporaryDirectory(prefix="jaxfed-claims-") as programs:  # for all workers
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        for (data, network, seed, *_), result in each(one, jobs, workers):
            found.add(f"{data}/{network}/{seed}", result)
            print(data, network, seed, f"{result['seconds']} s", flush=True)
    found.content["runs"] = dict(sorted(found.runs.items(), key=lambda item: _order(item[0])))
    found.save()
    found.publish(page, draw)


def _order(key: str) -> tuple[str, int]:
    cell, _, seed = key.rpartition("/")
    return cell, int(seed)


def rounded(tree: Any) -> Any:
    """The tree as lists of numbers of five digits, for a file."""
    return jax.tree.map(
        lambda x: np.vectorize(lambda v: float(f"{v:.5g}"), otypes=[float])(x).tolist(), tree
    )


def about(cell: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """A line on a cell, which is data/network: its sizes, and the share of the published set."""
    data, network = cell.split("/")
    examples, whole = runs[0]["examples"], WHOLE[data]
    part = "all" if examples == whole else f"a subset of the {whole:,} published:"
    return (
        f"* {cell}: {NETWORKS[network].name}, {runs[0]['parameters']:,} weights; {part} "
        f"{examples:,} training images; {len(runs)} seeds, "
        f"{np.median([r['seconds'] for r in runs]):.0f} s each"
    )
