"""What `jaxfed run` of every method of the zoo ends with, and how long it takes.

    python benchmarks/claims/zoo_runs.py              those that the results lack; 20 s each
    python benchmarks/claims/zoo_runs.py fedavg krum  these; others stay as the results have them

Each method runs as a user runs it, `jaxfed run configs/zoo/digits.py --method NAME --out DIR` or
text.py, in a process of its own and with no compiled programs in the cache. The tables of
docs/results/zoo_runs.md are made of the results by `python docs/write.py`.
"""

import argparse
import json
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxfed import models, tasks, trees
from jaxfed.algorithms import zoo

ROOT = Path(__file__).parents[2]
FOUND = Path(__file__).parent / "results" / "zoo_runs.json"
TEXT = " (text)"  # follows the names of configs/zoo/text.py, which has pftt, too
METHODS = {row.name: "digits" for row in zoo.ROWS}
METHODS |= {f"{row.name}{TEXT}": "text" for row in (*zoo.ARMS, zoo.named("pftt"))}


def measure(method: str) -> dict[str, Any]:
    """The last record of a run of the method, and the seconds that it took."""
    name, config = method.removesuffix(TEXT), METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "jaxfed.cli", "run", f"configs/zoo/{config}.py"]
        command += ["--method", name, "--out", str(out)]
        fresh = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, env=fresh, check=True, capture_output=True)
        wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "rounds": last["round"],
        "accuracy": last["accuracy"],
        "clients": last["personal"]["accuracy"]["mean"],
        "up": last["up"] / last["clients"],
        "wall": wall,
        "cpu": cpu,
    }


def commonest(config: str) -> list[float]:
    """[accuracy of the test set's commonest label, mean over clients of their own commonest]."""
    data = runpy.run_path(str(ROOT / f"configs/zoo/{config}.py"))["experiment"]().data
    shares = []
    for k in np.flatnonzero(data.personal.count):
        own, trained = (
            split.examples["label"][split.start[k] :][: split.count[k]]
            for split in (data.personal, data.train)
        )
        shares.append(np.mean(own == np.bincount(trained).argmax()))
    label = data.test["label"]
    return [float(np.bincount(label).max() / len(label)), float(np.mean(shares))]


def sent(method: str) -> int:
    """Bytes that a client of an arm sends with RoBERTa-base, at the sizes of configs/zoo/text.py.

    Two classes, rank 8, bottlenecks of width 64, prefixes of 16.
    """
    encoder = models.Encoder(
        vocabulary=50265,
        width=768,
        depth=12,
        heads=12,
        feedforward=3072,
        positions=514,
        types=1,
        classes=2,
        head="dense",
        adapter=64 if method in ("fedap", "pftt") else 0,
        prefix=16 if method == "fedpf" else 0,
    )
    tokens = np.zeros((1, 8), np.int32)
    select = zoo.on_encoder(method).select(
        factors="query|value",
        full="adapter|^head" if method == "pftt" else "^head",
        rank=8,
        alpha=8.0,
    )
    task = tasks.classification(
        encoder,
        {"tokens": tokens, "types": tokens, "label": np.zeros(1, np.int32)},
        select=select,
        inputs=("tokens", "types"),
    )
    theta = jax.eval_shape(task.init, jax.random.key(0))[1]
    return trees.nbytes(theta.full if method == "pftt" else theta)


# ---------------------------------------------------------------------- tables


def table(content: Mapping[str, Any], config: str) -> str:
    """Markdown: a row for each method of the config, and one for no training at all."""
    lines = ["| method | server's model | clients' models | kB up | CPU seconds |"]
    lines.append("| --- " * 5 + "|")
    for method, run in content["runs"].items():
        if METHODS[method] == config:
            shares = f"{run['accuracy']:.1%} | {run['clients']:.1%}"
            cost = f"{run['up'] / 1000:.2f} | {run['cpu']:.0f}"
            lines.append(f"| {method.removesuffix(TEXT)} | {shares} | {cost} |")
    floor = " | ".join(f"{share:.1%}" for share in content["commonest"][config])
    lines.append(f"| the commonest label | {floor} | | |")
    missing = [m for m, its in METHODS.items() if its == config and m not in content["runs"]]
    if missing:
        names = ", ".join(method.removesuffix(TEXT) for method in missing)
        lines += ["", f"Not run yet: {names}."]
    return "\n".join([*lines, ""])


def digits(content: Mapping[str, Any]) -> str:
    """The table of configs/zoo/digits.py."""
    return table(content, "digits")


def text(content: Mapping[str, Any]) -> str:
    """The table of configs/zoo/text.py."""
    return table(content, "text")


def roberta(content: Mapping[str, Any]) -> str:
    """Markdown: what a client of each arm sends with RoBERTa-base."""
    lines = ["| arm | MB up | of FedFT's |", "| --- " * 3 + "|"]
    for method, size in content["roberta"].items():
        share = f"{size / content['roberta']['fedft']:.2%}"
        lines.append(f"| {method} | {size / 1e6:.2f} | {share} |")
    return "\n".join([*lines, ""])


def main() -> None:
    import kept  # here, so that docs/write.py needs no path to it

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("method", nargs="*", help=f"those of text.py with{TEXT!r} after the name")
    found = kept.Kept(FOUND, {"cache": "empty"})
    missing = [name for name in METHODS if name not in found.runs]
    for method in parser.parse_args().method or missing:
        found.add(method, measure(method))
        print(method, found.runs[method], flush=True)
    if "commonest" not in found.content:
        arms = [method.removesuffix(TEXT) for method in METHODS if TEXT in method]
        found.content["commonest"] = {each: commonest(each) for each in ("digits", "text")}
        found.content["roberta"] = {arm: sent(arm) for arm in arms}
    found.content["runs"] = {name: found.runs[name] for name in METHODS if name in found.runs}
    found.save()


if __name__ == "__main__":
    main()
