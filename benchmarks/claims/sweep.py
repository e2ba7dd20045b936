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

from jaxfed import Experiment, combine, local, lowrank, models, tasks, trees
from jaxfed.algorithm import ACCOUNT, Algorithm
from jaxfed.algorithms import fedavg, fedlora, fedprox, scaffold
from jaxfed.algorithms.general import fedopt
from jaxfed.combine import compress
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
    scale: float | None = None  # alpha / rank
    uplink: str | None = None  # of `UPLINKS`: how clients of FedAvg compress what they send
    density: float | None = None  # of the entries that are sent then
    constant: float | None = None  # of `AROUND`: FedProx's mu, FedAdam's server rate
    whole: bool = False  # those of `AROUND` then train every weight


class Program(NamedTuple):
    cell: Cell
    init: Callable  # seed -> (server, what each client keeps)
    step: Callable  # (server, kept, examples, plan, seed, rate) -> (server, kept, Account)
    broadcast: Callable  # (server, t) -> bytes


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
    "scaffold": lambda task, work, optimizer, cell, rate: at_rate(rate, task, work, cell.clients),
    "fedadam": lambda task, work, optimizer, cell, rate: fedopt.fedopt(
        task, work, client_optimizer=optimizer, server_optimizer=fedopt.adam(cell.constant)
    ),
}


def at_rate(rate: Any, task: tasks.Task, work: local.Work, clients: int) -> Algorithm:
    """SCAFFOLD whose learning rate may be traced: that of rate 1 on the loss times the rate.

    Its control variates are then times the rate, too, and everything else is the same.
    """

    def loss(*given):
        return rate * task.loss(*given)

    return scaffold(task._replace(loss=loss), work, learning_rate=1.0, clients=clients)


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
        server = first.algorithm.init(jax.random.key(seed))
        keys = jax.random.split(jax.random.key(seed), cell.clients)
        return server, jax.vmap(partial(first.algorithm.init_client, server))(keys)

    @jax.jit
    def step(server, kept, examples, plan, seed, rate):
        fed = algorithm(problem, cell, rate)
        done = engine.rounds(fed, verb, seed, most)(server, kept, examples, plan)
        return *done[:2], done[2][ACCOUNT]

    return Program(cell, init, step, first.algorithm.broadcast)


def rounds(
    program: Program,
    problem: Problem,
    *,
    seed: int,
    rate: float,
    fuse: int = 1,
    merges: str = "eager",
) -> Iterator[tuple[int, Any, ledger.Wire]]:
    """Yields (t, server after round t, bytes that all clients received and sent until then).

    That is after each `fuse` rounds, which must divide the cell's. Who pays when for a merge is as
    in ledger.MERGES; a client never receives more than the whole model at once. The server before
    the first round comes first, with t = 0.
    """
    cell, sent = program.cell, np.zeros(2, np.int64)
    made = experiment(problem, cell, seed)
    examples = jax.device_put(made.data.train.examples)
    server, kept = program.init(seed)
    pay, owed = ledger.MERGES[merges], np.zeros(cell.clients, np.int64)
    base, whole = (trees.nbytes(x) for x in (server.base, (server.base, server.theta)))
    yield 0, server, ledger.Wire(0, 0)
    for begin in range(0, cell.rounds, fuse):
        block = range(begin, begin + fuse)
        plan = participation.make(made, 1, block)
        server, kept, account = program.step(server, kept, examples, plan, seed, rate)
        down, up = (trees.as_number(x) for x in (account.down, account.up))  # [R, K]
        for i, t in enumerate(block):
            late = owed[plan.id[i]]
            extra, owed = pay(owed, plan.id[i], program.broadcast(server, t), base)
            twice = np.maximum(down[i] + late - whole, 0).sum() if late.any() else 0
            sent += np.array([down[i].sum() + extra - twice, up[i].sum()])
        yield block.stop, server, ledger.Wire(*sent.tolist())


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
    found["up"] = []  # of the bytes sent, those of clients
    how = {"seed": run.seed, "rate": run.rate, "fuse": run.settings.get("fuse", 1)}
    for t, server, sent in rounds(run.program, run.problem, **how):
        if t % run.every == 0:
            found["round"].append(t)
            found["accuracy"].append(run.score(server.base, server.theta, examples)["accuracy"])
            found["sent"].append(sum(sent))
            found["up"].append(sent.up)
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

        def once(key: str, seed: int, rate: float, reported: bool) -> float:
            if key not in found.runs or found.runs[key]["rate"] != rate:
                how = seed, rate, reported
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
    parser.add_argument("--chunk", type=int, default=5, help="clients at once on a device")
    parser.add_argument("--devices", type=int, help="of a CPU; by default one a core")
    parser.add_argument("--results", help="name in benchmarks/claims/results/")
    asked = parser.parse_args()
    other = asked.on if more else None
    settings = more[other] if other else full if full and asked.full else quick
    if settings["data"] != "digits" and asked.data_dir is None:
        parser.error(f"--on {other} reads files; give --data-dir")
    cores = len(os.sched_getaffinity(0))
    devices = cores if asked.devices is None else asked.devices
    jax.config.update("jax_num_cpu_devices", devices)
    results = asked.results or (f"{name}_{other}" if other else name)
    found = kept.Kept(kept.path(results), settings)
    problem = PROBLEMS[settings["data"]](asked.data_dir, settings)
    make(found, problem, cells(settings), asked.chunk, one)
    found.publish(page, draw)
