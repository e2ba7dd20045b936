"""What merging does: four restarts, merged every tau rounds or never, beside FedAvg.

    python benchmarks/claims/merging.py --data-dir DIR [--full]
    python benchmarks/claims/merging.py --data-dir DIR --on mlp
    python benchmarks/claims/merging.py --data-dir DIR --on batch_norm

FedLoRU (Park and Klabjan, arXiv 2409.12371) folds its factors into the base every tau rounds, so
that updates of rank r add up to one of higher rank; the authors' run keeps the factors as they are,
calls new random ones optional, a third way returns to those from which training began, and ours
draws both anew and takes their product off the base. Here each is compared with never merging
(FedLoRA) and with FedAvg, which no low-rank method can be expected to beat, by accuracy, by the
rank of W_T - W_0 and by the jump of the training loss at a merge. Rank 2 is too low for the
problem; results/merging_rank8.md has an earlier comparison at rank 8, which is not. Learning rates
are chosen for each cell on held-out examples of the training set, with a seed that is not reported.
Finished runs are kept in the results' .json, so an interrupted comparison goes on where it stopped;
`--full` is ResNet-18 on CIFAR-100, for a GPU. `mlp` and `batch_norm` are one network without and
with batch norms (running statistics, which are averaged), on unlike clients and for 120 rounds.
"""

import dataclasses
import functools
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
from jaxfed.analysis import look, updates
from jaxfed.lowrank import restarts

RESTARTS = ("keep", "reinit", "residual", "balanced")
QUICK = {
    "data": "fashion_mnist",
    "size": 14,
    "train": 4000,
    "scored": 4000,
    "clients": 50,
    "cohort": 5,
    "rounds": 60,
    "tau": [5, 20],
    "epochs": 2,
    "batch": 10,
    "rank": 2,
    "scale": 2.0,
    "clip": 1.0,
    "least": 0.005,
    "rates": [0.03, 0.1, 0.3, 1.0, 3.0],
    "seeds": [1, 2, 3, 4, 5],
    "marks": 6,
    "layers": ["conv_1/kernel", "dense_0/kernel"],
}
FULL = {
    **QUICK,
    "data": "cifar100",
    "size": 64,
    "train": 40000,
    "scored": 10000,
    "clients": 100,
    "cohort": 10,
    "rounds": 400,
    "tau": [1, 10, 50],
    "epochs": 5,
    "batch": 32,
    "rank": 128,
    "scale": 0.5,
    "clip": 0.1,
    "rates": [0.025, 0.05, 0.1, 0.2, 0.4],
    "layers": ["layer1_0/conv_0/kernel", "layer4_1/conv_1/kernel"],
}
MLP = {
    **QUICK,
    "data": "fashion_mnist_mlp",
    "widths": [200, 200],
    "cohort": 10,
    "concentration": 0.5,
    "rounds": 120,
    "batch": 20,
    "layers": ["dense_0/kernel", "dense_1/kernel"],
}
MORE = {"mlp": MLP, "batch_norm": {**MLP, "norm": "running"}}
KINDS = ("stable", "effective", "counted")
ABOVE = 1e-4  # of the largest: singular values that count as rank


def cells(settings: Mapping[str, Any]) -> dict[str, sweep.Cell]:
    """{"restart/tau": cell}, "never", and "fedavg"."""
    sizes = settings["clients"], settings["cohort"], settings["rounds"]
    found = {"fedavg": sweep.Cell("fedavg", *sizes), "never": sweep.Cell("fedlora", *sizes)}
    for tau in settings["tau"]:
        for restart in RESTARTS:
            found[f"{restart}/{tau}"] = sweep.Cell("fedloru", *sizes, tau, restart)
    return found


def merges(settings: Mapping[str, Any], name: str) -> int:
    """How many merges are made in the rounds; one that is due after the last round is not."""
    tau = int(name.rpartition("/")[2]) if "/" in name else settings["rounds"]
    return (settings["rounds"] - 1) // tau


def watched(
    made: Experiment, problem: sweep.Problem, cell: sweep.Cell, settings: Mapping[str, Any]
) -> Experiment:
    """The run, whose records also hold ranks at each mark, and the loss around each merge."""
    if cell.method == "fedavg":
        return made
    mark, rows = cell.rounds // settings["marks"], min(2 * sweep.SCORED, settings["train"])
    fixed = {n: x[:rows] for n, x in problem.train.items()}
    restart = jax.jit(getattr(restarts, cell.restart))

    @functools.cache
    def first() -> tuple:
        server = made.algorithm.init(jax.random.key(made.seed))
        return server.base, server.theta

    @jax.jit
    def loss(base, theta):
        """In batches, as on the test set."""

        def batch(part):
            return made.task.evaluate(base, theta, {**part, "mask": jnp.ones(len(part["label"]))})

        size = min(problem.scored, rows)
        cut = {
            n: x[: rows // size * size].reshape(-1, size, *x.shape[1:]) for n, x in fixed.items()
        }
        return jnp.sum(jax.lax.map(batch, cut)["loss"]) / (rows // size * size)

    def measures(server: Any, t: int) -> dict[str, float]:
        here, found = (server.base, server.theta), {}
        if t % mark == 0:
            for path, each in ranks(first(), here, settings["layers"]).items():
                found |= {measure(kind, path): each[i] for i, kind in enumerate(KINDS)}
        if cell.every and t and t % cell.every == 0 and t < cell.rounds:
            after = restart(*here, server.start, jax.random.key(t))
            found |= {"before a merge": loss(*here), "after a merge": loss(*after)}
        return found

    every = math.gcd(mark, cell.every)
    return dataclasses.replace(made, evaluate_every=every, server_measures=measures)


def measure(kind: str, path: str) -> str:
    """The name of a rank in the records."""
    return f"{kind} {path.replace('/', '.')}"


def collected(settings: Mapping[str, Any], records: Sequence[dict], reported: bool) -> dict:
    """A run's accuracy and ranks along the way; if it is reported, the loss around each merge."""
    run = sweep.collected(settings, records, reported)
    ranked = [
        {path: [r[measure(kind, path)] for kind in KINDS] for path in settings["layers"]}
        for r in records
        if r["round"] in run["round"] and measure(KINDS[0], settings["layers"][0]) in r
    ]
    jumps = [
        [r["round"], r["before a merge"], r["after a merge"]]
        for r in records
        if reported and "before a merge" in r
    ]
    return {**run, "ranks": ranked, "jumps": jumps}


def ranks(first: tuple, now: tuple, layers: Sequence[str]) -> dict[str, list[float]]:
    """{layer: [stable rank, effective rank, singular values above ABOVE of the largest]}."""
    change = updates.change(first, now)
    found = {}
    for path in layers:
        sigma = updates.singular_values(change[path])
        count = (sigma > ABOVE * sigma[0]).sum()
        found[path] = [float(updates.stable_rank(sigma)), float(updates.effective_rank(sigma))]
        found[path].append(int(count))
    return found


# ---------------------------------------------------------------------- the page


class Found:
    """The runs that are reported, by cell and seed."""

    def __init__(self, content: Mapping[str, Any]):
        self.settings = content["settings"]
        self.seeds, self.layers = self.settings["seeds"], self.settings["layers"]
        self.names = list(cells(self.settings))
        self.runs = {n: [content["runs"][f"{n}/seed/{s}"] for s in self.seeds] for n in self.names}

    def last(self, name: str) -> list[float]:
        """[seeds] accuracy after the last round."""
        return [run["accuracy"][-1] for run in self.runs[name]]

    def gain(self, name: str) -> intervals.Interval:
        """Accuracy above never merging, by seed."""
        pairs = zip(self.last(name), self.last("never"), strict=True)
        return intervals.student([mine - never for mine, never in pairs])

    def rank(self, name: str, layer: str, kind: int) -> float:
        return statistics.fmean(run["ranks"][-1][layer][kind] for run in self.runs[name])

    def jump(self, name: str) -> list[float]:
        """[seeds] the mean rise of the training loss at a merge."""
        return [statistics.fmean(b - a for _, a, b in r["jumps"]) for r in self.runs[name]]

    def merging(self) -> list[str]:
        return [n for n in self.names if "/" in n]


def table(found: Found) -> str:
    """A row a cell; accuracy and its gain in percent, ranks as stable / effective / counted."""
    head = ["restart, tau", "merges", "rate", "accuracy", "best", "above never [95 %]"]
    head += [f"{path}: stable / effective / counted (at most)" for path in found.layers]
    head += ["loss before a merge", "rise at a merge", "largest rise"]
    rows = []
    for name in found.names:
        runs = found.runs[name]
        cells = [name.replace("/", ", "), f"{merges(found.settings, name)}", f"{runs[0]['rate']:g}"]
        cells += [intervals.spread(found.last(name))]
        cells += [intervals.spread([max(r["accuracy"]) for r in runs])]
        cells += ["" if name == "never" else intervals.points(found.gain(name))]
        for path in found.layers if name != "fedavg" else []:
            stable, effective, count = (found.rank(name, path, k) for k in range(3))
            cells += [f"{stable:.1f} / {effective:.1f} / {count:.0f} ({most(found, name)})"]
        around = [jump for run in runs for jump in run["jumps"]]
        if around:
            rises = [after - before for _, before, after in around]
            cells += [f"{statistics.fmean(before for _, before, _ in around):.3f}"]
            cells += [f"{statistics.fmean(rises):+.2g}", f"{max(rises):+.2g}"]
        rows.append(cells + [""] * (len(head) - len(cells)))
    return intervals.table(head, rows)


def most(found: Found, name: str) -> int:
    """The highest possible rank of W_T - W_0, if the layer's sides allow it.

    r for each merge, which with `balanced` also takes the new product off, r for the factors at the
    end, r for those of W_0.
    """
    each = 2 if name.startswith("balanced") else 1
    return found.settings["rank"] * (each * merges(found.settings, name) + 2)


def sentences(found: Found) -> list[str]:
    """What was found, from the numbers."""
    return [helps(found), which(found), grows(found), jumps(found)]


def helps(found: Found) -> str:
    gains = {n: found.gain(n) for n in found.merging()}
    better = [n for n, g in gains.items() if g.low > 0]
    worse = [n for n, g in gains.items() if g.high < 0]
    top = max(gains, key=lambda n: gains[n].mean)
    never = intervals.spread(found.last("never"))
    whole = intervals.spread(found.last("fedavg"))
    answer = "helps in some" if better else "does not help in any"
    return (
        f"Does merging help? It {answer} of the {len(gains)} cells by more than seeds differ. "
        f"Against never merging ({never} %), the interval lies above zero for {named(better)}, "
        f"below zero for {named(worse)}, and holds zero for the other "
        f"{len(gains) - len(better) - len(worse)}. Highest in the mean is {top.replace('/', ', ')} "
        f"with {intervals.points(gains[top])} points; FedAvg ends at {whole} %. Of "
        f"{len(gains)} such intervals {0.05 * len(gains):.2g} would miss zero by chance."
    )


def named(names: Sequence[str]) -> str:
    return "; ".join(n.replace("/", ", ") for n in names) or "none"


def which(found: Found) -> str:
    taus = found.settings["tau"]
    means = {
        restart: [
            statistics.fmean(found.last(f"{restart}/{tau}")[i] for tau in taus)
            for i in range(len(found.seeds))
        ]
        for restart in RESTARTS
    }
    order = sorted(means, key=lambda r: -statistics.fmean(means[r]))
    pair = zip(means[order[0]], means[order[1]], strict=True)
    lead = intervals.student([a - b for a, b in pair])
    clear = "more than" if lead.low > 0 else "no more than"
    listed = ", ".join(f"{r} {intervals.spread(means[r])} %" for r in order)
    return (
        f"Which restart? In the mean over tau: {listed}. {order[0]} leads {order[1]} by "
        f"{intervals.points(lead)} points, {clear} seeds differ."
    )


def grows(found: Found) -> str:
    path = found.layers[-1]
    parts = []
    for restart in RESTARTS:
        row = ["never"] + [f"{restart}/{tau}" for tau in sorted(found.settings["tau"])[::-1]]
        ends = ", ".join(
            f"{found.rank(n, path, 2):.0f} ({found.rank(n, path, 1):.1f})" for n in row
        )
        parts.append(f"{restart} {ends}")
    counts = [merges(found.settings, n) for n in row]
    bounded = all(
        run["ranks"][-1][p][2] <= most(found, n)
        for n in found.names
        if n != "fedavg"
        for run in found.runs[n]
        for p in found.layers
    )
    verb = "never exceeds" if bounded else "EXCEEDS"
    up = {r: found.rank(f"{r}/{min(found.settings['tau'])}", path, 1) for r in RESTARTS}
    flat = [r for r, v in up.items() if v <= found.rank("never", path, 1)]
    return (
        f"How does the rank grow? At {counts} merges, W_T - W_0 of {path} has this many singular "
        f"values above {ABOVE:g} of the largest (effective rank in brackets): {'; '.join(parts)}. "
        f"The count {verb} r (merges + 2), with balanced r (2 merges + 2). With a merge in every "
        f"{min(found.settings['tau'])} rounds the effective rank is above that of never merging "
        f"for {named([r for r in RESTARTS if r not in flat])}; not for {named(flat)}."
    )


def jumps(found: Found) -> str:
    parts = []
    for restart in RESTARTS:
        names = [f"{restart}/{tau}" for tau in found.settings["tau"] if f"{restart}/{tau}"]
        around = [j for n in names for run in found.runs[n] for j in run["jumps"]]
        rises = [after - before for _, before, after in around]
        rise = intervals.student(
            [statistics.fmean(found.jump(n)[i] for n in names) for i in range(len(found.seeds))]
        )
        far = max(rises, key=abs)
        answer = "the function is preserved" if abs(far) < 1e-3 else "the function is not preserved"
        up = sum(r > 0 for r in rises)
        parts.append(
            f"{restart} changes the training loss by {rise.mean:+.2g} [{rise.low:.2g}, "
            f"{rise.high:.2g}] in the mean, {far:+.2g} at most, upwards at {up} of {len(rises)} "
            f"merges ({answer})"
        )
    return f"Does the loss jump at a merge? {'; '.join(parts)}."


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    found, settings = Found(content), content["settings"]
    seconds = sum(run["seconds"] for run in content["runs"].values())
    own, unlike = settings["train"] // settings["clients"], settings.get("concentration")
    kind, mean = ("iid", "") if unlike is None else (f"Dirichlet({unlike:g})", " in the mean")
    about = (
        f"Each of {settings['clients']} {kind} clients has {own} examples{mean} and makes "
        f"{settings['epochs'] * -(-own // settings['batch'])} local steps a round. Accuracy is on "
        f"the first {settings['scored']:,} test examples, in percent: mean and standard deviation "
        f"over {len(found.seeds)} seeds (of the split, the first weights, the sampling; the "
        f"{settings['train']:,} training examples are the same). Gains are paired by seed, with "
        f"Student's 95 % interval. The learning rate of each cell is the best of "
        f"{sweep.grid(content)} on as many held-out training examples, with seed 0. "
        f"`rise at a merge` is of the loss on the same {2 * sweep.SCORED} training examples just "
        "before and just after. The runs took "
        f"{seconds / 60:.0f} minutes of one device each."
    )
    norms = "with batch norms" if "norm" in settings else "without norms"
    networks = {"fashion_mnist": "the FEMNIST CNN", "fashion_mnist_mlp": f"an MLP {norms}"}
    network = networks.get(settings["data"])
    smaller = (
        "Smaller than the paper's setting (ResNet-18 on CIFAR-100, r = 128, 400 rounds of 5 "
        f"epochs): {network} on images shrunk to {settings['size']} x {settings['size']}, "
        f"{settings['train']:,} of 60,000 training examples, r = {settings['rank']}, "
        f"{settings['rounds']} rounds of {settings['epochs']} epochs."
    )
    parts = [kept.head(content, settings), about]
    parts += [smaller] if network else []
    parts += [*sentences(found), f"![merging]({picture})", table(found)]
    return "\n\n".join(parts) + "\n"


def draw(found: Found) -> Figure:
    """Accuracy by tau, effective rank by round, and the loss around merges."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    accuracy, rank, jump = figure.subplots(1, 3)
    taus = [f"{tau}" for tau in found.settings["tau"]]
    for i, restart in enumerate(RESTARTS):
        runs = [found.last(f"{restart}/{tau}") for tau in taus]
        accuracy.errorbar(
            np.arange(len(taus)) + 0.08 * (i - 1.5),
            [100 * statistics.fmean(r) for r in runs],
            [100 * statistics.pstdev(r) for r in runs],
            fmt="o-",
            color=look.COLOURS[i],
            label=restart,
        )
        middle = f"{restart}/{taus[len(taus) // 2]}"
        curve(rank, found, middle, look.COLOURS[i], "-")
        curve(rank, found, f"{restart}/{taus[0]}", look.COLOURS[i], ":")
        rises = np.array([np.diff(np.array(r["jumps"])[:, 1:])[:, 0] for r in found.runs[middle]])
        rounds = [t for t, _, _ in found.runs[middle][0]["jumps"]]
        jump.plot(rounds, rises.mean(0), "o-", color=look.COLOURS[i], label=restart)
    for name, label, dash in (("never", "never", "-"), ("fedavg", "FedAvg", "--")):
        height = 100 * statistics.fmean(found.last(name))
        accuracy.axhline(height, color=look.COLOURS[-1], linewidth=1, linestyle=dash, label=label)
    curve(rank, found, "never", look.COLOURS[-1], "-")
    accuracy.set_xticks(range(len(taus)), taus)
    accuracy.set(title="Accuracy after the last round", xlabel="tau", ylabel="percent")
    accuracy.legend()
    tau = taus[len(taus) // 2]
    rank.set(
        title=f"Effective rank, {found.layers[-1]}",
        xlabel=f"round (tau {tau}; dotted: {taus[0]}; black: never)",
    )
    jump.set(title="Rise of the loss at a merge", xlabel=f"round (tau = {tau})")
    jump.set_yscale("symlog", linthresh=1e-3)
    jump.yaxis.set_major_formatter("{x:g}")
    jump.legend()
    return figure


def curve(axes, found: Found, name: str, colour: str, dash: str) -> None:
    """The last layer's effective rank by round, mean over seeds."""
    runs, path = found.runs[name], found.layers[-1]
    values = np.array([[ranks[path][1] for ranks in run["ranks"]] for run in runs])
    axes.plot(runs[0]["round"], values.mean(0), dash, color=colour)


if __name__ == "__main__":
    sweep.main(
        "merging",
        QUICK,
        FULL,
        cells,
        page,
        lambda content: draw(Found(content)),
        collected,
        more=MORE,
    )
