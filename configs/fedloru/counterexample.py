"""Three clients for whom FedLoRU ends away from the optimum: an area chair's counterexample.

    python configs/fedloru/counterexample.py     all methods: a table and runs/counterexample.png
    jaxfed run configs/fedloru/counterexample.py --method fedex    one of them, as any other run

Client k has f_k(W) = 1/2 (W - t_k)^2 with a scalar W and t = (0, 0, 1). The optimum of the mean is
W = 1/3. Factors start at (a_0, 0) and return there after each merge, as `restarts.residual` has it.
Clients work until they are at their own optimum. FedLoRU with tau = 1 then stands still at the W of

    a_0^2 = (5 W - 1) (3 W + 1) / sqrt(12 (1 - 3 W) (1 + W)),

which is between 1/5 (a_0 -> 0) and 1/3 (a_0 -> infinity); docs/results/counterexample.md derives
it. Whoever averages products, or trains one side, stands at 1/3.

Takes a minute on 2 cores, most of it compilation.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optax

from jaxfed import Experiment, Host, load, local, lowrank, models, run, tasks
from jaxfed.algorithms import fedavg, fedlora, fedloru
from jaxfed.combine import accumulate
from jaxfed.data import federate
from jaxfed.data.sources import Source
from jaxfed.lowrank import restarts, rules

TARGETS = (0.0, 0.0, 1.0)
OPTIMUM = sum(TARGETS) / 3
POINTS: Mapping[str, tuple[float, ...]] = {"x": (1.0, 1.0, 1.0), "y": TARGETS}

RULES = {
    "fedlora": rules.SEPARATE,
    "fedex": rules.FEDEX,
    "flora": rules.FLORA,
    "flexlora": rules.FLEXLORA,
    "fedmomentum": rules.FEDMOMENTUM,
    "ffa": rules.FFA,
    "rolora": rules.ROLORA,
    "rac": rules.FFA,
    "fedloru-fedex": rules.FEDEX,
}
MERGED = ("rac", "fedloru-fedex")  # in every round, as FedLoRU's factors


def experiment(
    method: Literal[
        "fedavg",
        "fedlora",
        "fedloru",
        "fedex",
        "flora",
        "flexlora",
        "fedmomentum",
        "ffa",
        "rolora",
        "rac",
        "fedloru-fedex",
    ] = "fedloru",
    begin: float = 0.25,
    rounds: int = 150,
    steps: int = 1000,
    learning_rate: float = 0.05,
    seed: int = 0,
) -> Experiment:
    """One method on the three clients.

    Args:
        method: what clients train and what the server does with it.
        begin: a_0, the first down factor; the up factor starts at zero.
        rounds: how many to run.
        steps: local steps in a round, enough to reach a client's own optimum.
        learning_rate: of the local steps.
        seed: decides FLoRA's down factors; nothing else is random.
    """
    pairs = {n: np.reshape(v, (3, 1)).astype(np.float32) for n, v in POINTS.items()}
    data = federate(Source(pairs, pairs), [np.array([k]) for k in range(3)])
    whole = tasks.regression(models.Linear(1), pairs)
    select = lowrank.Select(factors="kernel", rank=1, alpha=1)
    factored = tasks.regression(models.Linear(1), pairs, select=select)

    def init(key):
        base, theta = factored.init(key)
        factors = {p: dataclasses.replace(f, a=0 * f.a + begin) for p, f in theta.factors.items()}
        return base, theta._replace(factors=factors)

    task, sgd = factored._replace(init=init), optax.sgd(learning_rate)
    work = local.Work(1, steps=steps, shuffle=False)
    merged: dict[str, Any] = {"every": 1, "restart": restarts.residual}
    if method == "fedavg":
        algorithm = fedavg(whole, work, client_optimizer=sgd)
    elif method == "fedloru":
        algorithm = fedloru(task, work, **merged, client_optimizer=sgd)
    else:
        algorithm = fedlora(task, work, rule=RULES[method], client_optimizer=sgd, cohort_size=3)
    if method in MERGED:
        algorithm = accumulate(algorithm, **merged)
    return Experiment(data, algorithm, rounds=rounds, cohort=3, seed=seed, evaluate_every=0)


def ended(**settings: Any) -> float:
    """W after the last round, factors merged; `settings` are those of `experiment`."""
    e = experiment(**settings)
    with tempfile.TemporaryDirectory() as folder:
        host = Host(devices=1, chunk=3, fuse=10, checkpoint_every=0)
        for _ in run(e, folder, host):
            pass
        return float(load(folder, experiment=e).params()["dense"]["kernel"][0, 0])


# ---------------------------------------------------------------------- the closed form


def up(u: float, begin: float) -> float:
    """b of a client that starts at (a_0, 0) and ends where a b = u: a^2 - b^2 stays a_0^2."""
    return float(u * np.sqrt(2 / (np.hypot(begin**2, 2 * u) + begin**2)))


def begin_of(w: float) -> float:
    """The a_0 with which FedLoRU stands still at W = w, for w in [1/5, 1/3)."""
    return float(np.sqrt((5 * w - 1) * (3 * w + 1) / np.sqrt(12 * (1 - 3 * w) * (1 + w))))


def fixed_point(begin: float) -> float:
    """The W in [1/5, 1/3) at which FedLoRU stands still; by bisection, as begin_of increases."""
    low, high = 1 / 5, 1 / 3
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if begin_of(middle) < begin else (low, middle)
    return low


# ---------------------------------------------------------------------- the table and the picture

BEGINS = (0.03, 0.1, 0.25, 0.5, 1.0, 2.0)
NAMES = {
    "fedavg": "FedAvg, all of W",
    "fedlora": "FedLoRA, never merged",
    "fedloru": "FedLoRU, merged in every round",
    "fedex": "FedEx-LoRA",
    "flora": "FLoRA",
    "flexlora": "FlexLoRA",
    "fedmomentum": "FedMomentum",
    "ffa": "FFA-LoRA",
    "rolora": "RoLoRA",
    "rac": "Fed-RAC-LoRA",
    "fedloru-fedex": "FedLoRU around FedEx-LoRA",
}


def table(found: Mapping[str, float]) -> str:
    """Markdown: where each method is after its rounds."""
    rows = [f"| {NAMES[m]} | {w:.4f} | {w - OPTIMUM:+.4f} |" for m, w in found.items()]
    return "\n".join(["| method | W | W - 1/3 = grad F |", "| --- | --- | --- |", *rows])


def draw(found: Mapping[str, float], loru: Mapping[float, float], path: Path) -> None:
    """FedLoRU's end against a_0 beside the closed form, and where the others stand at a_0 = 1/4."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    begins = np.geomspace(0.01, 10, 200)
    left.plot(begins, [fixed_point(a) for a in begins], label="closed form")
    left.plot(list(loru), list(loru.values()), "o", label="FedLoRU, as run")
    for height, name in ((1 / 3, "optimum, 1/3"), (1 / 5, "limit, 1/5")):
        left.axhline(height, color="grey", linestyle=":", linewidth=1)
        left.annotate(name, (0.011, height + 0.003), color="grey")
    left.set(
        ylim=(0.19, 0.35), xscale="log", xlabel="$a_0$", ylabel="W", title="FedLoRU's fixed point"
    )
    left.legend(loc="center left")
    right.barh([NAMES[m] for m in found], list(found.values()), color="C0")
    right.axvline(OPTIMUM, color="grey", linestyle=":", linewidth=1)
    right.set(xlim=(0, 0.4), xlabel="W", title="All methods, $a_0 = 1/4$")
    right.invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/counterexample.png"))
    asked = parser.parse_args()
    found = {method: ended(method=method) for method in NAMES}
    print(table(found), end="\n\n")
    loru = {a: ended(begin=a, rounds=30, steps=4000) for a in BEGINS}
    print("| a_0 | closed form | FedLoRU, as run |\n| --- | --- | --- |")
    for a, w in loru.items():
        print(f"| {a:g} | {fixed_point(a):.4f} | {w:.4f} |")
    draw(found, loru, asked.out)
    print(f"\ndrawn in {asked.out}")


if __name__ == "__main__":
    main()
