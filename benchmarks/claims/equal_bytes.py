"""Who learns most from the same megabytes? FedLoRU, its kin, and FedAvg with compressed uploads.

    python benchmarks/claims/equal_bytes.py
    python benchmarks/claims/equal_bytes.py --on fashion_mnist --data-dir DIR

FedLoRU (Park and Klabjan, arXiv 2409.12371) was published without the comparison that its reviewers
asked for: with compressors of FedAvg's uploads at equal cost. Here each method makes as many rounds
as a budget of bytes allows, at a rank that binds: once of all bytes, up and down, once of those
that clients send. Each method's learning rate is the best of one grid at the end of either budget,
on held-out examples, with a seed that is not reported. The ceiling is FedAvg without a budget. A
client that missed merges fetches them when it is drawn next, and never more than the whole model.
Finished runs are kept in the results' .json, so an interrupted comparison goes on where it stopped.
"""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import intervals
import jax
import jax.numpy as jnp
import kept
import numpy as np
import sweep
from matplotlib.figure import Figure

from jaxfed import Experiment
from jaxfed.analysis import look

QUICK: dict[str, Any] = {
    "data": "digits",
    "widths": [128, 128],
    "train": 1077,
    "scored": 360,
    "clients": 100,
    "cohort": 20,
    "concentration": 0.5,
    "epochs": 5,
    "batch": 10,
    "rank": 2,
    "high_rank": 8,
    "tau": 10,
    "density": 0.05,
    "scale": 2.0,
    "clip": 1.0,
    "total": 80e6,
    "uplink": 40e6,
    "rounds": 600,
    "ceiling": 200,
    "marks": 9,
    "rates": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
    "seeds": [1, 2, 3, 4, 5],
}
FASHION: dict[str, Any] = {
    **QUICK,
    "data": "fashion_mnist_mlp",
    "size": 14,
    "widths": [200, 200],
    "train": 4000,
    "scored": 2000,
    "clients": 50,
    "cohort": 10,
    "batch": 20,
    "tau": 5,
    "density": 0.025,
    "total": 12e6,
    "uplink": 6e6,
    "rounds": 300,
    "ceiling": 60,
}
DATA = {"digits": "Digits", "fashion_mnist_mlp": "Fashion-MNIST"}
AXES = {"total": "bytes up and down", "uplink": "bytes up"}
NAMES = {
    "fedloru": "FedLoRU, `balanced`",
    "fedlora": "FedLoRA",
    "high": "FedLoRA of a higher rank",
    "fedex": "FedEx-LoRA",
    "flora": "FLoRA",
    "flexlora": "FlexLoRA",
    "ffa": "FFA-LoRA",
    "rolora": "RoLoRA",
    "fedavg": "FedAvg",
    "top": "FedAvg, top-k",
    "ef14": "FedAvg, top-k with EF14",
    "ef21": "FedAvg, top-k with EF21",
    "power": "FedAvg, PowerSGD",
}


def cells(settings: Mapping[str, Any]) -> dict[str, sweep.Cell]:
    """{arm: cell}, each with more rounds than a budget allows; and "ceiling"."""
    clients, cohort, rounds = (settings[n] for n in ("clients", "cohort", "rounds"))
    low = sweep.Cell("fedlora", clients, cohort, rounds, rank=settings["rank"])
    whole = low._replace(method="fedavg")
    found = {
        "fedloru": low._replace(method="fedloru", every=settings["tau"], restart="balanced"),
        "fedlora": low,
        "high": low._replace(rank=settings["high_rank"]),
        "ceiling": whole._replace(rounds=settings["ceiling"]),
        "fedavg": whole,
    }
    found |= {up: whole._replace(uplink=up, density=settings["density"]) for up in sweep.UPLINKS}
    return found | {rule: low._replace(method=rule) for rule in sweep.RULES}


def marks(settings: Mapping[str, Any], axis: str) -> np.ndarray:
    """Bytes [marks] at which a run is scored, up to the budget, by factors of sqrt 2."""
    return settings[axis] * 2.0 ** (np.arange(1 - settings["marks"], 1) / 2)


def watched(
    made: Experiment, problem: sweep.Problem, cell: sweep.Cell, settings: Mapping[str, Any]
) -> Experiment:
    """The run, scored in every round until both budgets are spent; the ceiling at its end."""
    if cell.rounds == settings["ceiling"]:
        return dataclasses.replace(made, evaluate_every=cell.rounds)

    def stop_when(records: Sequence[dict]) -> bool:
        up = sum(r["up"] for r in records)
        total = up + sum(r["down"] + r["broadcast"] for r in records)
        return total > settings["total"] and up > settings["uplink"]

    return dataclasses.replace(made, evaluate_every=1, stop_when=stop_when)


def collected(settings: Mapping[str, Any], records: Sequence[dict], before: float) -> dict:
    """The run's accuracy as it was when it had spent so many bytes, and when it ended.

    `before` is that of the model before the first round.
    """
    found: dict[str, Any] = {}
    if "accuracy" in records[0]:  # the ceiling is evaluated once
        accuracy = [before, *(r["accuracy"] for r in records)]
        for axis, sent in {"total": "sent", "uplink": "sent up"}.items():
            spent = [r[sent] for r in records]
            rounds = np.searchsorted(spent, marks(settings, axis), "right").tolist()
            found |= {axis: [accuracy[t] for t in rounds], f"rounds, {axis}": rounds[-1]}
    return {
        **found,
        "end": records[-1]["accuracy"],
        "seconds": math.fsum(r["seconds"] for r in records),
    }


def before(made: Experiment) -> float:
    """Accuracy on the test set before the first round."""
    server, test = made.algorithm.init(jax.random.key(made.seed)), made.data.test
    count = len(test["label"])
    sums = made.task.evaluate(server.base, server.theta, {**test, "mask": jnp.ones(count)})
    return float(made.task.summary(jax.device_get(sums), count)["accuracy"])


def tuned(found: kept.Kept, cells: Mapping[str, sweep.Cell], how: sweep.How, collect) -> None:
    """Makes the missing cells: the grid of rates with seed 0, the seeds at the best of each axis.

    A rate that is best on one axis is run for the other one, too.
    """
    settings = how.settings
    for name, cell in cells.items():
        if Found(found.content).done(name):
            continue

        grid, seeds = how.folder(name) / "grid", how.folder(name) / "seeds"
        options = {"merges": "lazy", "learning_rate": settings["rates"]}
        how.sweep(name, grid, **options, seed=0, on="validation")
        for rate, seed, records in sweep.trials(grid):
            made = how.experiment(cell, rate, seed)
            start = before(dataclasses.replace(made, data=made.data.validated()))
            run = {"rate": rate, **collect(settings, records, start)}
            found.add(f"{name}/grid/{rate:g}", run)
        best = {Found(found.content).rate(name, goal) for goal in goals(name)}
        options |= {"learning_rate": sorted(best), "seed": settings["seeds"]}
        how.sweep(name, seeds, **options)
        for rate, seed, records in sweep.trials(seeds):
            start = before(how.experiment(cell, rate, seed))
            run = {"rate": rate, **collect(settings, records, start)}
            found.add(f"{name}/seed/{seed}/{rate:g}", run)


def goals(name: str) -> list[str]:
    """For which ends a rate is chosen."""
    return ["end"] if name == "ceiling" else list(AXES)


def at_end(run: Mapping[str, Any], goal: str) -> float:
    """Accuracy at the end of the run, or of a budget."""
    return run["end"] if goal == "end" else run[goal][-1]


# ---------------------------------------------------------------------- the page


class Found:
    """The runs that are reported, by arm and axis."""

    def __init__(self, content: Mapping[str, Any]):
        self.settings, self.all = content["settings"], content["runs"]
        self.seeds, self.rates = self.settings["seeds"], self.settings["rates"]
        self.arms = [arm for arm in NAMES if self.done(arm)]

    def done(self, arm: str) -> bool:
        """Whether all runs of the arm are there."""
        try:
            return all(len(self.runs(arm, goal)) == len(self.seeds) for goal in goals(arm))
        except (KeyError, ValueError):
            return False

    def rate(self, arm: str, goal: str) -> float:
        """The best on held-out examples of those tried; ValueError if none was."""
        tried = {x: f"{arm}/grid/{x:g}" for x in self.rates if f"{arm}/grid/{x:g}" in self.all}
        return max(tried, key=lambda x: at_end(self.all[tried[x]], goal))

    def runs(self, arm: str, goal: str) -> list[dict]:
        rate = self.rate(arm, goal)
        return [self.all[f"{arm}/seed/{s}/{rate:g}"] for s in self.seeds]

    def last(self, arm: str, goal: str) -> list[float]:
        """[seeds] accuracy at the end of the budget."""
        return [at_end(run, goal) for run in self.runs(arm, goal)]

    def above(self, arm: str, other: str, axis: str) -> intervals.Interval:
        """Accuracy above that of another arm, paired by seed."""
        pairs = zip(self.last(arm, axis), self.last(other, axis), strict=True)
        return intervals.student([mine - theirs for mine, theirs in pairs])


def table(found: Found, axis: str) -> str:
    """A row an arm, the best first."""
    rows = []
    for arm in sorted(found.arms, key=lambda arm: -statistics.fmean(found.last(arm, axis))):
        runs = found.runs(arm, axis)
        quarter = [run[axis][-5] for run in runs]  # four half powers of two before the end
        ahead = "" if arm == "fedloru" else intervals.points(found.above("fedloru", arm, axis))
        rows.append(
            [
                NAMES[arm],
                f"{statistics.fmean(run[f'rounds, {axis}'] for run in runs):.0f}",
                f"{found.rate(arm, axis):g}",
                intervals.spread(found.last(arm, axis)),
                intervals.spread(quarter),
                ahead,
            ]
        )
    head = [
        "",
        "rounds",
        "rate",
        "accuracy",
        "at a quarter of the bytes",
        "FedLoRU above it [95 %]",
    ]
    return intervals.table(head, rows)


def sentence(found: Found, axis: str) -> str:
    """Whom FedLoRU leads, and who leads it, from the numbers."""
    gaps = {arm: found.above("fedloru", arm, axis) for arm in found.arms if arm != "fedloru"}
    over = [NAMES[arm] for arm, gap in gaps.items() if gap.low > 0]
    under = [NAMES[arm] for arm, gap in gaps.items() if gap.high < 0]
    alike = [NAMES[arm] for arm, gap in gaps.items() if gap.low <= 0 <= gap.high]
    return (
        f"**{found.settings[axis] / 1e6:g} million {AXES[axis]}.** FedLoRU ends at "
        f"{intervals.spread(found.last('fedloru', axis))} %, above {'; '.join(over) or 'none'}; "
        f"below {'; '.join(under) or 'none'}; not told apart from {'; '.join(alike) or 'none'}."
    )


def edges(found: Found) -> str:
    """Whether every rate lies within the grid."""
    ends = found.rates[0], found.rates[-1]
    arms = [*found.arms, "ceiling"]
    there = [f"{a} ({g})" for a in arms for g in goals(a) if found.rate(a, g) in ends]
    answer = "Every best learning rate lies inside the grid."
    if there:
        answer = f"The best rate is at an edge of the grid for {'; '.join(there)}."
    if missing := [NAMES[arm] for arm in NAMES if arm not in found.arms]:
        answer += f" Not run to the end: {'; '.join(missing)}."
    return answer


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    found, of = Found(content), content["settings"]
    ceiling = intervals.spread(found.last("ceiling", "end"))
    about = (
        f"{DATA[of['data']]}, {of['clients']} clients of Dirichlet({of['concentration']}) over "
        f"labels, {of['cohort']} a round, {of['epochs']} epochs of batches of {of['batch']} by SGD "
        f"with gradients clipped at {of['clip']:g}; an MLP of {of['widths']}, factors of rank "
        f"{of['rank']} beside its hidden layers (`higher` is {of['high_rank']}); FedLoRU merges in "
        f"every {of['tau']} rounds; top-k sends {100 * of['density']:g} % of the entries with "
        f"their positions, PowerSGD rank {of['rank']}. Compressors save nothing on the way down. "
        "Test accuracy in percent, mean and standard deviation over "
        f"{len(found.seeds)} seeds; differences are paired by seed, with Student's 95 % interval. "
        f"FedAvg without a budget, the ceiling, ends at {ceiling} % after {of['ceiling']} rounds."
    )
    parts = [kept.head(content, of), about, *(sentence(found, axis) for axis in AXES)]
    parts += [edges(found), f"![accuracy against megabytes]({picture})"]
    for axis in AXES:
        parts += [f"## {of[axis] / 1e6:g} million {AXES[axis]}", table(found, axis)]
    return "\n\n".join(parts) + "\n"


def draw(content: Mapping[str, Any]) -> Figure:
    """Accuracy against bytes, for either kind; bands hold all seeds."""
    found = Found(content)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    plots = figure.subplots(1, 2, sharey=True)
    for place, axis in zip(plots, AXES, strict=True):
        at = marks(found.settings, axis) / 1e6
        for i, arm in enumerate(found.arms):
            accuracy = 100 * np.array([run[axis] for run in found.runs(arm, axis)])
            colour = look.COLOURS[i % len(look.COLOURS)]
            dash = "-" if i < len(look.COLOURS) else "--"
            width = 2.5 if arm == "fedloru" else 1.2
            place.plot(at, accuracy.mean(0), dash, color=colour, label=NAMES[arm], linewidth=width)
            place.fill_between(at, accuracy.min(0), accuracy.max(0), color=colour, alpha=0.08)
        ceiling = 100 * statistics.fmean(found.last("ceiling", "end"))
        place.axhline(ceiling, color="#666666", linewidth=1, label="FedAvg, no budget")
        place.set_xscale("log")
        place.set_xticks(at[::2], [f"{mb:g}" for mb in at[::2]])
        place.minorticks_off()
        place.set(title=f"Accuracy by {AXES[axis]}", xlabel="MB of all clients (log scale)")
    plots[0].set_ylabel("percent")
    figure.legend(*plots[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


if __name__ == "__main__":
    more = {"fashion_mnist": FASHION}
    sweep.main("equal_bytes", QUICK, None, cells, page, draw, collected, make=tuned, more=more)
