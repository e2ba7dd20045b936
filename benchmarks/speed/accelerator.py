"""W1 to W8 in jaxfed and in PyTorch on this computer's accelerator, in at most 9 minutes.

    PYTHONPATH=. python benchmarks/speed/accelerator.py [--tiny] [--only W3 W6] [--out FOLDER]

Beside jax and torch with CUDA it needs numpy, flax, optax, orbax-checkpoint, safetensors and
tokenizers, and matfree (0.6.3), whose wheel is pure Python. With transformers and peft, W8 is also
measured in PEFT's loop.

Each workload and framework runs in a process of its own with a time limit. PyTorch takes one
client after another (with its fused attention) or all under `torch.func.vmap`, in float32 and under
bfloat16 autocast. The card's own products and copies are measured in both. `--tiny` rehearses all
of it on the CPU, with two clients. Results go to FOLDER/accelerator_<card>.json as they come, and
the table to the same name with .md; FOLDER is benchmarks/speed/results, but with `--tiny` it must
be given.
"""

import argparse
import gc
import importlib
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import timing
import workloads

RESULTS = pathlib.Path(__file__).parent / "results"
FRAMEWORKS = {"jaxfed": "card_jax", "torch": "card_torch"}
TIME = 535  # seconds for everything
LIMITS = {"peaks": 30, "W6": 100, "W7": 100, "W8": 100}  # seconds of a job; of the others 60
ORDER = ("W3", "W1", "W6", "W8", "W7", "W4", "W2", "W5")
SCALING = (1, 4, 16, 64, 256, 1024)  # clients of W3
REHEARSED = {  # on the CPU, compiled fast
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
}


class Job(NamedTuple):
    """What one process measures."""

    framework: str
    what: str  # a workload, or "peaks", or "scaling"
    tiny: bool


# ---------------------------------------------------------------------- in a job's process


def work(job: Job) -> None:
    """Prints a line of JSON for each figure."""
    side = importlib.import_module(FRAMEWORKS[job.framework])
    said(side.start())
    for label, make in cases(job, side):
        try:
            found = timed(make, side, repeats=1 if job.tiny else 5)
        except Exception as error:  # any: the other figures do not depend on this one
            reason, *_ = f"{type(error).__name__}: {error}".splitlines()
            found = {"failed": reason}
        said({**label, **found})
    if job.what in ORDER and job.framework == "jaxfed":
        said({"flops": side.work(rehearsed(job.what, job.tiny))})


def said(line: dict) -> None:
    print(json.dumps(line), flush=True)


def cases(job: Job, side) -> Iterator[tuple[dict, Callable]]:
    """(label, function that makes what is timed) of everything that a job measures."""
    if job.what == "peaks":
        yield from side.peaks(*((64, 1024) if job.tiny else (8192, 2**28)))
    elif job.what == "scaling":
        for clients in SCALING[:2] if job.tiny else SCALING:
            for label, make in side.cases("W3", clients, ("float32",), scaling=True):
                yield {"clients": clients, **label}, make
    else:
        name = rehearsed(job.what, job.tiny)
        clients = 2 if job.tiny else workloads.WORKLOADS[name].clients
        types = ("bfloat16",) if job.what in ("W6", "W7", "W8") else ("bfloat16", "float32")
        for label, make in side.cases(name, clients, types, scaling=False):
            yield {"clients": clients, **label}, make


def rehearsed(name: str, tiny: bool) -> str:
    return f"{name} tiny" if tiny and f"{name} tiny" in workloads.WORKLOADS else name


def timed(make: Callable[[], Callable[[], float]], side, repeats: int) -> dict:
    """Seconds of a call after the first, by at most `repeats` calls or 8 seconds."""
    gc.collect()
    side.memory()
    started, before = time.perf_counter(), side.compiling()
    call = make()
    norm = call()
    ready, seconds = time.perf_counter() - started, []
    while len(seconds) < repeats and sum(seconds) < 8:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return {
        "seconds": statistics.median(seconds),
        "all": seconds,
        "ready": ready,
        "compiling": side.compiling() - before,
        "memory": side.memory(),
        "norm": norm,
    }


# ---------------------------------------------------------------------- all jobs


def lines(job: Job, limit: float) -> Iterator[dict]:
    """A job's lines as they come, and one that says why it ended early."""
    command = [sys.executable, __file__, "--job", json.dumps(job)]
    hidden = REHEARSED if job.tiny else {}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **hidden}
        )
        late = threading.Event()
        timer = threading.Timer(limit, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            yield from (json.loads(line) for line in process.stdout if line.startswith("{"))
            code = process.wait()
        finally:
            timer.cancel()
            process.kill()
        errors.seek(0)
        if late.is_set():
            yield {"failed": f"over its limit of {limit:.3g} s"}
        elif code:
            yield {"failed": (errors.read().strip().splitlines() or [f"status {code}"])[-1]}


def measured(only: list[str], tiny: bool, folder: pathlib.Path) -> pathlib.Path:
    """The file that holds all figures, written again after each of them."""
    begin, found, head = time.monotonic(), [], {"command": timing.command(), **timing.machine()}
    names = ["peaks", *(n for n in ORDER if n in only)]
    if "W3" in only:
        names.insert(2, "scaling")
    for job in (Job(f, what, tiny) for what in names for f in FRAMEWORKS):
        left = TIME - (time.monotonic() - begin)
        limit = min(left, LIMITS.get(job.what, 60))
        here = lines(job, limit) if left > 5 else [{"failed": "no time was left"}]
        for line in here:
            if "card" in line:
                head = {**line, **head}
                if line["platform"] == "cpu" and not tiny:
                    raise SystemExit(f"{job.framework} sees no accelerator; use --tiny on a CPU")
                continue
            found.append({"framework": job.framework, "workload": job.what, **line})
            path = written(folder, head, found)
            print(f"{time.monotonic() - begin:5.0f} s  {json.dumps(found[-1])}", flush=True)
    return path


def written(folder: pathlib.Path, head: dict, found: list[dict]) -> pathlib.Path:
    card = re.sub(r"\W+", "_", head.get("card", "unknown")).lower()
    path = folder / f"accelerator_{card}.json"
    path.write_text(json.dumps({"machine": head, "figures": found}, indent=1) + "\n")
    return path


# ---------------------------------------------------------------------- the table

HEAD = (
    "workload",
    "framework",
    "how",
    "type",
    "clients",
    "at once",
    "s a round",
    "clients/s",
    "share of peak",
    "memory GB",
    "compile s",
    "ready after s",
    "norm",
)


def table(figures: list[dict]) -> str:
    """Markdown: the card's peaks, then a row for each figure; the reason where there is none.

    The share of the peak is jaxfed's count of FLOPs over seconds, over the faster framework's
    product of matrices in that type.
    """
    peaks = [f for f in figures if f["workload"] == "peaks"]
    rate: dict[str, float] = {}
    for f in (f for f in peaks if "seconds" in f):
        rate[f["how"]] = max(rate.get(f["how"], 0.0), f["work"] / f["seconds"])
    flops = {f["workload"]: f["flops"] for f in figures if "flops" in f}
    flops["scaling"] = flops.get("W3")
    shown = [
        row(f, flops.get(f["workload"]), rate)
        for f in figures
        if f["workload"] != "peaks" and "flops" not in f
    ]
    measured_peaks = [
        (f["framework"], f.get("how", ""), _peak(f) if "seconds" in f else f["failed"])
        for f in peaks
    ]
    return "\n\n".join(
        [markdown(("framework", "peak", "T/s"), measured_peaks), markdown(HEAD, shown)]
    )


def _peak(f: dict) -> str:
    return f"{f['work'] / f['seconds'] / 1e12:.3g}"


def row(f: dict, flops: float | None, rate: dict[str, float]) -> tuple[str, ...]:
    """The cells under HEAD; `flops` are of one client's round."""
    label = [str(f.get(n, "")) for n in ("workload", "framework", "how", "type", "clients")]
    label = [*label, str(f.get("chunk", ""))]
    if "failed" in f:
        return (*label, f["failed"].replace("|", "/"), *[""] * (len(HEAD) - len(label) - 1))
    each = f["clients"] / f["seconds"]
    share = f"{flops * each / rate[f['type']]:.1%}" if flops and f["type"] in rate else ""
    memory = "" if f["memory"] is None else f"{f['memory'] / 1e9:.2f}"
    times = f"{f['compiling']:.1f}", f"{f['ready']:.1f}"
    return (*label, f"{f['seconds']:.4f}", f"{each:.1f}", share, memory, *times, f"{f['norm']:.4f}")


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(r)} |" for r in cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="a rehearsal on the CPU")
    parser.add_argument("--only", nargs="+", choices=ORDER, default=ORDER, help="workloads")
    parser.add_argument("--out", type=pathlib.Path, help="a folder for the results")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.job:
        work(Job(*json.loads(asked.job)))
        return
    if asked.tiny and asked.out is None:
        parser.error("--tiny measures nothing worth keeping; give a folder by --out")
    folder = RESULTS if asked.out is None else asked.out
    folder.mkdir(parents=True, exist_ok=True)
    path = measured(asked.only, asked.tiny, folder)
    kept = json.loads(path.read_text())
    text = f"{timing.listed(kept['machine'])}\n\n{table(kept['figures'])}\n"
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
