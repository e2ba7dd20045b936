"""Where the rank binds, and what a merge then gains: FedLoRU by rank, restart and tau.

    python benchmarks/claims/binding_rank.py

FedLoRU (Park and Klabjan, arXiv 2409.12371) claims that rounds of rank r, accumulated, come close
to training every weight. A fair trial needs a rank that is too low for the problem: where FedLoRA
already equals FedAvg, nothing can be gained. Here r goes from far too low to enough, on digits with
unlike clients. Every restart is tried, with FedAvg as the ceiling and FedLoRA as the floor; every
cell's learning rate is the best of one grid on held-out examples, with a seed that is not reported.
Finished runs are kept in the results' .json, so an interrupted comparison goes on where it stopped.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import intervals
import kept
import numpy as np
import sweep
from matplotlib.figure import Figure

from jaxfed.analysis import look

RESTARTS = ("keep", "residual", "reinit", "balanced")
QUICK: dict[str, Any] = {
    "data": "digits",
    "widths": [128, 128],
    "train": 1077,
    "scored": 360,
    "clients": 100,
    "cohort": 20,
    "concentration": 0.5,
    "rounds": 200,
    "fuse": 10,
    "ranks": [1, 2, 4, 8, 16],
    "tau": [10, 50],
    "epochs": 5,
    "batch": 10,
    "rank": 2,
    "scale": 2.0,
    "clip": 1.0,
    "rates": [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
    "seeds": [1, 2, 3, 4, 5],
    "marks": 20,
}


def cells(settings: Mapping[str, Any]) -> dict[str, sweep.Cell]:
    """{"rank/restart/tau": cell}, {"rank/never": cell}, and "fedavg"."""
    sizes = settings["clients"], settings["cohort"], settings["rounds"]
    found = {"fedavg": sweep.Cell("fedavg", *sizes)}
    for r in settings["ranks"]:
        found[f"{r}/never"] = sweep.Cell("fedlora", *sizes, rank=r)
        for restart in RESTARTS:
            for tau in taus(settings, restart):
                found[f"{r}/{restart}/{tau}"] = sweep.Cell("fedloru", *sizes, tau, restart, r)
    return found


def taus(settings: Mapping[str, Any], restart: str) -> list[int]:
    """The cycles tried; those of `balanced` begin with a merge in every round."""
    return [1, *settings["tau"]] if restart == "balanced" else settings["tau"]


# ---------------------------------------------------------------------- the page


class Found:
    """The runs that are reported, by cell and seed."""

    def __init__(self, content: Mapping[str, Any], made: Mapping[str, sweep.Cell] | None = None):
        self.settings = content["settings"]
        self.seeds, self.ranks = self.settings["seeds"], self.settings.get("ranks", [])
        self.cells = made or cells(self.settings)
        runs = content["runs"]
        self.runs = {n: [runs[f"{n}/seed/{s}"] for s in self.seeds] for n in self.cells}
        self.held_out: dict[str, float] = {}  # accuracy with the rate that was chosen
        for key, run in runs.items():
            name, kind, _ = key.rsplit("/", 2)
            if kind == "grid":
                self.held_out[name] = max(self.held_out.get(name, 0.0), run["accuracy"][-1])

    def last(self, name: str) -> list[float]:
        """[seeds] accuracy after the last round."""
        return [run["accuracy"][-1] for run in self.runs[name]]

    def above(self, name: str, other: str) -> intervals.Interval:
        """Accuracy above that of another cell, paired by seed."""
        pairs = zip(self.last(name), self.last(other), strict=True)
        return intervals.student([mine - theirs for mine, theirs in pairs])

    def megabytes(self, name: str) -> float:
        """What all clients sent and received in a run."""
        return statistics.fmean(run["sent"][-1] for run in self.runs[name]) / 1e6

    def at_edge(self) -> list[str]:
        """The cells whose best rate is the first or last of the grid."""
        found = []
        for name, cell in self.cells.items():
            rates = self.settings.get(f"rates_{cell.optimizer}", self.settings["rates"])
            if self.runs[name][0]["rate"] in (rates[0], rates[-1]):
                found.append(name)
        return found

    def best(self, rank: int, restart: str) -> str:
        """The cell of that rank and restart with the best tau on held-out examples."""
        names = [f"{rank}/{restart}/{tau}" for tau in taus(self.settings, restart)]
        return max(names[::-1], key=lambda n: self.held_out.get(n, 0.0))  # of equals, the longest


def edges(found: Found) -> str:
    """Whether every cell was tuned within its grid, and with success for every seed."""
    there, answer = found.at_edge(), "Every cell's best learning rate lies inside the grid."
    if there:
        answer = f"The best rate is at an edge of the grid for {named(there)}: tune them further."
    lost = [n for n in found.cells if min(found.last(n)) < 0.5 * max(found.last(n))]
    if lost:
        answer += (
            f" With some seeds {named(lost)} diverged at the rate that seed 0 chose; read nothing "
            "else into it."
        )
    return answer


def named(names: Sequence[str]) -> str:
    return "; ".join(n.replace("/", ", ") for n in names)


def binds(found: Found) -> str:
    """At which ranks a merge gains, and where that ends."""
    gains = {r: found.above(found.best(r, "balanced"), f"{r}/never") for r in found.ranks}
    gaining = [r for r, gain in gains.items() if gain.low > 0]
    rest = [r for r in found.ranks if r not in gaining]
    each = "; ".join(f"r = {r}: {intervals.points(gain)}" for r, gain in gains.items())
    return (
        f"**Does merging help?** Yes, where the rank binds: at r = {listed(gaining)}; not beyond "
        f"what seeds differ by at r = {listed(rest)}. balanced above FedLoRA of the same rank, "
        f"with the tau that is best on held-out examples, in points: {each}."
    )


def which(found: Found) -> str:
    """The order of the restarts at the ranks that bind most."""
    parts = []
    for r in found.ranks[:2]:
        best = {restart: found.best(r, restart) for restart in RESTARTS}
        order = sorted(RESTARTS, key=lambda x: -statistics.fmean(found.last(best[x])))
        ends = ", ".join(f"{x} {intervals.spread(found.last(best[x]))}" for x in order)
        lead = intervals.points(found.above(best[order[0]], best[order[1]]))
        parts.append(f"at r = {r}: {ends} ({order[0]} leads by {lead})")
    tuned = "With the tau of each that is best on held-out examples"
    return f"**Which restart?** {tuned}, {'; '.join(parts)}."


def ceiling(found: Found) -> str:
    """How far below FedAvg the best cell of each rank is."""
    parts = []
    for r in found.ranks:
        name = found.best(r, "balanced")
        gap, share = found.above(name, "fedavg"), found.megabytes(name)
        percent = 100 * share / found.megabytes("fedavg")
        parts.append(f"r = {r}: {intervals.points(gap)} for {percent:.0f} % of the bytes")
    return (
        f"**How far from FedAvg?** FedAvg ends at {intervals.spread(found.last('fedavg'))} for "
        f"{found.megabytes('fedavg'):.0f} MB. balanced is apart from it by, in points, "
        f"{'; '.join(parts)}."
    )


def listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks)) or "none"


def table(found: Found) -> str:
    """A row a cell; accuracies in percent, gains in points."""
    head = ["rank", "restart", "tau", "rate", "accuracy", "above FedLoRA [95 %]"]
    head += ["above FedAvg [95 %]", "MB"]
    rows = []
    for name in found.cells:
        rank, restart, tau = [*name.split("/"), "", ""][:3]
        whole, floor = rank == "fedavg", f"{rank}/never"
        row = ["full", "FedAvg", ""] if whole else [rank, restart, tau]
        row += [f"{found.runs[name][0]['rate']:g}", intervals.spread(found.last(name))]
        row += ["" if whole or name == floor else intervals.points(found.above(name, floor))]
        row += ["" if whole else intervals.points(found.above(name, "fedavg"))]
        rows.append([*row, f"{found.megabytes(name):.0f}"])
    return intervals.table(head, rows)


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    found = Found(content)
    of = found.settings
    about = (
        f"Digits, an MLP of {of['widths']} with factors beside its hidden layers, {of['clients']} "
        f"clients of Dirichlet({of['concentration']}) over labels, {of['cohort']} a round, "
        f"{of['epochs']} epochs of batches of {of['batch']} by SGD with gradients clipped at "
        f"{of['clip']:g}, {of['rounds']} rounds. Test accuracy in percent after the last round, "
        f"mean and standard deviation over {len(found.seeds)} seeds (of the split, the first "
        "weights and the sampling). Differences are paired by seed, with Student's 95 % interval. "
        f"The learning rate of each cell is the best of {sweep.grid(content)} on "
        "held-out examples with seed 0. MB are all that clients send and receive in a run."
    )
    parts = [kept.head(content, of), about, binds(found), which(found), ceiling(found)]
    parts += [edges(found), f"![accuracy by rank and by bytes]({picture})", table(found)]
    return "\n\n".join(parts) + "\n"


def draw(content: Mapping[str, Any]) -> Figure:
    """Accuracy by rank, and accuracy against the bytes of a run; bands hold all seeds."""
    found = Found(content)
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    by_rank, by_bytes = figure.subplots(1, 2)
    arms = {"FedLoRA (never merged)": lambda r: f"{r}/never"}
    arms |= {f"FedLoRU, {x}": lambda r, x=x: found.best(r, x) for x in RESTARTS}
    for i, (label, name) in enumerate(arms.items()):
        ends = 100 * np.array([found.last(name(r)) for r in found.ranks])
        colour = look.COLOURS[i]
        by_rank.plot(found.ranks, ends.mean(1), "o-", color=colour, label=label, markersize=4)
        by_rank.fill_between(found.ranks, ends.min(1), ends.max(1), color=colour, alpha=0.15)
    whole = 100 * statistics.fmean(found.last("fedavg"))
    by_rank.axhline(whole, color=look.COLOURS[-1], linewidth=1, label="FedAvg")
    by_rank.set_xscale("log", base=2)
    by_rank.set_xticks(found.ranks, [f"{r}" for r in found.ranks])
    by_rank.set(title="Accuracy by rank", xlabel="rank", ylabel="percent")
    by_rank.legend(loc="lower right")
    low, enough = found.ranks[min(1, len(found.ranks) - 1)], found.ranks[max(-2, -len(found.ranks))]
    curves = {
        f"FedLoRU, rank {low}, balanced": f"{low}/balanced/{found.settings['tau'][0]}",
        f"FedLoRA, rank {low}": f"{low}/never",
        f"FedLoRA, rank {enough}": f"{enough}/never",
        "FedAvg": "fedavg",
    }
    for (label, name), colour in zip(
        curves.items(),
        (look.COLOURS[4], look.COLOURS[0], look.COLOURS[5], look.COLOURS[-1]),
        strict=True,
    ):
        runs = found.runs[name]
        sent = np.mean([run["sent"] for run in runs], 0) / 1e6
        accuracy = 100 * np.array([run["accuracy"] for run in runs])
        by_bytes.plot(sent, accuracy.mean(0), color=colour, label=label)
        by_bytes.fill_between(sent, accuracy.min(0), accuracy.max(0), color=colour, alpha=0.15)
    by_bytes.set_xscale("log")
    by_bytes.xaxis.set_major_formatter("{x:g}")
    by_bytes.set(title="Accuracy by bytes", xlabel="MB sent and received by all clients")
    by_bytes.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    sweep.main("binding_rank", QUICK, None, cells, page, draw)
