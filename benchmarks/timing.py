"""Timing that survives a shared machine: implementations in turn, and the state of the machine.

    start = timing.machine()
    seconds = timing.alternate({"torch": peer.round, "jaxfed": ours}, repeats=5)
    print(timing.table({"W1": seconds}, against="torch"))
    timing.write("w1", {"W1": seconds}, "torch", start)

Differences under a tenth mean nothing.
"""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "numpy")

Seconds = Mapping[str, Mapping[str, Any]]  # {implementation: {"min", "median", "max", "all"}}


def alternate(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, dict]:
    """{name: {"min", "median", "max", "all"}} seconds of calls made A B A B, after one of each.

    A function returns when its work is done: block on what JAX gives (jax.block_until_ready).
    """
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            begun = time.perf_counter()
            function()
            taken[name].append(time.perf_counter() - begun)
    return {
        name: {"min": min(s), "median": statistics.median(s), "max": max(s), "all": s}
        for name, s in taken.items()
    }


def machine() -> dict[str, Any]:
    """CPU model, cores, load average now (so call it first), and versions."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


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

    Above one is faster; by medians. `results` is {workload: what alternate gave}.
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
    name: str, results: Mapping[str, Seconds], against: str, start: Mapping[str, Any], **notes: Any
) -> None:
    """Writes results/<name>.json and .md; `start` is machine() as it was before timing."""
    RESULTS.mkdir(exist_ok=True)
    record = {"machine": start, **notes, "seconds": results}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    head = "\n".join(f"* {key}: {value}" for key, value in {**start, **notes}.items())
    (RESULTS / f"{name}.md").write_text(f"{head}\n\n{table(results, against)}\n")
