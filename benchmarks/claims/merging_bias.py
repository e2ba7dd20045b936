"""Rank gained, bias and step size: which of them decides what a merge is worth?

    python benchmarks/claims/merging_bias.py

A merge lets updates of rank r add up. It may also cost: the product of mean factors is not the mean
of products, and a restart may change the size of a step. So merges are put around FedLoRA, whose
means are separate, around FedEx-LoRA and FLoRA, whose mean of products is exact, and around RoLoRA,
which trains one side at a time and so has no such bias; with `reinit`, which lets steps shrink, and
`balanced`, which does not. The problem is that of binding_rank.py at rank 2. Then FedLoRU is tried
with other cohorts, local work, cycles and AdamW. Every cell's learning rate is the best of one grid
on held-out examples, with a seed that is not reported. Finished runs are kept in the results'
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
    "cohorts": [5],
    "local": [1],
    "tau": [2, 5, 20],
    "rates_adamw": [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1],
    "marks": 2,
}
EVERY = 10  # rounds between merges, where that is not what differs
INNER = {"fedlora": "FedLoRA", "fedex": "FedEx-LoRA", "flora": "FLoRA", "rolora": "RoLoRA"}
ARMS = ("never", "reinit", "balanced")


def cells(settings: Mapping[str, Any]) -> dict[str, sweep.Cell]:
    """{"what differs/arm": cell}; `fedavg` is an arm too, where FedAvg's accuracy may differ."""
    clients, cohort, rounds = (settings[n] for n in ("clients", "cohort", "rounds"))
    usual = sweep.Cell("fedlora", clients, cohort, rounds, rank=settings["rank"])
    found = {"usual/fedavg": usual._replace(method="fedavg")}

    def add(name: str, cell: sweep.Cell, *, ceiling: bool = True) -> None:
        if ceiling:
            found[f"{name}/fedavg"] = cell._replace(method="fedavg")
        found[f"{name}/never"] = cell
        for restart in ARMS[1:]:
            found[f"{name}/{restart}"] = cell._replace(every=EVERY, restart=restart)

    for method in INNER:
        add(method, usual._replace(method=method), ceiling=False)
    for tau in settings["tau"]:
        found[f"tau {tau}/balanced"] = usual._replace(every=tau, restart="balanced")
    for k in settings["cohorts"]:
        add(f"cohort {k}", usual._replace(cohort=k))
    for epochs in settings["local"]:
        add(f"epochs {epochs}", usual._replace(epochs=epochs))
    add("adamw", usual._replace(optimizer="adamw"))
    return found


# ---------------------------------------------------------------------- the page


class Found(binding_rank.Found):
    """The runs that are reported."""

    def __init__(self, content: Mapping[str, Any]):
        super().__init__(content, cells(content["settings"]))

    def ends(self, name: str) -> str:
        """Accuracy and, in brackets, the rate that was chosen."""
        if name not in self.cells:
            return ""
        return f"{intervals.spread(self.last(name))} ({self.runs[name][0]['rate']:g})"

    def gain(self, what: str, restart: str) -> str:
        """Points above never merging, paired by seed."""
        return intervals.points(self.above(f"{what}/{restart}", f"{what}/never"))


def inner(found: Found) -> str:
    """A row an inner algorithm."""
    head = ["inside the merge", *ARMS, "reinit - never", "balanced - never", "balanced - reinit"]
    rows = []
    for method, name in INNER.items():
        pair = found.above(f"{method}/balanced", f"{method}/reinit")
        row = [name, *(found.ends(f"{method}/{arm}") for arm in ARMS)]
        rows.append([*row, *(found.gain(method, r) for r in ARMS[1:]), intervals.points(pair)])
    return intervals.table(head, rows)


def axes(found: Found) -> str:
    """A row a setting that differs."""
    head = ["setting", "FedAvg", *ARMS, "reinit - never", "balanced - never"]
    rows = [["usual", found.ends("usual/fedavg"), *_arms(found, "fedlora")]]
    names = [f"cohort {k}" for k in found.settings["cohorts"]]
    names += [f"epochs {e}" for e in found.settings["local"]] + ["adamw"]
    rows += [[name, found.ends(f"{name}/fedavg"), *_arms(found, name)] for name in names]
    return intervals.table(head, rows)


def _arms(found: Found, what: str) -> list[str]:
    return [
        *(found.ends(f"{what}/{arm}") for arm in ARMS),
        *(found.gain(what, restart) for restart in ARMS[1:]),
    ]


def cycles(found: Found) -> str:
    """A row a number of rounds between merges."""
    head = ["tau, balanced", "accuracy (rate)", "above never [95 %]", "MB"]
    rows = []
    for tau in found.settings["tau"]:
        name = f"tau {tau}/balanced"
        gain = intervals.points(found.above(name, "fedlora/never"))
        rows.append([f"{tau}", found.ends(name), gain, f"{found.megabytes(name):.0f}"])
    return intervals.table(head, rows)


def sentences(found: Found) -> list[str]:
    """What was found, from the numbers."""
    bias = {m: found.above(f"{m}/balanced", "fedlora/balanced") for m in list(INNER)[1:]}
    exact = "; ".join(f"{INNER[m]} {intervals.points(gap)}" for m, gap in bias.items())
    clear = [INNER[m] for m, gap in bias.items() if gap.low > 0]
    kept_step = found.above("fedlora/balanced", "fedlora/reinit")
    ceiling = found.above("usual/fedavg", "fedlora/balanced")
    return [
        "**Rank gained.** Around FedLoRA, balanced merges gain "
        f"{found.gain('fedlora', 'balanced')} points over never merging, and reinit "
        f"{found.gain('fedlora', 'reinit')}. FedAvg is {intervals.points(ceiling)} points above "
        "balanced.",
        f"**Step size kept.** balanced is {intervals.points(kept_step)} points above reinit, each "
        "at its own best rate.",
        "**Bias of separate means.** Were it the limit, balanced merges around an unbiased rule "
        f"would end higher than around FedLoRA. They differ by: {exact} points; "
        + (f"higher beyond the interval: {', '.join(clear)}." if clear else "none is higher."),
        binding_rank.edges(found),
    ]


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    found = Found(content)
    of = found.settings
    about = (
        f"Digits, {of['clients']} clients of Dirichlet({of['concentration']}) over labels, "
        f"{of['cohort']} a round, rank {of['rank']}, a merge in every {EVERY} rounds, "
        f"{of['rounds']} rounds; test accuracy in percent after the last, mean and standard "
        f"deviation over {len(found.seeds)} seeds, and in brackets the learning rate. Differences "
        "are paired by seed, with Student's 95 % interval."
    )
    parts = [kept.head(content, found.settings), about, *sentences(found)]
    return "\n\n".join([*parts, inner(found), axes(found), cycles(found)]) + "\n"


if __name__ == "__main__":
    sweep.main("merging_bias", QUICK, None, cells, page)
