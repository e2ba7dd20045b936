"""Clients a second against the clients in a round, K = 1 ... 1024, and against devices.

    python benchmarks/costs/scaling.py [--workload W3] [--devices 1 2] [--clients 4 64 1024]

Each point runs in a process of its own, which prints its peak memory in the rounds after the first
(Linux). The last column is the memory that each client adds since the point before; below the table
stand the sizes of a client's factors and examples. `--write` puts it all into
benchmarks/costs/results/.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
from measuring import RESULTS, memory, ours, timing, workloads


def point(workload: str, clients: int, devices: int, repeats: int, chunk: int | None) -> dict:
    """Seconds of one round (the least of a few) and this process's peak memory in bytes."""
    one_round = ours.make(workload, clients=clients, chunk="auto" if chunk is None else chunk)
    one_round()
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of making arrays and compiling
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        chunk = one_round()["chunk"]
        seconds.append(time.perf_counter() - started)
    peak = memory("VmHWM")  # before the arrays are made again below
    w = workloads.WORKLOADS[workload]
    arrays = workloads.arrays(workload, clients)
    trained = arrays.factors.values() or [(w,) for w in arrays.params.values()]
    return {
        "clients": clients,
        "devices": devices,
        "chunk": chunk,
        "seconds": min(seconds),
        "peak": peak,
        "factors": sum(x.nbytes for pair in trained for x in pair),
        "examples": sum(x.nbytes for x in arrays.examples.values()) // clients,
        "steps": w.steps,
    }


def measured(*asked: object) -> dict:
    """`point`, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--point", json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def table(points: list[dict]) -> str:
    rows = ["| devices | clients | chunk | s a round | clients/s | peak MB | kB a client added |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    before = None
    for p in points:
        added = ""
        if before and before["devices"] == p["devices"]:
            more = (p["peak"] - before["peak"]) / (p["clients"] - before["clients"])
            added = f"{more / 1e3:.0f}"
        rows.append(
            f"| {p['devices']} | {p['clients']} | {p['chunk']} | {p['seconds']:.3f} "
            f"| {p['clients'] / p['seconds']:.0f} | {p['peak'] / 1e6:.0f} | {added} |"
        )
        before = p
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workload", default="W3")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, len(os.sched_getaffinity(0))])
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 16, 64, 256, 512, 1024])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--chunk", type=int, help="clients at once; measured by default")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.point:
        workload, clients, devices, repeats, chunk = json.loads(asked.point)
        jax.config.update("jax_num_cpu_devices", devices)
        print(json.dumps(point(workload, clients, devices, repeats, chunk)))
        return
    start = timing.machine()
    points = [
        measured(asked.workload, k, d, asked.repeats, asked.chunk)
        for d in asked.devices
        for k in asked.clients
        if k % d == 0
    ]
    kilobytes = {n: points[0][n] / 1e3 for n in ("factors", "examples")}
    text = (
        f"{table(points)}\n\nA client's factors or weights are {kilobytes['factors']:.0f} kB, its "
        f"examples {kilobytes['examples']:.0f} kB."
    )
    print(text)
    if asked.write:
        head = timing.listed({"command": timing.command(), **start})
        path = RESULTS / f"scaling_{asked.workload.lower()}.md"
        path.write_text(f"{head}\n\n{text}\n")


if __name__ == "__main__":
    main()
