"""FedAvg and its low-rank kin on one problem: a cell of a claim's table is one `jaxfed sweep`.

    sweep.main("binding_rank", QUICK, None, cells, page, draw)

A cell is a run of cell.py, the config of all claims. Its sweep tries each learning rate of the grid
with seed 0 on held-out examples, and runs the seeds with the best one on the test set. A sweep that
was killed goes on by the same command, and cells that are kept in the results are not run again.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import kept
import numpy as np
import optax

import jaxfed
from jaxfed import Experiment, combine, local, lowrank, models, tasks
from jaxfed.algorithms import fedavg, fedlora, fedprox, scaffold
from jaxfed.algorithms.general import fedopt
from jaxfed.combine import compress
from jaxfed.data import federate, images, partition, sources
from jaxfed.data.sources import Examples
from jaxfed.lowrank import restarts, rules

NAMES = {"fedavg": "FedAvg", "fedlora": "FedLoRA", "fedloru": "FedLoRU"}
CELL = pathlib.Path(__file__).with_name("cell.py")
SCORED = 250  # examples in a batch of an evaluation, where they share no statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """Data, the tasks on them, and the clients' local work."""

    train: Examples
    held_out: Examples  # of the training set, to choose learning rates
    test: Examples
    whole: tasks.Task
    factored: tasks.Task
    work: local.Work
    optimizer: Callable[[Any, int], optax.GradientTransformation]  # of (rate, rounds)
    scored: int = SCORED  # examples in a batch of an evaluation
    concentration: float | None = None  # of a Dirichlet split over labels; None: iid
    adapted: Callable[..., tasks.Task] | None = None  # factored, of another rank and scale

    def task(self, cell: "Cell") -> tasks.Task:
        """What the cell trains."""
        if cell.method == "fedavg" or cell.whole:
            return self.whole
        other = {n: v for n, v in (("rank", cell.rank), ("scale", cell.scale)) if v is not None}
        if not other:
            return self.factored
        if self.adapted is None:
            raise ValueError(f"{other}, but this problem has one rank and scale; leave it out")
        return self.adapted(**other)


class Cell(NamedTuple):
    """The settings of a cell, but for the rate and the seed."""

    method: str
    clients: int
    cohort: int
    rounds: int
    every: int = 0  # rounds between merges; 0: never
    restart: str = "reinit"
    rank: int | None = None  # None: the problem's, here and below
    epochs: int | None = None
    optimizer: str | None = None  # of `OPTIMIZERS`
    scale: float | None = None  # alpha / rank
    uplink: str | None = None  # of `UPLINKS`: how clients of FedAvg compress what they send
    density: float | None = None  # of the entries that are sent then
    constant: float | None = None  # of `AROUND`: FedProx's mu, FedAdam's server rate
    whole: bool = False  # those of `AROUND` then train every weight


# ---------------------------------------------------------------------- problems


def fashion_mnist(data_dir: str, settings: Mapping[str, Any]) -> Problem:
    """Fashion-MNIST shrunk to `size` pixels, and the FEMNIST CNN.

    As in configs/fedloru/fashion_mnist.py the second convolution and the dense layer are factored.
    """
    source = _source("fashion_mnist", data_dir)
    shrink = images.chain(images.resize(settings["size"]), images.normalise([0.286], [0.353]))
    model = models.FemnistCNN(classes=10)
    layers = {"factors": "conv_1/kernel|dense_0/kernel", "full": "conv_0|head|bias"}

    def optimizer(rate, rounds):
        return optax.chain(
            optax.clip_by_global_norm(settings["clip"]),
            optax.sgd(rate),
            local.scale_by_round(local.cosine(settings["least"], rounds)),
        )

    return _factored_problem(source, settings, model, layers, shrink, optimizer)


def fashion_mnist_mlp(data_dir: str, settings: Mapping[str, Any]) -> Problem:
    """Fashion-MNIST shrunk to `size` pixels, an MLP, unlike clients."""
    source = _source("fashion_mnist", data_dir)
    shrink = images.chain(images.resize(settings["size"]), images.normalise([0.286], [0.353]))
    return _mlp(source, settings, shrink)


def cifar100(data_dir: str, settings: Mapping[str, Any]) -> Problem:
    """CIFAR-100 and ResNet-18 as configs/fedloru/cifar100.py has them by default.

    Test examples share their batch's statistics, so a batch has 32 of them, as the authors take.
    """
    source = _source("cifar100", data_dir)
    mean, std = images.channel_statistics(source.train["image"])
    resize = images.resize(settings["size"])
    preprocess = images.chain(resize, images.normalise(mean, std))
    model = models.ResNet(blocks=(2, 2, 2, 2), classes=100, norm="batch", initialiser="fedloru")
    factored = lowrank.Select(
        factors=r"^layer.*conv.*kernel",
        full="stem|norm|head",
        rank=settings["rank"],
        alpha=settings["scale"] * settings["rank"],
        base="zero",
        up="random",
        above="allow",
    )
    augment = images.chain(
        images.random_crop(4), resize, images.random_flip(), images.jitter(0.5, 0.5, 0)
    )

    def optimizer(rate, rounds):
        return optax.chain(
            optax.clip_by_global_norm(settings["clip"]),
            optax.add_decayed_weights(1e-4),
            optax.sgd(rate, momentum=0.9),
            local.scale_by_round(local.cosine(settings["least"], rounds)),
        )

    made = partial(_task, model, factored, preprocess, augment=augment, dropout=0.1)
    return dataclasses.replace(_problem(source, settings, made, optimizer), scored=32)


def digits(data_dir: str | None, settings: Mapping[str, Any]) -> Problem:
    """scikit-learn's digits and the MLP of configs/quickstart.py, unlike clients; reads no file."""
    return _mlp(sources.digits(), settings, images.normalise([0.3], [0.38], scale=16))


PROBLEMS = {
    "fashion_mnist": fashion_mnist,
    "fashion_mnist_mlp": fashion_mnist_mlp,
    "cifar100": cifar100,
    "digits": digits,
}
RULES = {
    "fedex": rules.FEDEX,
    "flora": rules.FLORA,
    "flexlora": rules.FLEXLORA,
    "ffa": rules.FFA,
    "rolora": rules.ROLORA,
}
AROUND = {  # (task, work, optimizer, cell, rate) -> what a merge may stand around
    "fedprox": lambda task, work, optimizer, cell, rate: fedprox(
        task, work, mu=cell.constant, client_optimizer=optimizer
    ),
    "scaffold": lambda task, work, optimizer, cell, rate: scaffold(
        task, work, learning_rate=rate, clients=cell.clients
    ),
    "fedadam": lambda task, work, optimizer, cell, rate: fedopt.fedopt(
        task, work, client_optimizer=optimizer, server_optimizer=fedopt.adam(cell.constant)
    ),
}


OPTIMIZERS = {
    "adamw": lambda rate, rounds: optax.adamw(rate),
    "sgd": lambda rate, rounds: optax.sgd(rate),
}
UPLINKS = {
    "top": lambda cell: {"compress": compress.top(cell.density)},
    "ef14": lambda cell: {"compress": compress.top(cell.density), "feedback": compress.ef14},
    "ef21": lambda cell: {"compress": compress.top(cell.density), "feedback": compress.ef21},
    "power": lambda cell: {"compress": compress.power(cell.rank), "feedback": compress.ef14},
}


def _mlp(source, settings, preprocess) -> Problem:
    """An MLP with factors beside its hidden layers, and clients of Dirichlet(`concentration`).

    `norm` is "none", or "running" for batch norms, which are trained whole and averaged.
    """

    def optimizer(rate, rounds):
        return optax.chain(optax.clip_by_global_norm(settings["clip"]), optax.sgd(rate))

    model = models.MLP(tuple(settings["widths"]), classes=10, norm=settings.get("norm", "none"))
    layers = {"factors": "dense.*kernel", "full": "bias|head|norm"}
    problem = _factored_problem(source, settings, model, layers, preprocess, optimizer)
    return dataclasses.replace(problem, concentration=settings["concentration"])


def _factored_problem(source, settings, model, layers, preprocess, optimizer) -> Problem:
    """Training from scratch, by factors of the settings' rank and scale or of others."""

    def made(examples, *, whole, rank=settings["rank"], scale=settings["scale"]):
        zeros = {"rank": rank, "alpha": scale * rank, "base": "zero", "up": "random"}
        factored = lowrank.Select(**layers, **zeros)
        return _task(model, factored, preprocess, examples, whole=whole)

    problem = _problem(source, settings, made, optimizer)
    adapted = functools.cache(partial(made, problem.test, whole=False))
    return dataclasses.replace(problem, adapted=adapted)


def _source(name: str, data_dir: str) -> sources.Source:
    return sources.npz(data_dir) if data_dir.endswith(".npz") else sources.tfds(name, data_dir)


def _task(model, factored, preprocess, examples, *, whole: bool, **options) -> tasks.Task:
    select = lowrank.everything if whole else factored
    return tasks.classification(model, examples, select=select, preprocess=preprocess, **options)


def _problem(source, settings, made, optimizer) -> Problem:
    """The first `train` + `scored` rows of a shuffled training set, the first `scored` to test."""
    train, scored = settings["train"], settings["scored"]
    there = len(source.train["label"]), len(source.test["label"])
    if train + scored > there[0] or scored > there[1]:
        raise SystemExit(
            f"train={train} and scored={scored} of {there[0]} and {there[1]} examples: give fewer"
        )
    rows = np.random.default_rng(0).permutation(there[0])
    parts = rows[:train], rows[train : train + scored]
    mine, held_out = ({n: x[p] for n, x in source.train.items()} for p in parts)
    test = {n: x[:scored] for n, x in source.test.items()}
    whole, factored = (made(test, whole=whole) for whole in (True, False))
    work = local.Work(settings["batch"], epochs=settings["epochs"])
    return Problem(mine, held_out, test, whole, factored, work, optimizer)


# ---------------------------------------------------------------------- one run


@functools.cache
def problem(settings: str, data_dir: str | None) -> Problem:
    """The problem of a claim's settings, as JSON."""
    given = json.loads(settings)
    return PROBLEMS[given["data"]](data_dir, given)


def algorithm(problem: Problem, cell: Cell, rate: float) -> jaxfed.Algorithm:
    """The cell's algorithm at this learning rate.

    A client whose numbers are not finite is left out, so a rate that diverges ends in a bad score.
    """
    work = problem.work
    if cell.epochs is not None:
        work = dataclasses.replace(work, epochs=cell.epochs)
    made = problem.optimizer if cell.optimizer is None else OPTIMIZERS[cell.optimizer]
    optimizer = made(rate, cell.rounds)
    task = problem.task(cell)
    if cell.method in RULES:
        rule = {"rule": RULES[cell.method], "cohort_size": cell.cohort}
        fed = fedlora(task, work, **rule, client_optimizer=optimizer)
    elif cell.method in AROUND:
        fed = AROUND[cell.method](task, work, optimizer, cell, rate)
    else:
        fed = fedavg(task, work, client_optimizer=optimizer)
    if cell.uplink is not None:
        fed = combine.compressed(fed, **UPLINKS[cell.uplink](cell))
    if cell.every:
        restart = getattr(restarts, cell.restart)
        fed = combine.accumulate(fed, every=cell.every, restart=restart)
    return combine.skip_nonfinite(fed)


def experiment(problem: Problem, cell: Cell, *, rate: float, seed: int, marks: int) -> Experiment:
    """A run that is evaluated `marks` times; the seed deals the clients."""
    label, concentration = problem.train["label"], problem.concentration
    if concentration is None:
        parts = partition.iid(len(label), cell.clients, seed=seed)
    else:
        parts = partition.dirichlet(label, cell.clients, concentration=concentration, seed=seed)
    source = sources.Source(problem.train, problem.test)
    return Experiment(
        federate(source, parts, validation=problem.held_out, seed=seed),
        algorithm(problem, cell, rate),
        rounds=cell.rounds,
        cohort=cell.cohort,
        seed=seed,
        evaluate_every=cell.rounds // marks,
        evaluate_batch=problem.scored,
    )


# ---------------------------------------------------------------------- many runs


class How(NamedTuple):
    """How the sweeps of a claim are made."""

    claim: str  # the script's name
    settings: Mapping[str, Any]
    data_dir: str | None
    out: pathlib.Path
    options: Mapping[str, Any]  # of `jaxfed sweep`

    def sweep(self, name: str, out: pathlib.Path, **given: Any) -> None:
        """Runs `jaxfed sweep` for a cell; several values of an option are a sequence."""
        about = {"claim": self.claim, "cell": name, "settings": json.dumps(self.settings)}
        about |= {} if self.data_dir is None else {"data_dir": self.data_dir}
        run_sweep(CELL, **about, **self.options, **given, out=out)

    def experiment(self, cell: Cell, rate: float, seed: int) -> Experiment:
        """A trial of such a sweep, as `experiment` makes it."""
        found = problem(json.dumps(self.settings), self.data_dir)
        return experiment(found, cell, rate=rate, seed=seed, marks=self.settings["marks"])

    def folder(self, name: str) -> pathlib.Path:
        """Where a cell's sweep is."""
        return self.out / name.replace("/", "_")


def run_sweep(config: pathlib.Path, **given: Any) -> None:
    """`jaxfed sweep CONFIG`; several values of an option are a sequence, and True is no value."""
    words = []
    for option, value in given.items():
        several = isinstance(value, Sequence) and not isinstance(value, str)
        words.append(f"--{option.replace('_', '-')}")
        words += map(str, value if several else [] if value is True else [value])
    command("sweep", str(config), *words)


def command(*words: str) -> None:
    """`jaxfed WORDS`, in a process of its own."""
    subprocess.run([sys.executable, "-m", "jaxfed.cli", *words], check=True)


def trials(folder: pathlib.Path) -> Iterator[tuple[float, int, list[dict]]]:
    """(rate, seed, records) of each trial in the folder of a sweep.

    Records lack what was not measured in their round; "sent" is the sum of bytes up to it.
    """
    for _, frame in jaxfed.results(folder).groupby("run", sort=False):
        rows = frame.sort_values("round").to_dict("records")
        records: list[dict] = [
            {n: v for n, v in row.items() if v is not None and v == v} for row in rows
        ]
        sent = up = 0
        for record in records:
            sent += record["down"] + record["up"] + record["broadcast"]
            up += record["up"]
            record |= {"sent": int(sent), "sent up": int(up)}
        yield float(rows[0]["learning_rate"]), int(rows[0]["seed"]), records


def collected(settings: Mapping[str, Any], records: Sequence[dict], reported: bool) -> dict:
    """What is kept of a run: accuracy and bytes along the way, in a trial of a rate at the end."""
    marked = records[-1]["round"] // settings["marks"]
    shown = [r for r in records if r["round"] % marked == 0] if reported else [records[-1]]
    return {
        "round": [r["round"] for r in shown],
        "accuracy": [r["accuracy"] for r in shown],
        "sent": [r["sent"] for r in shown],
        "up": [r["sent up"] for r in shown],
        "seconds": math.fsum(r["seconds"] for r in records),
    }


def tuned(
    found: kept.Kept, cells: Mapping[str, Cell], how: How, collect: Callable = collected
) -> None:
    """Makes the missing cells: their rate is chosen on held-out examples, then their seeds run."""
    settings = how.settings
    for name, cell in cells.items():
        if all(f"{name}/seed/{seed}" in found.runs for seed in settings["seeds"]):
            continue
        rates = settings.get(f"rates_{cell.optimizer}", settings["rates"])
        given = {"learning_rate": rates, "seed": settings["seeds"]}
        out = how.folder(name)
        how.sweep(name, out, **given, tune="learning_rate", tune_seed=0)
        for rate, _, records in trials(out / "tune"):
            run = {"rate": rate, **collect(settings, records, False)}
            found.add(f"{name}/grid/{rate}", run)
        for rate, seed, records in trials(out):
            run = {"rate": rate, **collect(settings, records, True)}
            found.add(f"{name}/seed/{seed}", run)


def grid(content: Mapping[str, Any]) -> str:
    """In words what rates were chosen from.

    Runs made before each cell was a sweep tried the middle of the grid, and then neighbours of the
    best until none was untried.
    """
    runs, settings = content["runs"], content["settings"]
    cells = {name.rpartition("/grid/")[0] for name in runs if "/grid/" in name}
    tried = {c: sum(name.startswith(f"{c}/grid/") for name in runs) for c in cells}
    whole = all(n >= len(settings["rates"]) for n in tried.values())
    return "the grid" if whole else "the grid, climbed from its middle,"


def main(
    name: str,
    quick: Mapping,
    full: Mapping | None,
    cells: Callable,
    page: Callable,
    draw: Callable | None = None,
    collect: Callable = collected,
    *,
    make: Callable = tuned,
    more: Mapping[str, Mapping] | None = None,
) -> None:
    """Makes the missing runs of a claim's script; writes the page and the picture.

    `more` has the settings of other problems, {name: settings}, which `--on NAME` asks for.
    """
    parser = argparse.ArgumentParser(prog=f"{name}.py")
    needs = quick["data"] != "digits"
    parser.add_argument("--data-dir", required=needs, help="a TFDS data directory, or an .npz file")
    if full:
        parser.add_argument("--full", action="store_true", help="the paper's sizes, for a GPU")
    if more:
        parser.add_argument("--on", choices=list(more), help=f"instead of {quick['data']}")
    parser.add_argument("--chunk", default=5, help="clients at once on a device, or auto")
    parser.add_argument("--at-once", type=int, default=1, help="trials at once")
    parser.add_argument("--devices", type=int, help="of a CPU; by default one a core")
    parser.add_argument("--out", type=pathlib.Path, help="where runs are; by default runs/NAME")
    parser.add_argument("--results", help="name in benchmarks/claims/results/")
    asked = parser.parse_args()
    other = asked.on if more else None
    settings = more[other] if other else full if full and asked.full else quick
    if settings["data"] != "digits" and asked.data_dir is None:
        parser.error(f"--on {other} reads files; give --data-dir")
    cores = len(os.sched_getaffinity(0))
    options = {"chunk": asked.chunk, "at_once": asked.at_once, "fuse": settings.get("fuse", 1)}
    options |= {"cpu_devices": cores if asked.devices is None else asked.devices}
    results = asked.results or (f"{name}_{other}" if other else name)
    out = (asked.out or pathlib.Path("runs", pathlib.Path(results).name)).resolve()
    found = kept.Kept(kept.path(results), settings)
    make(found, cells(settings), How(name, settings, asked.data_dir, out, options), collect)
    found.publish(page, draw)
