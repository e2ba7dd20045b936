"""Timing that survives a shared machine: implementations in turn, and the state of the machine.

    start = timing.machine()
    seconds = timing.alternate({"torch": peer.round, "jaxfed": ours}, repeats=5)
    print(timing.table({"W1": seconds}, against="torch"))
    timing.write(RESULTS / "w1", {"W1": seconds}, "torch", start, command=timing.command())

Differences under a tenth mean nothing.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")

Seconds = Mapping[str, Mapping[str, Any]]  # {implementation: {"min", "median", "max", "all"}}


def alternate(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict]:
    """{name: {"min", "median", "max", "all"}} seconds of calls made A B A B, after one of each.

    A function must return only when its work is done (jax.block_until_ready).
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            taken[name].append(time.perf_counter() - started)
    return {
        name: {"min": min(s), "median": statistics.median(s), "max": max(s), "all": s}
        for name, s in taken.items()
    }


def machine() -> dict[str, Any]:
    """CPU model, cores, load average now (so call it first), and versions."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load": list(os.getloadavg()),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def command() -> str:
    """This process's command line, as given in the repository's root; a --data-dir is DIR."""
    script, *given = sys.argv
    shown = ["DIR" if i and given[i - 1] == "--data-dir" else a for i, a in enumerate(given)]
    return " ".join(["python", os.path.relpath(script, ROOT), *shown])


def _cpu() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    named = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)
    }
    return "{model name}, family {cpu family}, model {model}".format(**named)


def _version(package: str) -> str | None:
    found = importlib.metadata.distributions(name=package)
    return next((d.version for d in found), None)


def table(results: Mapping[str, Seconds], against: str) -> str:
    """Markdown: a row for each workload and implementation, with its speed relative to `against`.

    Above one is faster; by medians. `results` is {workload: seconds from alternate}.
    """
    rows = [
        f"| {workload} | {name} | {s['min']:.3f} | {s['median']:.3f} | {s['max']:.3f} "
        f"| {seconds[against]['median'] / s['median']:.2f} |"
        for workload, seconds in results.items()
        for name, s in seconds.items()
    ]
    head = f"| | | min s | median s | max s | times as fast as {against} |"
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- |", *rows])


def write(
    path: pathlib.Path,
    results: Mapping[str, Seconds],
    against: str,
    start: Mapping[str, Any],
    **notes: Any,
) -> None:
    """Writes path.json and path.md; `start` is machine() as it was before timing."""
    path.parent.mkdir(exist_ok=True)
    record = {"machine": start, **notes, "seconds": results}
    path.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    text = f"{listed({**start, **notes})}\n\n{table(results, against)}\n"
    path.with_suffix(".md").write_text(text)


def listed(values: Mapping[str, Any]) -> str:
    """Markdown: a line for each value."""
    return "\n".join(f"* {key}: {value}" for key, value in values.items())
