"""Which methods find the rank of each client's task? PF2LoRA's two-client experiment.

    python configs/pf2lora/rank_learning.py     every method: a table and runs/rank_learning.png
    jaxfed run configs/pf2lora/rank_learning.py --method hetlora   one of them, recorded as any run

Client k has inputs x with second moment exactly I, and y = x W_k*, so that its loss is
1/2 ||W_k - W_k*||_F^2, over the population and without noise. Ground truths have equal singular
values, ranks 3 and 5, and the first lies in the second: rank(W_1* - W_2*) = 2 = 2 r~, and W_k* is
within rank r~ = 1 of a common matrix of rank r = 4. The paper (PF2LoRA, Appendix J) states the
findings and not the sizes, which are ours.

Takes half a minute on 2 cores. PF2LoRA finds both ranks, to 1e-3 and better; so do its ablations:
what adapts the rank is the second adapter. HOMLoRA's one model cannot, though from r = 5 its
clients' next local steps can. HETLoRA's clients stand after their local steps as follows: begun at
ranks (3, 4), the second lacks one of five directions, sqrt(1/5) = 0.447; begun at (3, 5), with
little local work, the directions that the first does not fill vanish, sqrt(2/5) = 0.632.
Independent ground truths are out of reach of r~ = 1: their difference has rank 8, so it takes 4.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
import optax

from jaxfed import Experiment, aggregate, hypergrad, local, lowrank, models, tasks
from jaxfed.algorithms import fedavg, hetlora, pf2lora
from jaxfed.data import federate
from jaxfed.data.sources import Source
from jaxfed.simulation import engine, participation

SIDE, RANKS = 10, (3, 5)
VISIBLE = 0.05  # a singular value above this counts towards the numerical rank
GRADIENTS = {
    "pf2lora": hypergrad.one_step,
    "alternating": hypergrad.alternating,
    "simultaneous": hypergrad.simultaneous,
}


def experiment(
    method: Literal["pf2lora", "alternating", "simultaneous", "homlora", "hetlora"] = "pf2lora",
    truths: Literal["nested", "independent"] = "nested",
    rounds: int = 2000,
    steps: int = 10,
    rank: int = 4,
    personal_rank: int = 1,
    ranks: tuple[int, int] = (3, 4),
    learning_rate: float = 0.05,
    personal_learning_rate: float = 0.05,
    evaluate_every: int = 20,
    seed: int = 0,
) -> Experiment:
    """One method on the two clients.

    Args:
        method: PF2LoRA; without its cross term; both levels at once; or a baseline.
        truths: whether client 1's ground truth is a part of client 2's.
        rounds: how many to run.
        steps: local steps in a round.
        rank: r, of the common factors (not of HETLoRA's).
        personal_rank: of PF2LoRA's personal factors.
        ranks: with which HETLoRA's clients begin.
        learning_rate: of what is common.
        personal_learning_rate: of PF2LoRA's lower level.
        evaluate_every: rounds between evaluations.
        seed: decides inputs, ground truths and first factors.
    """
    rng = np.random.default_rng(seed)
    inputs = [np.sqrt(SIDE) * _orthogonal(rng) for _ in RANKS]  # X'X / d = I
    targets = [x @ w for x, w in zip(inputs, ground_truths(truths, seed), strict=True)]
    pairs = {n: np.concatenate(v).astype(np.float32) for n, v in (("x", inputs), ("y", targets))}
    rows = np.split(np.arange(2 * SIDE), 2)
    data = federate(Source(pairs, pairs), rows, personal_parts=rows)
    select = lowrank.Select(factors="kernel", rank=max(ranks) if method == "hetlora" else rank)
    least_squares = tasks.regression(models.Linear(SIDE), pairs, select=select)
    work, sgd = local.Work(SIDE, steps=steps, shuffle=False), optax.sgd(learning_rate)
    if method == "homlora":
        mean = aggregate.uniform_mean
        algorithm = fedavg(least_squares, work, client_optimizer=sgd, mean=mean)
    elif method == "hetlora":
        algorithm = hetlora(
            least_squares,
            work,
            least=min(ranks),
            most=max(ranks),
            gamma=0.99,
            penalty=0.0,  # so that what is lost is not lost to a penalty
            client_optimizer=sgd,
            ranks=ranks,
        )
    else:
        algorithm = pf2lora(
            least_squares,
            work,
            rank=personal_rank,
            inner_rate=personal_learning_rate,
            upper_optimizer=sgd,
            keep_moments=False,
            personal_head=False,
            gradient=GRADIENTS[method],
        )
    return Experiment(
        data,
        algorithm,
        rounds=rounds,
        cohort=2,
        seed=seed,
        evaluate_every=evaluate_every,
    )


def ground_truths(truths: str, seed: int) -> list[np.ndarray]:
    """W_1*, W_2* [d, d] of ranks 3 and 5; all singular values are one."""
    rng = np.random.default_rng([seed, 1])
    first, second = (_directions(rng) for _ in range(2))
    pairs = ((first if truths == "nested" else second, RANKS[0]), (first, RANKS[1]))
    return [sum(directions[:rank]) for directions, rank in pairs]


def _orthogonal(rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(SIDE, SIDE)))[0]


def _directions(rng: np.random.Generator) -> np.ndarray:
    """u_i v_i' for orthonormal u_i and v_i: [d, d, d]."""
    return np.einsum("ij,kj->jik", _orthogonal(rng), _orthogonal(rng))


def progress(e: Experiment) -> Iterator[tuple[int, list[Any]]]:
    """(round, each client's deployed (base, theta)) after every `evaluate_every` rounds.

    Use it before the next, as rounds give their arrays up.
    """
    machine = engine.machine(devices=1)
    verb = engine.for_each_client(machine, uniform=True)
    rounds = engine.rounds(e.algorithm, verb, e.seed, e.data.train.most)
    step = engine.compiled(rounds, machine, donate=(0, 1))
    server = jax.jit(e.algorithm.init)(jax.random.key(e.seed))
    keys = jax.random.split(jax.random.key(e.seed + 1), 2)
    states = jax.vmap(e.algorithm.init_client, in_axes=(None, 0))(server, keys)
    for begin in range(0, e.rounds, e.evaluate_every):
        end = begin + e.evaluate_every
        plan = participation.make(e, 1, range(begin, end))
        server, states, _ = step(server, states, e.data.train.examples, plan)
        own = [jax.tree.map(lambda s, i=i: s[i], states) for i in range(2)]
        yield end, [e.algorithm.deploy(server, state) for state in own]


def after_local_work(e: Experiment, deployed: Sequence, steps: int, learning_rate: float) -> list:
    """Each client's (base, theta) so many local steps, on all it has, after what it deploys."""
    train, worked = e.data.train, []
    gradient = jax.jit(jax.grad(e.task.loss, 1))
    for i, (base, theta) in enumerate(deployed):
        rows = slice(train.start[i], train.start[i] + train.count[i])
        batch = {n: np.asarray(v)[rows] for n, v in train.examples.items()}
        batch["mask"] = np.ones(train.count[i])
        for _ in range(steps):
            change = gradient(base, theta, batch, jax.random.key(0))
            theta = optax.tree.add_scale(theta, -learning_rate, change)
        worked.append((base, theta))
    return worked


def kernels(deployed: Sequence) -> list[np.ndarray]:
    """W_k [d, d] of each client."""
    return [np.asarray(lowrank.merged(*model)["dense"]["kernel"]) for model in deployed]


class Found(NamedTuple):
    """Of each client [2]: ||W_k - W_k*||_F / ||W_k*||_F, and singular values above VISIBLE."""

    errors: list[float]
    ranks: list[int]


def found(deployed: Sequence, truths: Sequence[np.ndarray]) -> Found:
    pairs = list(zip(kernels(deployed), truths, strict=True))
    errors = [float(np.linalg.norm(w - true) / np.linalg.norm(true)) for w, true in pairs]
    visible = [np.linalg.svd(w, compute_uv=False) > VISIBLE for w, _ in pairs]
    return Found(errors, [int(v.sum()) for v in visible])


class Result(NamedTuple):
    """What a method came to."""

    curve: dict[int, Found]  # by round, of what is deployed
    worked: Found | None  # where no personal adapter is kept: after a further round's local steps


def result(**settings: Any) -> Result:
    """Runs one experiment; `settings` are those of `experiment`."""
    e, curve = experiment(**settings), {}
    truths = ground_truths(settings.get("truths", "nested"), e.seed)
    for t, deployed in progress(e):
        curve[t] = found(deployed, truths)
    if settings["method"] in GRADIENTS:
        return Result(curve, None)
    work = settings.get("steps", 10), settings.get("learning_rate", 0.05)
    return Result(curve, found(after_local_work(e, deployed, *work), truths))


RUNS: dict[str, dict[str, Any]] = {
    "PF2LoRA r=4, r~=1": {"method": "pf2lora"},
    "without the cross term": {"method": "alternating"},
    "both levels at once": {"method": "simultaneous"},
    "HOMLoRA r=4": {"method": "homlora"},
    "HOMLoRA r=5": {"method": "homlora", "rank": 5},
    "HETLoRA (3, 4), rate 0.2": {"method": "hetlora", "learning_rate": 0.2},
    "HETLoRA (3, 5), rate 0.2": {"method": "hetlora", "ranks": (3, 5), "learning_rate": 0.2},
    "HETLoRA (3, 5), rate 0.05": {"method": "hetlora", "ranks": (3, 5)},
    "PF2LoRA, independent": {"method": "pf2lora", "truths": "independent"},
    "the same, r~=4": {"method": "pf2lora", "truths": "independent", "personal_rank": 4},
}


def table(results: dict[str, Result]) -> str:
    """Markdown: a row for each method, with relative errors and ranks of client 1 and 2."""

    def cell(f):
        return "" if f is None else "{:.4f}, {:.4f} ({}, {})".format(*f.errors, *f.ranks)

    head = "| errors (ranks) | as deployed | after local steps |\n| --- | --- | --- |"
    rows = [
        f"| {name} | {cell(list(r.curve.values())[-1])} | {cell(r.worked)} |"
        for name, r in results.items()
    ]
    return "\n".join([head, *rows])


def picture(results: dict[str, Result], path: Path) -> None:
    """Each client's error by round, for every method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for client, axes in enumerate(figure.subplots(1, 2, sharey=True)):
        for i, (name, r) in enumerate(results.items()):
            style = ("-", "--", ":")[i % 3]
            errors = [max(f.errors[client], 1e-7) for f in r.curve.values()]
            axes.loglog(list(r.curve), errors, style, label=name)
        axes.set_title(f"client {client + 1}, rank {RANKS[client]}")
        axes.set_xlabel("round")
    figure.axes[0].set_ylabel("relative error of what is deployed")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/rank_learning.png"))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    results = {name: result(**run, seed=asked.seed) for name, run in RUNS.items()}
    print(table(results))
    picture(results, asked.out)
    print(f"drawn in {asked.out}")


if __name__ == "__main__":
    main()
