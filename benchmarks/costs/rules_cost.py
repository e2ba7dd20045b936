"""What a rule of aggregation costs: rounds of W3 by rows of the zoo and by FedLoRA, in turn.

    OPENBLAS_NUM_THREADS=1 python benchmarks/costs/rules_cost.py [fedex flora ...] [--write]

W3 is FedLoRA, rank 8 beside an MLP 784-1024-1024-10, 100 clients in every round. The clients' work
is the same but for sides that are frozen, so a ratio above one is the server's work and what a rule
adds to a client. Times are CPU seconds of the process, which other programs on the machine change
less than the clock does. With `--write` the rows that are named replace those of the results. Fewer
`--clients` make a ratio larger, as less local work stands beside the server's, unless the rule's
work grows faster than theirs, as FLoRIST's does; they have results of their own.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from measuring import RESULTS, ours, timing, workloads

from jaxfed import local
from jaxfed.algorithms import row, zoo

W3 = workloads.WORKLOADS["W3"]
AGAINST = "fedlora"
ROWS = ("fedex", "flora", "flexlora", "fedmomentum", "fedsvd", "ffa", "rolora", "rac", "florist")
ROWS += ("lora-a2", "raflora", "frlora", "fedloru-list", "ravan", "fedsb", "fedhm")


def setting(clients: int) -> row.Setting:
    """W3's sizes, as a row of the zoo takes them."""
    work = local.Work(W3.batch, epochs=1, shuffle=False)
    return row.Setting(work, 0.1, clients, clients, W3.rank, rounds=20, update=optax.sgd)


def a_round(name: str, arrays: workloads.Arrays, clients: int, chunk: int) -> Callable[[], Any]:
    """A function that runs one round of the row from where the last one ended."""
    task = ours.algorithm("W3", arrays).task
    made = zoo.named(name).make(task, setting(clients))
    now = ours.plan(clients, W3.examples)
    return ours.running(made, arrays.examples, now, most=W3.examples, chunk=chunk)


def alternate(functions: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """{name: CPU seconds} of calls made A B A B, after one of each."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for function in functions.values():
        function()
    for _ in range(repeats):
        for name, function in functions.items():
            started = time.process_time()
            function()
            taken[name].append(time.process_time() - started)
    return taken


def ratio(seconds: Mapping[str, list[float]]) -> float:
    """The median over pairs of rounds."""
    return statistics.median(
        mine / theirs for mine, theirs in zip(seconds["row"], seconds[AGAINST], strict=True)
    )


def table(rows: Mapping[str, Mapping[str, list[float]]]) -> str:
    """Markdown: a row for each method, the cheapest first."""
    lines = ["| method | CPU seconds a round | FedLoRA's, in turn | ratio |", "| --- " * 4 + "|"]
    for name in sorted(rows, key=lambda n: ratio(rows[n])):
        mine, theirs = (statistics.median(rows[name][n]) for n in ("row", AGAINST))
        lines.append(f"| {name} | {mine:.2f} | {theirs:.2f} | {ratio(rows[name]):.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("row", nargs="*", default=list(ROWS), help="of the zoo")
    parser.add_argument("--clients", type=int, default=W3.clients)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds of each")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", ours.CPU_DEVICES)
    other = "" if asked.clients == W3.clients else f"_{asked.clients}"
    path, arrays = RESULTS / f"rules_cost{other}.json", workloads.arrays("W3", asked.clients)
    kept = {"command": timing.command(), "machine": timing.machine(), "rows": {}}
    if asked.write and path.exists():
        kept["rows"] = json.loads(path.read_text(encoding="utf-8"))["rows"]
    chunk = min(10, asked.clients)
    against = a_round(AGAINST, arrays, asked.clients, chunk)
    about = {"command": kept["command"], **kept["machine"], "clients": asked.clients}
    for name in asked.row:
        functions = {AGAINST: against, "row": a_round(name, arrays, asked.clients, chunk)}
        kept["rows"][name] = alternate(functions, asked.repeats)
        print(name, f"{ratio(kept['rows'][name]):.2f}", flush=True)
        if asked.write:
            path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
            page = f"{timing.listed(about)}\n\n{table(kept['rows'])}\n"
            path.with_suffix(".md").write_text(page, encoding="utf-8")
    print(table({name: kept["rows"][name] for name in asked.row}))


if __name__ == "__main__":
    main()
