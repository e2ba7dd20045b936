"""What unequal clients cost: the same examples dealt equally and by log-normal sizes.

    python benchmarks/unequal.py [--sigma 1.0] [--repeats 5] [--write]

The model, the clients and the sum of examples are W3's. Were each client to cost what the largest
does, the round would take `padded` times as long; were it to cost what it has, once.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable

import compare
import jax
import numpy as np

from jaxfed.simulation import tuning


def make(sizes: np.ndarray) -> Callable[[], object]:
    """A function that runs one W3 round with clients of these sizes, one epoch each."""
    import ours
    import workloads

    from jaxfed.simulation import engine

    machine = engine.machine()
    arrays = workloads.arrays("W3")
    fed = ours.algorithm("W3", arrays)
    order = engine.deal(sizes, len(machine.devices))
    count = sizes[order].astype(np.int32)
    start = (np.cumsum(sizes) - sizes)[order].astype(np.int32)
    plan = ours.plan(len(sizes), 0)._replace(
        start=start[None], count=count[None], weight=(count / count.sum())[None]
    )
    uniform = bool((sizes == sizes[0]).all())

    def compiled(machine: engine.Machine) -> Callable:
        verb = engine.for_each_client(machine, uniform=uniform)
        return engine.compiled(engine.rounds(fed, verb, 0, int(sizes.max())), machine, (0, 1))

    server = engine.place(jax.jit(fed.init)(jax.random.key(0)), machine)
    examples = engine.place(arrays.examples, machine)
    candidates = tuning.chunk_candidates(len(sizes) // len(machine.devices))
    chunk, _ = tuning.measured_chunk(
        compiled, machine, (server, (), examples, plan), candidates, 10**6
    )
    step, state = compiled(dataclasses.replace(machine, chunk=chunk)), {"server": server}
    print(f"{'equal' if uniform else 'unequal'}: {chunk} clients at once")

    def one_round() -> object:
        state["server"], *rest = step(state["server"], (), examples, plan)
        return jax.block_until_ready((state, rest))

    return one_round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sigma", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", compare.CPU_DEVICES)
    import timing
    import workloads

    from jaxfed.data import partition

    start = timing.machine()
    w = workloads.WORKLOADS["W3"]
    total = w.clients * w.examples
    parts = partition.lognormal(total, w.clients, sigma=asked.sigma, seed=0, least=w.batch)
    sizes = np.array([len(p) for p in parts])
    functions = {"equal": make(np.full(w.clients, w.examples)), "unequal": make(sizes)}
    seconds = timing.alternate(functions, asked.repeats)
    cost = seconds["unequal"]["median"] / seconds["equal"]["median"]
    steps = (-(-sizes // w.batch)).sum() / (w.clients * w.steps)
    print(timing.table({"W3": seconds}, "equal"))
    found = (
        f"sizes {sizes.min()} to {sizes.max()}: {cost:.2f} times the equal round, for "
        f"{steps:.2f} times its local steps; padded {sizes.max() / w.examples:.1f}"
    )
    print(found)
    if asked.write:
        command = f"python benchmarks/{sys.argv[0].rsplit('/', 1)[-1]} {' '.join(sys.argv[1:])}"
        timing.write("unequal", {"W3": seconds}, "equal", start, command=command, found=found)


if __name__ == "__main__":
    main()
