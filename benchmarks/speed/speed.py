"""One workload in jaxfed and in PyTorch, in turn on the same arrays: the ratio of round times.

    python benchmarks/speed/speed.py W3 [--repeats 7] [--modes loop2 vmap2] [--write]

Both start at the same weights and must agree on the norm of the weights after every round, or the
script stops. `--modes` are torch_peers.MODES; with none behind it, jaxfed is timed alone. `--write`
puts the figures, the machine and its load into benchmarks/speed/results/.
"""

import argparse
import pathlib

import jax

RESULTS = pathlib.Path(__file__).parent / "results"


def main() -> None:
    # PyTorch's worker processes import this file, but need nothing of what is imported here.
    import compare
    import ours
    import timing
    import workloads

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("workload", choices=workloads.WORKLOADS)
    parser.add_argument("--repeats", type=int, default=7, help="timed rounds of each")
    parser.add_argument("--modes", nargs="*", default=["loop2", "vmap2"], help="of PyTorch")
    parser.add_argument("--clients", type=int, help="the first so many; all by default")
    parser.add_argument("--chunk", type=int, help="clients vmapped at once; measured by default")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", ours.CPU_DEVICES)
    start, name = timing.machine(), asked.workload
    seconds = compare.compared(name, asked.modes, asked.repeats, asked.clients, asked.chunk)
    against = next((n for n in seconds if n != "jaxfed"), "jaxfed")
    print(timing.table({name: seconds}, against))
    if name in compare.TABLE and "torch loop2" in seconds and asked.clients is None:
        print(f"\n{compare.against_the_fastest(name, seconds)}")
    if asked.write:
        notes = {"command": timing.command(), "devices": ours.hardware()}
        path = RESULTS / name.lower().replace(" ", "_")
        timing.write(path, {name: seconds}, against, start, **notes)


if __name__ == "__main__":
    main()
