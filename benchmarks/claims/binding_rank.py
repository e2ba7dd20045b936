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
from collections.abc import Mapping
from typing import Any

import intervals
import kept
import sweep

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

    def __init__(self, content: Mapping[str, Any]):
        self.settings = content["settings"]
        self.seeds = self.settings["seeds"]
        self.cells = cells(self.settings)
        self.runs = {n: [content["runs"][f"{n}/seed/{s}"] for s in self.seeds] for n in self.cells}

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
        ends = self.settings["rates"][0], self.settings["rates"][-1]
        return [n for n, runs in self.runs.items() if runs[0]["rate"] in ends]

    def best(self, rank: int, restart: str) -> str:
        """The cell of that rank and restart with the highest mean."""
        names = [f"{rank}/{restart}/{tau}" for tau in taus(self.settings, restart)]
        return max(names, key=lambda n: statistics.fmean(self.last(n)))


def table(found: Found) -> str:
    """A row a cell; accuracies in percent, gains in points."""
    head = ["rank", "restart", "tau", "rate", "accuracy", "above FedLoRA [95 %]"]
    head += ["above FedAvg [95 %]", "MB"]
    rows = []
    for name in found.cells:
        rank, restart, tau = [*name.split("/"), "", ""][:3] if "/" in name else ("full", "", "")
        floor = "" if name == "fedavg" or restart == "never" else f"{rank}/never"
        rows.append(
            [
                rank,
                "FedAvg" if name == "fedavg" else restart,
                tau,
                f"{found.runs[name][0]['rate']:g}",
                intervals.spread(found.last(name)),
                intervals.points(found.above(name, floor)) if floor else "",
                "" if name == "fedavg" else intervals.points(found.above(name, "fedavg")),
                f"{found.megabytes(name):.0f}",
            ]
        )
    return intervals.table(head, rows)


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    found = Found(content)
    return "\n\n".join([kept.head(content, found.settings), table(found)]) + "\n"


if __name__ == "__main__":
    sweep.main("binding_rank", QUICK, QUICK, cells, page, None)
