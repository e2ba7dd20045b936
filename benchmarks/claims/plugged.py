"""FedLoRU around FedProx, SCAFFOLD and FedAdam: does a merge gain as much as around FedAvg?

    python benchmarks/claims/plugged.py

The authors answer reviewers that FedLoRU is no rival of these methods, as its merges fit around
them. Here each trains every weight, factors of rank 2 that are never merged, and such factors that
are merged; on digits whose clients are unlike. Gradients are clipped, but for SCAFFOLD, which needs
plain SGD. Every learning rate is the best of a grid on held-out examples, with a seed that is not
reported, and so is the constant that a method has beside it. Finished runs are kept in the results'
.json, so an interrupted comparison goes on where it stopped.
"""

from collections.abc import Mapping
from typing import Any

import binding_rank
import intervals
import kept
import sweep

QUICK: dict[str, Any] = {
    **{n: v for n, v in binding_rank.QUICK.items() if n not in ("ranks", "tau")},
    "rounds": 80,
    "every": 5,
    "rates_sgd": [0.00003, 0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1],
    "constants": {"fedprox": [0.1], "fedadam": [0.01, 0.03]},
    "marks": 2,
}
NAMES = {"fedlora": "FedAvg", "fedprox": "FedProx", "scaffold": "SCAFFOLD", "fedadam": "FedAdam"}
ARMS = ("whole", "never", "merged")


def cells(settings: Mapping[str, Any]) -> dict[str, sweep.Cell]:
    """{"method/arm" or "method/arm/constant": cell}."""
    sizes, found = (settings[n] for n in ("clients", "cohort", "rounds")), {}
    usual = sweep.Cell("fedlora", *sizes, rank=settings["rank"])
    for method in NAMES:
        for constant in settings["constants"].get(method, [None]):
            plain = "sgd" if method == "scaffold" else None
            cell = usual._replace(method=method, constant=constant, optimizer=plain)
            each = {
                "whole": cell._replace(whole=True),
                "never": cell,
                "merged": cell._replace(every=settings["every"], restart="balanced"),
            }
            end = [] if constant is None else [f"{constant:g}"]
            found |= {"/".join([method, arm, *end]): each[arm] for arm in ARMS}
    return found


# ---------------------------------------------------------------------- the page


class Found(binding_rank.Found):
    """The runs that are reported."""

    def __init__(self, content: Mapping[str, Any]):
        super().__init__(content, cells(content["settings"]))

    def best(self, method: str, arm: str) -> str:
        """The cell with the constant that is best on held-out examples."""
        names = [n for n in self.cells if n.startswith(f"{method}/{arm}")]
        return max(names, key=lambda n: self.held_out[n])


def rows(found: Found) -> str:
    """A row for each method: its three arms, and what a merge gains and leaves to be gained."""
    head = ["inside the merge", "every weight", "factors, never merged", "merged", "constants"]
    head += ["merged - never", "every weight - merged"]
    table = []
    for method, name in NAMES.items():
        best = {arm: found.best(method, arm) for arm in ARMS}
        cell = [
            f"{intervals.spread(found.last(best[a]))} ({found.runs[best[a]][0]['rate']:g})"
            for a in ARMS
        ]
        constants = {found.cells[best[a]].constant for a in ARMS} - {None}
        cell.append(", ".join(f"{c:g}" for c in sorted(constants)))
        gains = [("merged", "never"), ("whole", "merged")]
        cell += [intervals.points(found.above(best[x], best[y])) for x, y in gains]
        table.append([name, *cell])
    return intervals.table(head, table)


def beside(found: Found) -> str:
    """Each method's merged run beside FedLoRU's own, which is around FedAvg."""
    plain, parts = found.best("fedlora", "merged"), []
    for method, name in list(NAMES.items())[1:]:
        gap = intervals.points(found.above(found.best(method, "merged"), plain))
        parts.append(f"{name} {gap}")
    return "Merged around another method, above FedLoRU around FedAvg, in points: " + (
        "; ".join(parts) + "."
    )


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    found = Found(content)
    of = found.settings
    about = (
        f"Digits, {of['clients']} clients of Dirichlet({of['concentration']}) over labels, "
        f"{of['cohort']} a round, rank {of['rank']}, {of['rounds']} rounds, a merge in every "
        f"{of['every']} (`balanced`); test accuracy in percent after the last round, mean and "
        f"standard deviation over {len(found.seeds)} seeds, and in brackets the learning rate. "
        "Differences are paired by seed, with Student's 95 % interval. FedProx's mu and FedAdam's "
        "server rate are the constants. SCAFFOLD's clients do not clip their gradients, so its row "
        "says nothing about the others' accuracy."
    )
    chosen = [found.best(m, arm) for m in NAMES for arm in ARMS]
    edge = [n for n in found.at_edge() if n in chosen]
    inside = "Every best learning rate lies inside the grid."
    if edge:
        inside = f"The best rate is at an edge of the grid for {binding_rank.named(edge)}."
    parts = [kept.head(content, of), about, rows(found), beside(found), inside]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sweep.main("plugged", QUICK, None, cells, page)
