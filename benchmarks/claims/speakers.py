"""What each of Shakespeare's speakers gains from federated fine-tuning of a small decoder.

    python benchmarks/claims/speakers.py --model stories260K --speeches plays.jsonl.gz

Each run is one of configs/fedloru/speakers.py with the settings of SETTINGS and else the config's
defaults, at its method's best learning rates: they are chosen on a validation set, a tenth of each
speaker's training speeches, with a seed that is not reported. The score is the perplexity of each
speaker's own model on its own held-out speeches, whose floor is the model before any training, and
training alone. Each method is one `jaxfed sweep`, which goes on where it was killed; a method that
is kept in the results' .json is not run again. `--tiny` is a test of the script.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
import runpy
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import intervals
import kept
import numpy as np
import sweep

from jaxfed import Experiment, Host
from jaxfed.simulation.prepare import prepare

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
SCORES = ("union", "mean", "p90")  # over clients; the first chooses rates
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


def collected(records: Sequence[Mapping[str, Any]], before: Mapping[str, float]) -> dict[str, Any]:
    """A run's scores before and after, what a client sends in a round, and its seconds."""
    last = records[-1]
    return {
        "before": before,
        "personal": {n: last[f"personal/perplexity/{n}"] for n in SCORES},
        "common": last["perplexity"],
        "up": last["up"] / last["clients"],
        "seconds": math.fsum(r["seconds"] for r in records),
    }


def untrained(made: Experiment) -> dict[str, float]:
    """The scores of the model before the first round."""
    prepared = prepare(made, Host(devices=1, chunk=1, fuse=1), compiling=False)
    server, states = prepared.state.server, prepared.population.states_of
    measured = prepared.evaluate.measured(server, states)[0]["personal"]["perplexity"]
    prepared.close()
    return {n: measured[n] for n in SCORES}


def tuned(
    found: kept.Kept,
    method: str,
    sweeping: Callable[..., None],
    before: Callable[[int, bool], dict[str, float]],
    out: pathlib.Path,
) -> None:
    """Makes the missing runs of a method: those that choose its rates, then its seeds.

    `sweeping(**options)` runs its sweep, and `before(seed, validated)` gives the scores of the
    untrained model. A second rate is chosen after the first.
    """
    settings, two = found.content["settings"], method == "pf2lora"
    if all(f"{method}/seed/{seed}" in found.runs for seed in settings["seeds"]):
        return
    rates = {"learning_rate": settings["rates"]}
    rates |= {"personal_learning_rate": settings["own_rates"]} if two else {}
    sweeping(method=method, **rates, seed=settings["seeds"], tune=list(rates), out=out)
    for folder, tuning in ((out / "tune", True), (out, False)):
        for rate, seed, records in sweep.trials(folder):
            own = records[0]["personal_learning_rate"] if two else None
            name = f"grid/{rate}" + (f"/{own}" if two else "") if tuning else f"seed/{seed}"
            done = collected(records, before(seed, tuning))
            found.add(f"{method}/{name}", {**done, "rate": rate, "own_rate": own})


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
    rows = [["before training", "", *(spread([r[c] for r in before]) for c in SCORES), "", "", ""]]
    for method in there:
        runs = list(reported(content, method).values())
        cells = [spread([r["personal"][c] for r in runs]) for c in SCORES]
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
    parser.add_argument("--chunk", default=8, help="clients at once, or auto")
    parser.add_argument("--at-once", type=int, default=1, help="trials at once")
    parser.add_argument("--out", type=pathlib.Path, help="where runs are; by default runs/speakers")
    parser.add_argument("--results", default="speakers", help="name in benchmarks/claims/results/")
    asked = parser.parse_args()
    settings = {**SETTINGS, **(TINY if asked.tiny else {}), "least": asked.least}
    found = kept.Kept(kept.path(asked.results), settings)
    out = (asked.out or pathlib.Path("runs", pathlib.Path(asked.results).name)).resolve()
    given = {n: v for n, v in settings.items() if n not in NOT_OF_THE_CONFIG}
    given |= {"model": asked.model, "speeches": asked.speeches, "evaluate_every": given["rounds"]}
    options = {"measure": f"personal/perplexity/{SCORES[0]}", "tune_seed": TUNED}
    options |= {"chunk": asked.chunk, "at_once": asked.at_once, "nonfinite": "skip"}
    config = runpy.run_path(str(CONFIG))["experiment"]

    @functools.cache
    def before(seed: int, validated: bool) -> dict[str, float]:
        made = config(**given, seed=seed)
        data = made.data.validated() if validated else made.data
        return untrained(dataclasses.replace(made, data=data, evaluate_batch=16))

    for method in asked.methods:
        sweeping = functools.partial(sweep.run_sweep, CONFIG, **given, **options)
        tuned(found, method, sweeping, before, out / method)
    found.publish(page)


if __name__ == "__main__":
    main()
