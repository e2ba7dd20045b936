"""What unequal clients cost: the same examples dealt equally and by log-normal sizes.

    python benchmarks/costs/unequal.py [--sigma 1.0] [--repeats 5] [--write]

The model, the clients and the sum of examples are W3's. Padding each client to the largest would
make the round `padded` times as long; the ideal is a round as long as that of equal clients.
"""

import argparse
from collections.abc import Callable

import jax
import numpy as np
from measuring import RESULTS, ours, timing, workloads

from jaxfed.data import partition
from jaxfed.simulation import engine


def make(sizes: np.ndarray) -> Callable[[], object]:
    """A function that runs one W3 round with clients of these sizes, one epoch each."""
    arrays = workloads.arrays("W3")
    order = engine.deal(sizes, jax.device_count())
    count = sizes[order].astype(np.int32)
    start = (np.cumsum(sizes) - sizes)[order].astype(np.int32)
    plan = ours.plan(len(sizes), 0)._replace(
        start=start[None], count=count[None], weight=(count / count.sum())[None]
    )
    return ours.running(
        ours.algorithm("W3", arrays),
        arrays.examples,
        plan,
        most=int(sizes.max()),
        uniform=bool((sizes == sizes[0]).all()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", ours.CPU_DEVICES)
    start = timing.machine()
    w = workloads.WORKLOADS["W3"]
    total = w.clients * w.examples
    parts = partition.lognormal(total, w.clients, sigma=asked.sigma, seed=0, least=w.batch)
    sizes = np.array([len(p) for p in parts])
    functions = {"equal": make(np.full(w.clients, w.examples)), "unequal": make(sizes)}
    chunks = {name: function()[-1] for name, function in functions.items()}
    seconds = timing.alternate(functions, asked.repeats)
    cost = seconds["unequal"]["median"] / seconds["equal"]["median"]
    steps = (-(-sizes // w.batch)).sum() / (w.clients * w.steps)
    print(timing.table({"W3": seconds}, "equal"))
    found = (
        f"sizes {sizes.min()} to {sizes.max()}: {cost:.2f} times the equal round, for "
        f"{steps:.2f} times its local steps; padded {sizes.max() / w.examples:.1f}; "
        f"clients at once: {chunks}"
    )
    print(found)
    if asked.write:
        notes = {"command": timing.command(), "found": found}
        timing.write(RESULTS / "unequal", {"W3": seconds}, "equal", start, **notes)


if __name__ == "__main__":
    main()
