"""What each of Shakespeare's speakers gains from federated fine-tuning of a small decoder.

    python benchmarks/claims/speakers.py --model stories260K --speeches plays.jsonl.gz

Each run is one of configs/fedloru/speakers.py with the settings of SETTINGS and else the config's
defaults, at its method's best learning rates: they are chosen on a validation set, a tenth of each
speaker's training speeches, with a seed that is not reported. The score is the perplexity of each
speaker's own model on its own held-out speeches, whose floor is the model before any training, and
training alone. Runs of one method share their compiled program. A finished run is kept in the
results' .json and not made again, so an interrupted script goes on where it stopped; `--tiny` is a
test of the script.
"""

import argparse
import dataclasses
import math
import pathlib
import runpy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import intervals
import jax
import kept
import numpy as np
import sweep

from jaxfed import Experiment, Host
from jaxfed.simulation import run as running
from jaxfed.simulation.prepare import prepare
from jaxfed.simulation.programs import Programs

CONFIG = pathlib.Path(__file__).parents[2] / "configs/fedloru/speakers.py"
SETTINGS: dict[str, Any] = {
    "clients": 40,
    "cohort": 8,
    "rounds": 24,
    "local_steps": 5,
    "batch_size": 8,
    "max_length": 32,
    "rank": 4,
    "personal_rank": 2,
    "every": 8,
    "rates": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "own_rates": [0.003, 0.01, 0.03, 0.1, 0.3, 1.0],
    "seeds": [1, 2, 3, 4, 5],
}
TINY = {
    **{"clients": 3, "cohort": 2, "rounds": 2, "local_steps": 1, "batch_size": 2, "every": 1},
    **{"rates": [1e-3, 1e-2], "own_rates": [0.1, 1.0], "seeds": [1, 2]},
}
NOT_OF_THE_CONFIG = ("rates", "own_rates", "seeds")
TUNED = 0  # the seed of the runs that choose rates
NAMES = {
    "alone": "each speaker alone",
    "full": "FedAvg, all weights",
    "fedlora": "FedLoRA",
    "fedloru": "FedLoRU",
    "fedex": "FedEx-LoRA",
    "ffa": "FFA-LoRA",
    "fedsa": "FedSA-LoRA",
    "pf2lora": "PF2LoRA",
}
BESIDE = "fedlora"  # what the others are compared with


# ---------------------------------------------------------------------- runs


def one(made: Experiment, chunk: int, programs: Programs) -> dict[str, Any]:
    """A run's scores before and after, what a client sends in a round, and its seconds."""
    started = time.perf_counter()
    host = Host(devices=1, chunk=chunk, fuse=1, checkpoint_every=0, nonfinite="skip")
    prepared = prepare(made, host, programs=programs)
    server, states = prepared.state.server, prepared.population.states_of
    before = prepared.evaluate.measured(server, states)[0]["personal"]
    *_, last = (record for block in running.run_blocks(prepared) for record in block)
    return {
        "before": scores(before),
        "personal": scores(last["personal"]),
        "common": last["perplexity"],
        "up": last["up"] / last["clients"],
        "seconds": time.perf_counter() - started,
    }


def scores(personal: Mapping[str, Any]) -> dict[str, float]:
    """Perplexity of all clients' held-out tokens together, and of the clients."""
    of = personal["perplexity"]
    return {"union": of["union"], "mean": of["mean"], "p90": of["p90"]}


def tuned(
    found: kept.Kept, method: str, make: Callable[..., Experiment], run: Callable[..., dict]
) -> None:
    """Makes the missing runs of a method: those that choose its rates, then its seeds.

    A second rate is chosen after the first, with which it is tried at its grid's middle.
    """
    settings, two = found.content["settings"], method == "pf2lora"
    middle = settings["own_rates"][(len(settings["own_rates"]) - 1) // 2] if two else None

    def once(key: str, seed: int, rate: float, own: float | None) -> dict[str, Any]:
        before = found.runs.get(key, {})
        if (before.get("rate"), before.get("own_rate")) != (rate, own):  # the grid may have grown
            tuning = "/grid/" in key
            own_rate = {} if own is None else {"personal_learning_rate": own}
            made = make(method=method, seed=seed, learning_rate=rate, **own_rate)
            data = made.data.validated() if tuning else made.data
            done = run(dataclasses.replace(made, data=data))
            found.add(key, {**done, "rate": rate, "own_rate": own})
            print(key, f"{done['seconds']:.0f} s", done["personal"], flush=True)
        return found.runs[key]

    def score(rate: float, own: float | None) -> float:
        name = f"{method}/grid/{rate}" + (f"/{own}" if two else "")
        union = once(name, TUNED, rate, own)["personal"]["union"]
        return -union if math.isfinite(union) else -math.inf

    rate = sweep.climb(settings["rates"], partial(score, own=middle))
    own = sweep.climb(settings["own_rates"], partial(score, rate)) if two else None
    for seed in settings["seeds"]:
        once(f"{method}/seed/{seed}", seed, rate, own)


# ---------------------------------------------------------------------- the page


def reported(content: Mapping[str, Any], method: str) -> dict[int, Mapping]:
    """{seed: run} of a method; none unless all its seeds are there."""
    seeds = content["settings"]["seeds"]
    runs = {s: content["runs"].get(f"{method}/seed/{s}") for s in seeds}
    return runs if all(runs.values()) else {}


def change(content: Mapping[str, Any], method: str, over: str) -> intervals.Interval:
    """By what share a method's perplexity is above another's, paired by seed, over their logs."""
    mine, others = reported(content, method), reported(content, over)
    ratios = [r["personal"]["union"] / others[s]["personal"]["union"] for s, r in mine.items()]
    logs = np.log(ratios)
    return intervals.Interval(*np.expm1(intervals.student(logs)).tolist())


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{deviation}"


def table(content: Mapping[str, Any]) -> str:
    """Markdown: a row a method, the model before training first."""
    head = ["", "rate", "perplexity", "mean of speakers", "90th percentile"]
    head += [f"against {NAMES[BESIDE]} [95 %]", "common model's", "kB up"]
    there = [m for m in NAMES if reported(content, m)]
    before = [r["before"] for r in reported(content, there[0]).values()]
    columns = ("union", "mean", "p90")
    rows = [["before training", "", *(spread([r[c] for r in before]) for c in columns), "", "", ""]]
    for method in there:
        runs = list(reported(content, method).values())
        cells = [spread([r["personal"][c] for r in runs]) for c in columns]
        rate = " / ".join(f"{r:g}" for r in (runs[0]["rate"], runs[0]["own_rate"]) if r is not None)
        compared = reported(content, BESIDE) and method != BESIDE
        gap = f"{intervals.points(change(content, method, BESIDE))} %" if compared else ""
        alone = method == "alone"  # its common model idles
        common = "" if alone else spread([r["common"] for r in runs])
        up = "" if alone else f"{runs[0]['up'] / 1e3:.1f}"
        rows.append([NAMES[method], rate, *cells, gap, common, up])
    return intervals.table(head, rows)


def sentences(content: Mapping[str, Any]) -> list[str]:
    """What was found, from the numbers."""
    there = [m for m in NAMES if reported(content, m)]
    missing = [NAMES[m] for m in NAMES if m not in there]
    lines = []
    if reported(content, BESIDE):
        gaps = {m: change(content, m, BESIDE) for m in there if m != BESIDE}
        kinds = {
            "A lower perplexity than FedLoRA's, beyond the interval": lambda g: g.high < 0,
            "A higher one": lambda g: g.low > 0,
            "No difference that five seeds show": lambda g: g.low <= 0 <= g.high,
        }
        for words, holds in kinds.items():
            named = [NAMES[m] for m, gap in gaps.items() if holds(gap)]
            lines.append(f"* {words}: {', '.join(named) or 'none'}.")
    if edges := at_an_edge(content):
        lines.append(f"* A rate at an end of its grid, beyond which a better may lie: {edges}.")
    if missing:
        lines.append(f"* Not run to the end: {', '.join(missing)}.")
    return lines


def at_an_edge(content: Mapping[str, Any]) -> str:
    """Methods whose rate is the first or the last of its grid."""
    settings, found = content["settings"], []
    for method in NAMES:
        for run in list(reported(content, method).values())[:1]:
            for name, grid in (("rate", "rates"), ("own_rate", "own_rates")):
                if run[name] in (min(settings[grid]), max(settings[grid])):
                    found.append(f"{NAMES[method]} ({run[name]:g})")
    return ", ".join(found)


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    of = content["settings"]
    steps = of["rounds"] * of["local_steps"] * of["cohort"] / of["clients"]
    seconds = sum(r["seconds"] for r in content["runs"].values())
    about = (
        "stories260K, a decoder of 260,032 weights that has read simple stories only, is "
        f"fine-tuned on Shakespeare's speeches. A client is a speaker of a play: {of['clients']} "
        "of the 623 with ten speeches or more, others for each seed, with a fifth of their "
        f"speeches held out. In each of {of['rounds']} rounds {of['cohort']} of them make "
        f"{of['local_steps']} steps of AdamW on {of['batch_size']} speeches of at most "
        f"{of['max_length']} tokens, so that a speaker makes {steps:.0f} steps in the mean. Factors"
        f" of rank {of['rank']} are beside queries and values, those that PF2LoRA's clients keep "
        f"of rank {of['personal_rank']}, trained by SGD. FedLoRU merges every {of['every']} rounds."
    )
    limits = (
        "`perplexity` is of each speaker's own model on its own held-out speeches, all tokens "
        "together; `common model's` is of the one model on the same speeches. Mean and standard "
        f"deviation over {len(of['seeds'])} seeds; differences are paired by seed, with Student's "
        "95 % interval. Each method has the best learning rate of one grid (PF2LoRA: common / "
        "own), chosen on a tenth of the training speeches with another seed. These are few "
        f"speakers, few rounds and a tiny model, so that all runs together took {seconds / 60:.0f} "
        "minutes: what is seen here need not hold for a model that can write."
    )
    parts = ["# Shakespeare's speakers", about, table(content), "\n".join(sentences(content))]
    return "\n\n".join([*parts, limits, kept.head(content, of)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="speakers.py")
    parser.add_argument("--model", required=True, help="a folder of llama2.c's or Hugging Face's")
    parser.add_argument("--speeches", required=True, help="a file of JSON lines")
    parser.add_argument("--methods", nargs="+", default=list(NAMES), choices=list(NAMES))
    parser.add_argument("--tiny", action="store_true", help="two rounds, as a test")
    parser.add_argument("--least", type=int, default=10, help="speeches of a speaker")
    parser.add_argument("--chunk", type=int, default=8, help="clients at once")
    parser.add_argument("--results", default="speakers", help="name in benchmarks/claims/results/")
    asked = parser.parse_args()
    settings = {**SETTINGS, **(TINY if asked.tiny else {}), "least": asked.least}
    found = kept.Kept(kept.path(asked.results), settings)
    config = runpy.run_path(str(CONFIG))["experiment"]
    given = {n: v for n, v in settings.items() if n not in NOT_OF_THE_CONFIG}
    files = {"model": asked.model, "speeches": asked.speeches}

    def make(**more: Any) -> Experiment:
        made = config(**files, **given, evaluate_every=settings["rounds"], **more)
        return dataclasses.replace(made, evaluate_batch=16)

    size = None
    for seed in (TUNED, *settings["seeds"]):
        data = make(method="full", seed=seed).data
        size = data.size.or_more(data.validated().size).or_more(size)
    for method in asked.methods:
        run = partial(one, chunk=asked.chunk, programs=Programs(size))
        tuned(found, method, make, run)
        jax.clear_caches()  # or the programs of all methods stay in memory
    found.publish(page)


if __name__ == "__main__":
    main()
