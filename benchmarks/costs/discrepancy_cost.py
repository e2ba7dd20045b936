"""What the metric `discrepancy` costs: rounds of W3 with it and without, in turn.

    python benchmarks/costs/discrepancy_cost.py [--clients 100] [--repeats 9] [--write]

W3 is FedLoRA, rank 8 beside an MLP 784-1024-1024-10, 100 clients in every round. The metric is also
timed alone, on uploads of that size, as a difference of a few per cent drowns in a loaded machine.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from measuring import RESULTS, ours, timing, workloads

from jaxfed import lowrank
from jaxfed.algorithm import Algorithm
from jaxfed.combine import measure

W3 = workloads.WORKLOADS["W3"]
WITH, WITHOUT, ALONE = "with the metric", "without", "the metric alone"


def a_round(fed: Algorithm, arrays: workloads.Arrays, clients: int) -> Callable[[], dict]:
    """A function that runs one round from where the last one ended; its metrics."""
    now, chunk = ours.plan(clients, W3.examples), min(10, clients)
    run = ours.running(fed, arrays.examples, now, most=W3.examples, chunk=chunk)
    return lambda: run()[1]


def alone(arrays: workloads.Arrays, clients: int) -> Callable[[], Any]:
    """A function that computes the metric of some factors of all clients."""
    key, weight = jax.random.key(0), jnp.full(clients, 1 / clients)
    factors = {
        path: lowrank.Factors(
            *(x + 0.1 * jax.random.normal(key, (clients, *x.shape)) for x in pair), W3.scale
        )
        for path, pair in arrays.factors.items()
    }
    measured = jax.jit(measure.discrepancy)
    return lambda: jax.block_until_ready(measured(factors, weight))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=W3.clients)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", ours.CPU_DEVICES)
    start, arrays = timing.machine(), workloads.arrays("W3", asked.clients)
    fed = ours.algorithm("W3", arrays)
    functions = {
        WITHOUT: a_round(fed, arrays, asked.clients),
        WITH: a_round(measure.with_discrepancy(fed), arrays, asked.clients),
        ALONE: alone(arrays, asked.clients),
    }
    found = timing.alternate(functions, asked.repeats)
    seconds = {name: found[name]["all"] for name in functions}
    pairs = list(zip(seconds[WITH], seconds[WITHOUT], seconds[ALONE], strict=True))
    ratio = statistics.median(a / b for a, b, _ in pairs) - 1
    part = statistics.median(c / b for _, b, c in pairs)
    sentence = (
        f"a round with the metric takes {ratio:+.1%} of one without; alone it takes {part:.1%}; "
        f"discrepancy {float(functions[WITH]()['discrepancy'][0]):.2g}"
    )
    print(sentence, timing.table({"W3": found}, WITHOUT), sep="\n")
    if asked.write:
        timing.write(
            RESULTS / "discrepancy_cost",
            {"W3": found},
            WITHOUT,
            start,
            command=timing.command(),
            found=sentence,
        )


if __name__ == "__main__":
    main()
