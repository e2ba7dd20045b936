"""Rank gained, bias and step size: which of them decides what a merge is worth?

    python benchmarks/claims/merging_bias.py
    python benchmarks/claims/merging_bias.py --on fashion_mnist --data-dir DIR

A merge lets updates of rank r add up. It may also cost: the product of mean factors is not the mean
of products, and a restart may change the size of a step. So merges are put around FedLoRA, whose
means are separate, around FedEx-LoRA and FLoRA, whose mean of products is exact, and around RoLoRA,
which trains one side at a time and so has no such bias; with `reinit`, which lets steps shrink, and
`balanced`, which does not. The problem is that of binding_rank.py at rank 2. Then FedLoRU is tried
with other cohorts, local work, cycles and AdamW. On Fashion-MNIST only what is inside the merge
differs. Every cell's learning rate is the best of one grid
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
FASHION: dict[str, Any] = {
    **{n: v for n, v in QUICK.items() if n != "rates_adamw"},
    **{"data": "fashion_mnist_mlp", "size": 14, "widths": [200, 200]},
    **{"train": 4000, "scored": 2000, "clients": 50, "cohort": 10, "batch": 20},
    **{"rounds": 40, "every": 5, "cohorts": [], "local": [], "tau": []},
}
EVERY = 10  # rounds between merges, where the settings have none
DATA = {"digits": "Digits", "fashion_mnist_mlp": "Fashion-MNIST and an MLP"}
INNER = {"fedlora": "FedLoRA", "fedex": "FedEx-LoRA", "flora": "FLoRA", "rolora": "RoLoRA"}
ARMS = ("never", "reinit", "balanced")


def cells(settings: Mapping[str, Any]) -> dict[str, sweep.Cell]:
    """{"what differs/arm": cell}; `fedavg` is an arm too, where FedAvg's accuracy may differ."""
    clients, cohort, rounds = (settings[n] for n in ("clients", "cohort", "rounds"))
    usual = sweep.Cell("fedlora", clients, cohort, rounds, rank=settings["rank"])
    every = settings.get("every", EVERY)
    found = {"usual/fedavg": usual._replace(method="fedavg")}

    def add(name: str, cell: sweep.Cell, *, ceiling: bool = True) -> None:
        if ceiling:
            found[f"{name}/fedavg"] = cell._replace(method="fedavg")
        found[f"{name}/never"] = cell
        for restart in ARMS[1:]:
            found[f"{name}/{restart}"] = cell._replace(every=every, restart=restart)

    for method in INNER:
        add(method, usual._replace(method=method), ceiling=False)
    for tau in settings["tau"]:
        found[f"tau {tau}/balanced"] = usual._replace(every=tau, restart="balanced")
    for k in settings["cohorts"]:
        add(f"cohort {k}", usual._replace(cohort=k))
    for epochs in settings["local"]:
        add(f"epochs {epochs}", usual._replace(epochs=epochs))
    if "rates_adamw" in settings:
        add("adamw", usual._replace(optimizer="adamw"))
    return found


# ---------------------------------------------------------------------- the page


class Found(binding_rank.Found):
    """The runs that are reported."""

    def __init__(self, content: Mapping[str, Any]):
        asked, seeds = cells(content["settings"]), content["settings"]["seeds"]
        there = {n: all(f"{n}/seed/{s}" in content["runs"] for s in seeds) for n in asked}
        super().__init__(content, {n: cell for n, cell in asked.items() if there[n]})
        self.missing = [n for n in asked if not there[n]]
        self.inner = [m for m in INNER if all(f"{m}/{arm}" in self.cells for arm in ARMS)]

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
    for method in found.inner:
        pair = found.above(f"{method}/balanced", f"{method}/reinit")
        row = [INNER[method], *(found.ends(f"{method}/{arm}") for arm in ARMS)]
        rows.append([*row, *(found.gain(method, r) for r in ARMS[1:]), intervals.points(pair)])
    return intervals.table(head, rows)


def axes(found: Found) -> str:
    """A row a setting that differs."""
    head = ["setting", "FedAvg", *ARMS, "reinit - never", "balanced - never"]
    rows = [["usual", found.ends("usual/fedavg"), *_arms(found, "fedlora")]]
    names = [f"cohort {k}" for k in found.settings["cohorts"]]
    names += [f"epochs {e}" for e in found.settings["local"]]
    names += ["adamw"] if "rates_adamw" in found.settings else []
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
    bias = {m: found.above(f"{m}/balanced", "fedlora/balanced") for m in found.inner[1:]}
    exact = "; ".join(f"{INNER[m]} {intervals.points(gap)}" for m, gap in bias.items())
    clear = [INNER[m] for m, gap in bias.items() if gap.low > 0]
    kept_step = found.above("fedlora/balanced", "fedlora/reinit")
    ceiling = found.above("usual/fedavg", "fedlora/balanced")
    limit = (
        "**Bias of separate means.** Were it the limit, balanced merges around an unbiased rule "
        f"would end higher than around FedLoRA. They differ by: {exact} points; "
        + (f"higher beyond the interval: {', '.join(clear)}." if clear else "none is higher.")
    )
    return [
        "**Rank gained.** Around FedLoRA, balanced merges gain "
        f"{found.gain('fedlora', 'balanced')} points over never merging, and reinit "
        f"{found.gain('fedlora', 'reinit')}. FedAvg is {intervals.points(ceiling)} points above "
        "balanced.",
        f"**Step size kept.** balanced is {intervals.points(kept_step)} points above reinit, each "
        "at its own best rate.",
        *[limit] * bool(bias),
        binding_rank.edges(found)
        + (f" Not run to the end: {binding_rank.named(found.missing)}." if found.missing else ""),
    ]


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    found = Found(content)
    of = found.settings
    about = (
        f"{DATA[of['data']]}, {of['clients']} clients of Dirichlet({of['concentration']}) over "
        f"labels, {of['cohort']} a round, rank {of['rank']}, a merge in every "
        f"{of.get('every', EVERY)} rounds, "
        f"{of['rounds']} rounds; test accuracy in percent after the last, mean and standard "
        f"deviation over {len(found.seeds)} seeds, and in brackets the learning rate. Differences "
        "are paired by seed, with Student's 95 % interval."
    )
    parts = [kept.head(content, found.settings), about, *sentences(found)]
    parts += [inner(found), axes(found)] + [cycles(found)] * bool(of["tau"])
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    sweep.main("merging_bias", QUICK, None, cells, page, more={"fashion_mnist": FASHION})
