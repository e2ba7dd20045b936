"""Many short runs of FedAvg and its low-rank kin, on one problem: a program for each shape.

`jaxfed.run` compiles the seed and the learning rate into the rounds, and measures how many clients
to take at once: right for one long run, but here compiling would take longer than running. So a
`Program` has both as arguments of one jitted round, made of the same parts (engine, plans, ledger).

    program = sweep.program(problem, sweep.Cell("fedloru", clients=100, cohort=10, rounds=120,
                                                every=15, restart="reinit"), chunk=4)
    for t, server, sent in sweep.rounds(program, problem, seed=1, rate=0.1):
        ...  # after round t, from 0, which is before the first

Where many rounds are short, `fuse` of them are one call.
"""

import argparse
import dataclasses
import functools
import os
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import kept
import numpy as np
import optax

from jaxfed import Experiment, combine, local, lowrank, models, tasks
from jaxfed.algorithms import fedavg, fedlora
from jaxfed.data import federate, images, partition, sources
from jaxfed.data.sources import Examples
from jaxfed.lowrank import restarts, rules
from jaxfed.simulation import engine, ledger, participation

NAMES = {"fedavg": "FedAvg", "fedlora": "FedLoRA", "fedloru": "FedLoRU"}
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
    ranked: Callable[[int], tasks.Task] | None = None  # factored, of another rank

    def task(self, cell: "Cell") -> tasks.Task:
        """What the cell trains."""
        if cell.method == "fedavg":
            return self.whole
        if cell.rank is None:
            return self.factored
        if self.ranked is None:
            raise ValueError(f"rank={cell.rank}, but this problem has one rank; leave it out")
        return self.ranked(cell.rank)


class Cell(NamedTuple):
    """The settings that a program is compiled for."""

    method: str
    clients: int
    cohort: int
    rounds: int
    every: int = 0  # rounds between merges; 0: never
    restart: str = "reinit"
    rank: int | None = None  # None: the problem's, here and below
    epochs: int | None = None
    optimizer: str | None = None  # of `OPTIMIZERS`


class Program(NamedTuple):
    cell: Cell
    init: Callable  # seed -> server
    step: Callable  # (server, examples, plan, seed, rate) -> server
    wire: ledger.Wire
    broadcast: Callable  # (server, t) -> bytes


# ---------------------------------------------------------------------- problems


def fashion_mnist(data_dir: str, settings: Mapping[str, Any]) -> Problem:
    """Fashion-MNIST shrunk to `size` pixels, and the FEMNIST CNN.

    As in configs/fedloru/fashion_mnist.py the second convolution and the dense layer are factored.
    """
    source = _source("fashion_mnist", data_dir)
    shrink = images.chain(images.resize(settings["size"]), images.normalise([0.286], [0.353]))
    model = models.FemnistCNN(classes=10)
    factored = lowrank.Select(
        factors="conv_1/kernel|dense_0/kernel",
        full="conv_0|head|bias",
        rank=settings["rank"],
        alpha=settings["scale"] * settings["rank"],
        base="zero",
        up="random",
    )

    def optimizer(rate, rounds):
        return optax.chain(
            optax.clip_by_global_norm(settings["clip"]),
            optax.sgd(rate),
            local.scale_by_round(local.cosine(settings["least"], rounds)),
        )

    return _problem(source, settings, partial(_task, model, factored, shrink), optimizer)


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
    normalised = images.normalise([0.3], [0.38], scale=16)
    model = models.MLP(tuple(settings["widths"]), classes=10)

    def made(examples, *, whole: bool, rank: int = settings["rank"]):
        factored = lowrank.Select(
            factors="dense.*kernel",
            full="bias|head",
            rank=rank,
            alpha=settings["scale"] * rank,
            base="zero",
            up="random",
        )
        return _task(model, factored, normalised, examples, whole=whole)

    def optimizer(rate, rounds):
        return optax.chain(optax.clip_by_global_norm(settings["clip"]), optax.sgd(rate))

    problem = _problem(sources.digits(), settings, made, optimizer)
    return dataclasses.replace(
        problem,
        concentration=settings["concentration"],
        ranked=functools.cache(lambda rank: made(problem.test, whole=False, rank=rank)),
    )


PROBLEMS = {"fashion_mnist": fashion_mnist, "cifar100": cifar100, "digits": digits}
RULES = {"fedex": rules.FEDEX, "flora": rules.FLORA, "rolora": rules.ROLORA}
OPTIMIZERS = {"adamw": lambda rate, rounds: optax.adamw(rate)}


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


def algorithm(problem: Problem, cell: Cell, rate: Any):
    """The cell's algorithm at this learning rate, which may be traced.

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
    else:
        fed = fedavg(task, work, client_optimizer=optimizer)
    if cell.every:
        restart = getattr(restarts, cell.restart)
        fed = combine.accumulate(fed, every=cell.every, restart=restart)
    return combine.skip_nonfinite(fed)


def experiment(problem: Problem, cell: Cell, seed: int) -> Experiment:
    """The cell as an Experiment of the library; the seed deals the clients."""
    label, concentration = problem.train["label"], problem.concentration
    if concentration is None:
        parts = partition.iid(len(label), cell.clients, seed=seed)
    else:
        parts = partition.dirichlet(label, cell.clients, concentration=concentration, seed=seed)
    data = federate(sources.Source(problem.train, problem.test), parts, seed=seed)
    made = algorithm(problem, cell, 1.0)
    return Experiment(data, made, rounds=cell.rounds, cohort=cell.cohort, seed=seed)


def program(problem: Problem, cell: Cell, chunk: int, seeds: Sequence[int] = (0,)) -> Program:
    """The cell's rounds with these seeds, not compiled yet.

    `chunk` clients are vmapped at once, on JAX's default device.
    """
    machine = engine.machine(1, chunk)
    first = experiment(problem, cell, 0)
    train = first.data.train
    verb = engine.for_each_client(machine, uniform=train.uniform)
    most = max(experiment(problem, cell, seed).data.train.most for seed in seeds)

    @jax.jit
    def init(seed):
        return first.algorithm.init(jax.random.key(seed))

    @jax.jit
    def step(server, examples, plan, seed, rate):
        fed = algorithm(problem, cell, rate)
        return engine.rounds(fed, verb, seed, most)(server, (), examples, plan)[0]

    plan = jax.tree.map(lambda x: x[0], participation.make(first, 1, range(1)))
    drawn = partial(engine.cohort, seed=0, most=train.most)
    cohort = jax.eval_shape(drawn, (), train.examples, plan)
    wire, _ = ledger.most(first.algorithm, jax.eval_shape(init, 0), cohort)
    return Program(cell, init, step, wire, first.algorithm.broadcast)


def rounds(
    program: Program, problem: Problem, *, seed: int, rate: float, fuse: int = 1
) -> Iterator[tuple[int, Any, int]]:
    """Yields (t, server after round t, bytes that all clients sent and received until then).

    That is after each `fuse` rounds, which must divide the cell's.

    A merge is sent at once to clients that are absent, as ledger.eager counts it. The server
    before the first round comes first, with t = 0.
    """
    cell, sent = program.cell, 0
    made = experiment(problem, cell, seed)
    examples = jax.device_put(made.data.train.examples)
    server = program.init(seed)
    yield 0, server, sent
    for begin in range(0, cell.rounds, fuse):
        block = range(begin, begin + fuse)
        plan = participation.make(made, 1, block)
        server = program.step(server, examples, plan, seed, rate)
        sent += cell.cohort * sum(program.wire) * fuse
        sent += sum(program.broadcast(server, t) for t in block) * (cell.clients - cell.cohort)
        yield block.stop, server, sent


def scorer(of: tasks.Task, size: int = SCORED) -> Callable[[Any, Any, Examples], dict[str, float]]:
    """(base, theta, examples) -> the task's means over the examples, in batches of `size`.

    The last batch has what is left, without padding: it may be that a batch shares statistics.
    """

    @jax.jit
    def summed(base, theta, examples):
        def batch(part):
            return of.evaluate(base, theta, {**part, "mask": jnp.ones(len(part["label"]))})

        whole = len(examples["label"]) // size * size
        cut = {n: x[:whole].reshape(-1, size, *x.shape[1:]) for n, x in examples.items()}
        sums = jax.tree.map(lambda x: jnp.sum(x, 0), jax.lax.map(batch, cut))
        if whole == len(examples["label"]):
            return sums
        return jax.tree.map(jnp.add, sums, batch({n: x[whole:] for n, x in examples.items()}))

    def score(base, theta, examples):
        sums = jax.device_get(summed(base, theta, examples))
        return {n: float(v) for n, v in of.summary(sums, len(examples["label"])).items()}

    return score


class Run(NamedTuple):
    """A run to be made: reported on the test set, or for the choice of a rate on held-out rows."""

    program: Program
    problem: Problem
    score: Callable  # of `scorer`
    settings: Mapping[str, Any]
    seed: int
    rate: float
    reported: bool

    @property
    def every(self) -> int:
        """Rounds between scores: `marks` in a reported run, else one score at the end."""
        rounds = self.program.cell.rounds
        return rounds // self.settings["marks"] if self.reported else rounds


def one(run: Run, watch: Callable[[int, Any], None] = lambda t, server: None) -> dict[str, Any]:
    """The run's accuracy and the bytes sent, along the way; watch(t, server) sees every round."""
    started = time.perf_counter()
    examples = run.problem.test if run.reported else run.problem.held_out
    found: dict[str, Any] = {"rate": run.rate, "round": [], "accuracy": [], "sent": []}
    how = {"seed": run.seed, "rate": run.rate, "fuse": run.settings.get("fuse", 1)}
    for t, server, sent in rounds(run.program, run.problem, **how):
        if t % run.every == 0:
            found["round"].append(t)
            found["accuracy"].append(run.score(server.base, server.theta, examples)["accuracy"])
            found["sent"].append(sent)
        watch(t, server)
    return {**found, "seconds": time.perf_counter() - started}


# ---------------------------------------------------------------------- many runs


def climb(rates: Sequence[float], score: Callable[[float], float]) -> float:
    """The rate of the grid with the highest score, if the scores rise to it and fall from there.

    The two in the middle are tried first, then neighbours of the best until none is untried.
    """
    middle = (len(rates) - 1) // 2
    found = {i: score(rates[i]) for i in range(middle, min(middle + 2, len(rates)))}
    while True:
        best = max(found, key=lambda i: found[i])
        beside = (i for i in (best - 1, best + 1) if 0 <= i < len(rates) and i not in found)
        new = next(beside, None)
        if new is None:
            return rates[best]
        found[new] = score(rates[new])


def tuned(
    found: kept.Kept,
    problem: Problem,
    cells: Mapping[str, Cell],
    chunk: int,
    one: Callable[[Run], dict] = one,
) -> None:
    """Makes the missing runs: each cell's grid of rates with seed 0, then its seeds at the best.

    `one(run)` makes a run. Those of the grid are not reported, and scored on held-out examples.
    """
    settings = found.content["settings"]
    score_of = functools.cache(partial(scorer, size=problem.scored))

    def make(name: str, cell: Cell) -> None:
        made = program(problem, cell, chunk, [0, *settings["seeds"]])
        score = score_of(problem.task(cell))

        def once(key: str, *how: Any) -> float:
            if key not in found.runs:
                found.add(key, run := one(Run(made, problem, score, settings, *how)))
                print(key, f"{run['seconds']:.0f} s", run["accuracy"][-1], flush=True)
            return found.runs[key]["accuracy"][-1]

        rates = settings.get(f"rates_{cell.optimizer}", settings["rates"])
        rate = climb(rates, lambda rate: once(f"{name}/grid/{rate}", 0, rate, False))
        for seed in settings["seeds"]:
            once(f"{name}/seed/{seed}", seed, rate, True)

    on_devices([partial(make, name, cell) for name, cell in cells.items()])


def on_devices(jobs: Sequence[Callable[[], None]]) -> None:
    """Does the jobs, as many at a time as there are devices, each with one to itself."""
    free: queue.SimpleQueue = queue.SimpleQueue()
    for device in jax.local_devices():
        free.put(device)

    def one(job):
        device = free.get()
        try:
            with jax.default_device(device):
                job()
        finally:
            free.put(device)

    with futures.ThreadPoolExecutor(len(jax.local_devices())) as pool:
        for done in [pool.submit(one, job) for job in jobs]:
            done.result()


def main(
    name: str,
    quick: Mapping,
    full: Mapping | None,
    cells: Callable,
    page: Callable,
    draw: Callable | None = None,
    one: Callable[[Run], dict] = one,
) -> None:
    """Makes the missing runs of a claim's script; writes the page and the picture."""
    parser = argparse.ArgumentParser(prog=f"{name}.py")
    needs = quick["data"] != "digits"
    parser.add_argument("--data-dir", required=needs, help="a TFDS data directory, or an .npz file")
    if full:
        parser.add_argument("--full", action="store_true", help="the paper's sizes, for a GPU")
    parser.add_argument("--chunk", type=int, default=5, help="clients at once on a device")
    parser.add_argument("--devices", type=int, help="of a CPU; by default one a core")
    parser.add_argument("--results", default=name, help="name in benchmarks/claims/results/")
    asked = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    devices = cores if asked.devices is None else asked.devices
    jax.config.update("jax_num_cpu_devices", devices)
    settings = full if full and asked.full else quick
    found = kept.Kept(kept.path(asked.results), settings)
    problem = PROBLEMS[settings["data"]](asked.data_dir, settings)
    tuned(found, problem, cells(settings), asked.chunk, one)
    found.publish(page, draw)
