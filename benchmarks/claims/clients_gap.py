"""Does the gap between FedLoRU and FedAvg widen with the number of clients? Figure 2(b) again.

    python benchmarks/claims/clients_gap.py --data-dir DIR [--full]

Park and Klabjan (arXiv 2409.12371) share one data set among more and more clients, and find that
FedLoRU gains on FedAvg, and FedLoRA too. Here the three do equal local work on the same partitions,
with the same clients drawn, at each number of clients K and participation C. Learning rates are
chosen for each method, K and C on held-out examples of the training set, with a seed that is not
reported. Finished runs are kept in the results' .json, so an interrupted comparison goes on where
it stopped; `--full` is the paper's ResNet-18 on CIFAR-100, for a GPU.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import intervals
import kept
import numpy as np
import sweep
from matplotlib.figure import Figure

from jaxfed.analysis import look

METHODS = ("fedavg", "fedlora", "fedloru")
QUICK = {
    "data": "fashion_mnist",
    "size": 14,
    "train": 4000,
    "scored": 4000,
    "clients": [20, 100, 400],
    "participation": {"0.5": 15, "0.1": 75},  # and how many rounds
    "parts": 5,  # of the rounds; FedLoRU merges after each but the last
    "restart": "keep",  # as the authors' released run
    "epochs": 2,
    "batch": 10,
    "rank": 32,
    "scale": 2.0,
    "scales": [4.0, 8.0],  # of FedLoRA, beside `scale`
    "clip": 1.0,
    "least": 0.005,
    "rates": [0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
    "seeds": [1, 2, 3, 4, 5],
    "marks": 5,
}
FULL = {
    **QUICK,
    "data": "cifar100",
    "size": 64,
    "train": 40000,
    "scored": 10000,
    "clients": [100, 200, 300, 400],
    "participation": {"0.5": 400, "0.1": 400},
    "parts": 8,
    "epochs": 5,
    "batch": 32,
    "rank": 128,
    "scale": 0.5,
    "scales": [1.0, 2.0],
    "clip": 0.1,
    "rates": [0.025, 0.05, 0.1, 0.2, 0.4],
    "marks": 20,
}
BEST = "fedlora, scale tuned"
PUBLISHED = {  # C = 0.1, three runs (the authors' rebuttal)
    100: {"fedavg": 0.5382, "fedlora": 0.5506, "fedloru": 0.5837},
    200: {"fedavg": 0.3885, "fedlora": 0.5227, "fedloru": 0.5393},
}


def cells(settings: Mapping[str, Any]) -> dict[str, sweep.Cell]:
    """{"participation/clients/method": cell}."""
    found = {}
    for (c, rounds), clients, method in itertools.product(
        settings["participation"].items(), settings["clients"], METHODS
    ):
        cohort = max(1, round(float(c) * clients))
        every = rounds // settings["parts"] if method == "fedloru" else 0
        cell = sweep.Cell(method, clients, cohort, rounds, every, settings["restart"])
        found[f"{c}/{clients}/{method}"] = cell
        if method == "fedlora":
            for scale in settings["scales"]:
                found[f"{c}/{clients}/{scaled(scale)}"] = cell._replace(scale=scale)
    return found


def scaled(scale: float) -> str:
    """The arm of FedLoRA with another scale."""
    return f"fedlora, scale {scale:g}"


def name(arm: str) -> str:
    """FedAvg, FedLoRA, FedLoRU, or FedLoRA with its scale."""
    method, *scale = arm.split(", ")
    return ", ".join([sweep.NAMES[method], *scale])


# ---------------------------------------------------------------------- the page


class Found:
    """The runs that are reported, by participation, clients, method and seed."""

    def __init__(self, content: Mapping[str, Any]):
        self.settings = content["settings"]
        self.seeds, self.clients = self.settings["seeds"], self.settings["clients"]
        self.participation = list(self.settings["participation"])
        self.scales = ["fedlora", *map(scaled, self.settings["scales"])]
        self.all = content["runs"]

    def arms(self, c: str, clients: int) -> list[str]:
        """The methods, FedLoRA with every scale whose runs are there."""
        arms = ["fedavg", *self.scales, "fedloru"]
        last = f"seed/{self.seeds[-1]}"
        return [arm for arm in arms if f"{c}/{clients}/{arm}/{last}" in self.all]

    def with_scales(self, c: str) -> list[int]:
        """The numbers of clients at which FedLoRA was run with more than one scale."""
        return [k for k in self.clients if len(set(self.scales) & set(self.arms(c, k))) > 1]

    @property
    def missing(self) -> list[str]:
        """The cells whose runs were not made."""
        last = f"seed/{self.seeds[-1]}"
        return [cell for cell in cells(self.settings) if f"{cell}/{last}" not in self.all]

    def runs_of(self, c: str, clients: int, arm: str) -> list[dict]:
        """[seeds] runs; of FedLoRA with the best scale if the arm is BEST."""
        arm = self.best_scale(c, clients) if arm == BEST else arm
        return [self.all[f"{c}/{clients}/{arm}/seed/{s}"] for s in self.seeds]

    def best_scale(self, c: str, clients: int) -> str:
        """The arm of FedLoRA whose scale is best on held-out examples, as its rate is."""

        def held_out(arm):
            begin = f"{c}/{clients}/{arm}/grid/"
            return max(r["accuracy"][-1] for key, r in self.all.items() if key.startswith(begin))

        return max([a for a in self.arms(c, clients) if a in self.scales], key=held_out)

    def last(self, c: str, clients: int, method: str) -> list[float]:
        """[seeds] accuracy after the last round."""
        return [run["accuracy"][-1] for run in self.runs_of(c, clients, method)]

    def gaps(self, c: str, clients: int, method: str, over: str = "fedavg") -> list[float]:
        """[seeds] accuracy after the last round above that of `over` with the same seed."""
        pairs = zip(self.last(c, clients, method), self.last(c, clients, over), strict=True)
        return [mine - other for mine, other in pairs]

    def slope(self, c: str, method: str, over: str = "fedavg") -> intervals.Interval:
        """The gap's rise with each doubling of the clients: a line for each seed."""
        gaps = np.array([self.gaps(c, clients, method, over) for clients in self.clients])
        return intervals.student(np.polyfit(np.log2(self.clients), gaps, 1)[0].tolist())

    def common(self, c: str, clients: int) -> float:
        """The highest accuracy that every method reaches with every seed."""
        return min(max(run["accuracy"]) for m in METHODS for run in self.runs_of(c, clients, m))

    def budget(self, c: str, clients: int) -> float:
        """The bytes that every method has sent after its last round, or more."""
        return min(self.runs_of(c, clients, m)[0]["sent"][-1] for m in METHODS)


def reached(run: Mapping[str, Any], accuracy: float) -> float:
    """The round in which the run first has this accuracy, between evaluations on a line."""
    best = np.maximum.accumulate(run["accuracy"])
    after = int(np.argmax(best >= accuracy))
    if after == 0:
        return run["round"][0]
    return float(
        np.interp(accuracy, best[after - 1 : after + 1], run["round"][after - 1 : after + 1])
    )


def at_bytes(run: Mapping[str, Any], sent: float) -> float:
    """The run's accuracy when so much was sent, between evaluations on a line."""
    return float(np.interp(sent, run["sent"], run["accuracy"]))


def table(found: Found) -> str:
    head = ["C", "K", "examples a client", "local steps a round", "", "rate", "accuracy", "best"]
    head += ["above FedAvg [95 %]", "round of the common accuracy", "MB in all", "at equal MB"]
    s, rows = found.settings, []
    each = itertools.product(found.participation, found.clients)
    for c, clients, method in [(*at, arm) for at in each for arm in found.arms(*at)]:
        runs = found.runs_of(c, clients, method)
        own = s["train"] // clients
        common, budget = found.common(c, clients), found.budget(c, clients)
        gap = intervals.student(found.gaps(c, clients, method))
        rounds = statistics.fmean(reached(run, common) for run in runs)
        rows.append(
            [
                c,
                f"{clients}",
                f"{own}",
                f"{s['epochs'] * -(-own // s['batch'])}",
                name(method),
                f"{runs[0]['rate']:g}",
                intervals.spread(found.last(c, clients, method)),
                intervals.spread([max(run["accuracy"]) for run in runs]),
                "" if method == "fedavg" else intervals.points(gap),
                f"{rounds:.1f} ({100 * common:.1f} %)",
                f"{runs[0]['sent'][-1] / 1e6:,.0f}",
                f"{intervals.spread([at_bytes(r, budget) for r in runs])} ({budget / 1e6:,.0f} MB)",
            ]
        )
    return intervals.table(head, rows)


def trend(found: Found, c: str, method: str, over: str = "fedavg") -> str:
    """Whether the gap widens at this participation, from the numbers."""
    gaps = {k: intervals.student(found.gaps(c, k, method, over)) for k in found.clients}
    first, last = gaps[found.clients[0]], gaps[found.clients[-1]]
    slope = found.slope(c, method, over)
    if slope.low > 0:
        trend = "rises with K"
    elif slope.high < 0:
        trend = "falls with K at this size"
    else:
        trend = "has no trend in K that these seeds can tell"
    ahead, behind = (
        [f"{k}" for k, gap in gaps.items() if beyond(gap)]
        for beyond in (lambda gap: gap.low > 0, lambda gap: gap.high < 0)
    )
    each, least, most = (intervals.points(x) for x in (slope, first, last))
    return (
        f"C = {c}, {name(method)} - {name(over)}: the gap {trend}: {each} points for "
        f"each doubling of K, from {least} at K = {found.clients[0]} to {most} at K = "
        f"{found.clients[-1]}. Beyond the seeds' spread it is ahead of {name(over)} at K = "
        f"{', '.join(ahead) or 'none'} and behind it at K = {', '.join(behind) or 'none'}."
    )


def bytes_sentence(found: Found) -> str:
    """Who is ahead at equal bytes, from the numbers."""
    won = dict.fromkeys(METHODS, 0)
    for c, clients in itertools.product(found.participation, found.clients):
        budget = found.budget(c, clients)
        means = {
            m: statistics.fmean(at_bytes(run, budget) for run in found.runs_of(c, clients, m))
            for m in METHODS
        }
        won[max(means, key=lambda m: means[m])] += 1
    cells = len(found.participation) * len(found.clients)
    listed = ", ".join(f"{sweep.NAMES[m]} in {n}" for m, n in won.items())
    return (
        f"At equal bytes (what the method that sends least has sent at its end), the highest mean "
        f"accuracy is {listed} of the {cells} cells. FedAvg is then read in the middle of its run, "
        "before its learning rate has come down."
    )


def edge_sentence(found: Found) -> str:
    """How many cells chose a learning rate at the edge of the grid."""
    rates = found.settings["rates"]
    made = [key for key in cells(found.settings) if key not in found.missing]
    chosen = {key: found.all[f"{key}/seed/{found.seeds[0]}"]["rate"] for key in made}
    high = [n for n, r in chosen.items() if r == max(rates)]
    low = [n for n, r in chosen.items() if r == min(rates)]
    return (
        f"Of the {len(chosen)} learning rates, {len(high)} are the grid's highest "
        f"({', '.join(high) or 'none'}) and {len(low)} its lowest ({', '.join(low) or 'none'})."
    )


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    found, s = Found(content), content["settings"]
    seconds = sum(run["seconds"] for run in content["runs"].values())
    about = (
        f"The same {s['train']:,} training examples are dealt iid to K clients, of whom C K take "
        f"part in a round; each makes {s['epochs']} epochs in batches of {s['batch']}, so a round "
        "costs the same at every K and its local steps fall as K grows. The rounds are the same at "
        f"every K: {', '.join(f'{n} at C = {c}' for c, n in s['participation'].items())}. FedLoRU "
        f"merges {s['parts'] - 1} times, at equal distances ({s['restart']}); FedLoRA is FedLoRU "
        f"that never merges, at scale {s['scale']:g} as FedLoRU and at {listed(s['scales'])}. "
        f"Learning rates (annealed by a cosine over the rounds) are the best of "
        f"{sweep.grid(content)} for each method, K and C on "
        f"{s['scored']:,} held-out training examples, with seed 0. Accuracy is on the first "
        f"{s['scored']:,} test examples, in percent: mean and standard deviation over "
        f"{len(found.seeds)} seeds (of the split, the first weights, the sampling). Gaps are "
        "paired by seed, with Student's 95 % interval. Bytes are up and down, of all clients "
        "together, merges included. `at equal MB` is the accuracy when each method has sent what "
        "the least of them sends in all. The runs took "
        f"{seconds / 60:.0f} minutes of one device each."
    )
    smaller = (
        "Smaller than the paper's setting (ResNet-18 on CIFAR-100, r = 128, 400 rounds of 5 "
        f"epochs): the FEMNIST CNN on images shrunk to {s['size']} x {s['size']}, {s['train']:,} "
        f"of 60,000 training examples, r = {s['rank']}, and few rounds of {s['epochs']} epochs; "
        f"at K = {found.clients[-1]} a client has "
        f"{s['epochs'] * -(-s['train'] // found.clients[-1] // s['batch'])} local steps a round."
    )
    parts = [kept.head(content, s), about]
    parts += [smaller] if s["data"] == "fashion_mnist" else [published()]
    parts += [
        trend(found, c, *pair)
        for c in found.participation
        for pair in (("fedloru",), ("fedlora",), ("fedloru", "fedlora"), ("fedloru", BEST))
        if BEST not in pair or found.with_scales(c) == found.clients
    ]
    parts += [step_size(found)]
    parts += [what_it_shows(found)] if s["data"] == "fashion_mnist" else []
    parts += [bytes_sentence(found), edge_sentence(found), f"![gap]({picture})", table(found)]
    return "\n\n".join(parts) + "\n"


def what_it_shows(found: Found) -> str:
    """A paragraph: what the trial could have shown, and what it shows."""
    cells = list(itertools.product(found.participation, found.clients))
    behind = max(
        statistics.fmean(found.gaps(c, clients, m)) for c, clients in cells for m in METHODS[1:]
    )
    over = {c: found.slope(c, "fedloru") for c in found.participation}
    slopes = {c: found.slope(c, "fedloru", "fedlora") for c in found.participation}
    grows = [f"C = {c}" for c, slope in over.items() if slope.low > 0]
    shrinks = [f"C = {c}" for c, slope in over.items() if slope.high < 0]
    mean = [f"C = {c}" for c, slope in slopes.items() if slope.mean > 0]
    sure = [f"C = {c}" for c, slope in slopes.items() if slope.low > 0]
    seen = "so FedLoRU's growing lead over FedAvg is not seen at this size; that does not say that "
    seen += "there is none at the paper's."
    if grows:
        seen = (
            f"yet FedLoRU - FedAvg grows with K at {' and '.join(grows)} beyond the seeds' spread"
        )
        seen += f", and falls at {' and '.join(shrinks)}." if shrinks else "."
    return (
        "The paper's setting is one in which FedAvg suffers as clients grow in number (at C = 0.1 "
        f"from {100 * PUBLISHED[100]['fedavg']:.0f} to {100 * PUBLISHED[200]['fedavg']:.0f} % as "
        f"they double). Here no method is more than {max(100 * behind, 0):.1f} points ahead of it, "
        f"{seen} At the same scale FedLoRU - FedLoRA grows with K in the "
        f"mean at {' and '.join(mean) or 'no C'}, beyond the seeds' spread at "
        f"{' and '.join(sure) or 'no C'}."
    )


def step_size(found: Found) -> str:
    """Whether a larger scale of FedLoRA makes up for what a merge gains, from the numbers."""
    parts, missing = [], "; ".join(found.missing)
    there = [(c, k) for c in found.participation for k in found.with_scales(c)]
    for c, k in there:
        best = intervals.points(intervals.student(found.gaps(c, k, "fedloru", BEST)))
        same = intervals.points(intervals.student(found.gaps(c, k, "fedloru", "fedlora")))
        scale = name(found.best_scale(c, k))
        parts.append(f"C = {c}, K = {k}: {same}, and {best} ({scale})")
    if not there:
        return f"Not run to the end: {missing}."
    largest = found.scales[-1]
    wide = all(largest in found.arms(c, k) for c, k in there)
    gaps = {
        over: [statistics.fmean(found.gaps(c, k, "fedloru", over)) for c, k in there]
        for over in ("fedlora", BEST, *([largest] if wide else []))
    }
    before, after, *beside = (100 * statistics.fmean(g) for g in gaps.values())
    return (
        f"**Is the lead of `{found.settings['restart']}` a step size?** With it a merge also "
        "enlarges the steps to come, as a larger scale does. FedLoRU - FedLoRA at the same scale, "
        "and at FedLoRA's scale that is best on held-out examples, in points: "
        f"{'; '.join(parts)}. Over these cells FedLoRU's mean lead is {before:+.1f} points at "
        f"the same scale and {after:+.1f} at the tuned one."
        + "".join(
            f" Beside {name(largest)}, in every cell it is {lead:+.1f}, and "
            f"{100 * max(gaps[largest]):+.1f} at most."
            for lead in beside
        )
        + (f" Not run to the end: {missing}." if missing else "")
    )


def listed(scales: Sequence[float]) -> str:
    return " and ".join(f"{s:g}" for s in scales)


def published() -> str:
    """The paper's own numbers."""
    rows = [
        [f"{k}", *(f"{100 * accuracy[m]:.1f}" for m in METHODS)]
        for k, accuracy in PUBLISHED.items()
    ]
    head = ["K, C = 0.1", *(sweep.NAMES[m] for m in METHODS)]
    listed = intervals.table(head, rows)
    return f"The paper's accuracy, to be compared with the table below:\n\n{listed}"


def draw(found: Found) -> Figure:
    """For each participation: the gap by K; accuracy by round and by bytes at the largest K."""
    figure = Figure(figsize=(12, 3.6 * len(found.participation)), layout="constrained")
    axes = figure.subplots(len(found.participation), 3, squeeze=False)
    most = found.clients[-1]
    for (gap, by_round, by_bytes), c in zip(axes, found.participation, strict=True):
        for i, method in enumerate(METHODS):
            colour, name = look.COLOURS[i], sweep.NAMES[method]
            for clients, dash in ((found.clients[0], ":"), (most, "-")):
                runs = found.runs_of(c, clients, method)
                accuracy = 100 * np.array([run["accuracy"] for run in runs])
                mine = {"color": colour, "label": f"{name}, K = {clients}"}
                by_round.plot(runs[0]["round"], accuracy.mean(0), dash, **mine)
                sent = np.array(runs[0]["sent"]) / 1e6
                by_bytes.plot(sent, accuracy.mean(0), dash, **mine)
            if method != "fedavg":
                found_gaps = [intervals.student(found.gaps(c, k, method)) for k in found.clients]
                mean, low, high = 100 * np.array(found_gaps).T
                gap.errorbar(
                    found.clients,
                    mean,
                    [mean - low, high - mean],
                    fmt="o-",
                    capsize=3,
                    color=colour,
                    label=f"{name} - FedAvg",
                )
        gap.axhline(0, color="#666666", linewidth=1)
        gap.set(title=f"Gap to FedAvg, C = {c}", xlabel="clients K", ylabel="percentage points")
        gap.set(xscale="log", xticks=found.clients, xticklabels=map(str, found.clients))
        gap.minorticks_off()
        by_round.set(title="Accuracy by round", xlabel="round", ylabel="percent")
        by_bytes.set(title="Accuracy by bytes", xlabel="MB up and down (log scale)", xscale="log")
        by_bytes.xaxis.set_major_formatter("{x:g}")
        gap.legend()
        by_round.legend(fontsize=8)
    return figure


if __name__ == "__main__":
    sweep.main("clients_gap", QUICK, FULL, cells, page, lambda content: draw(Found(content)))
