"""Networks trained on a whole data set, epoch by epoch, and what the claims on rank share.

    made = trained.prepared("cifar10", "mlp", data_dir, Training(100, 0.05, 0.9))
    theta = made.begin(seed)
    theta, loss = made.epoch(theta, made.examples, jax.random.key(1))

The optimizer begins anew in each epoch. Images may be shrunk, by the network's own `sizes`.
"""

import argparse
import functools
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats
import timing
from matplotlib import rc_context
from matplotlib.figure import Figure

from jaxfed import local, lowrank, models, tasks
from jaxfed.algorithm import Cohort, Data
from jaxfed.analysis import look, operators
from jaxfed.data import images, sources
from jaxfed.lowrank import Theta

WHOLE = {"fashion_mnist": 60_000, "cifar10": 50_000, "cifar100": 50_000}  # as published


class Network(NamedTuple):
    """A model, {data set: side to which its images are shrunk}, and its hidden layers' kernels."""

    model: Callable[[int], Any]
    sizes: Mapping[str, int]
    hidden: str
    said: str


NETWORKS = {
    "mlp": Network(
        lambda classes: models.MLP((64, 64), classes),
        {"cifar10": 16, "cifar100": 16},
        r"^dense.*kernel",
        "an MLP of two hidden layers of 64",
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
    """What trains `network` on the data set `name`; kept for the next seed."""
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
    """What all scripts on trained networks take beside their own settings."""
    parser.set_defaults(name=name)
    parser.add_argument("--data-dir", default="~/tensorflow_datasets")
    parser.add_argument("--seeds", type=int, default=seeds, help="how many")
    parser.add_argument("--workers", type=int, help="processes, each on a core of its own")
    parser.add_argument("--results", help="path of the .json, .md and .png, without its ending")


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
    name = f"{asked.name}_full" if asked.full else asked.name
    path = pathlib.Path(f"{asked.results or timing.RESULTS / name}.json")
    found = kept(path, asked.name, settings)
    jobs = [
        (*cell.split("/"), seed, asked.data_dir, settings)
        for seed in range(asked.seeds)
        for cell in cells
        if f"{cell}/{seed}" not in found["runs"]
    ]
    workers = asked.workers or (1 if asked.full else 2)
    with tempfile.TemporaryDirectory(prefix="jaxfed-claims-") as programs:  # for all workers
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", programs)
        os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
        for (data, network, seed, *_), result in each(one, jobs, workers):
            found["runs"][f"{data}/{network}/{seed}"] = result
            save(path, found)
            print(data, network, seed, f"{result['seconds']} s", flush=True)
    found["runs"] = dict(sorted(found["runs"].items(), key=lambda item: _order(item[0])))
    save(path, found)
    picture = path.with_suffix(".png")
    with rc_context(look.LOOK):
        draw(found).savefig(picture, dpi=80)
    text = page(found, picture.name)
    path.with_suffix(".md").write_text(text)
    print(text)


def _order(key: str) -> tuple[str, int]:
    cell, _, seed = key.rpartition("/")
    return cell, int(seed)


def kept(path: pathlib.Path, script: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What was made before with these settings, or the beginning of it."""
    if not path.exists():
        given = sys.argv[1:]
        shown = ["DIR" if i and given[i - 1] == "--data-dir" else a for i, a in enumerate(given)]
        command = " ".join([f"python benchmarks/{script}.py", *shown])
        return {"command": command, "machine": timing.machine(), "settings": settings, "runs": {}}
    found = json.loads(path.read_text())
    if found["settings"] != json.loads(json.dumps(settings)):
        raise SystemExit(
            f"{path} has runs of {found['settings']}, not {settings}; use --results for another"
        )
    return found


def save(path: pathlib.Path, found: Mapping[str, Any]) -> None:
    """Written whole or not at all; one line a run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = {key: value for key, value in found.items() if key != "runs"}
    runs = ",\n".join(f"  {json.dumps(k)}: {json.dumps(r)}" for k, r in found["runs"].items())
    text = json.dumps(head, indent=1)[:-2] + f',\n "runs": {{\n{runs}\n }}\n}}\n'
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def rounded(tree: Any) -> Any:
    """The tree as lists of numbers of five digits, for a file."""
    return jax.tree.map(
        lambda x: np.vectorize(lambda v: float(f"{v:.5g}"), otypes=[float])(x).tolist(), tree
    )


# ---------------------------------------------------------------------- intervals and pages


def bootstrap(by_seed: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of numbers [seeds]: percentiles of 10,000 resamples of whole seeds."""
    by_seed = np.asarray(by_seed, float)
    draws = np.random.default_rng(0).integers(len(by_seed), size=(10_000, len(by_seed)))
    low, high = np.percentile(by_seed[draws].mean(1), [50 * (1 - level), 50 * (1 + level)])
    return float(by_seed.mean()), float(low), float(high)


def student(by_seed: np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of numbers [seeds] by Student's t; of one seed there is no interval."""
    by_seed = np.asarray(by_seed, float)
    mean = by_seed.mean()
    if len(by_seed) < 2:
        return float(mean), np.nan, np.nan
    half = scipy.stats.t.ppf((1 + level) / 2, len(by_seed) - 1) * scipy.stats.sem(by_seed)
    return float(mean), float(mean - half), float(mean + half)


def about(cell: str, runs: Sequence[Mapping[str, Any]]) -> str:
    """A line on a cell, which is data/network: sizes, and what is less than the published set."""
    data, network = cell.split("/")
    examples, whole = runs[0]["examples"], WHOLE[data]
    part = "all" if examples == whole else f"a subset of the {whole:,} published:"
    return (
        f"* {cell}: {NETWORKS[network].said}, {runs[0]['parameters']:,} weights; {part} "
        f"{examples:,} training images; {len(runs)} seeds, "
        f"{np.median([r['seconds'] for r in runs]):.0f} s each"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
