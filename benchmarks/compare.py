"""One workload, in jaxfed and in PyTorch, in turn on the same arrays: the ratio of round times.

    python benchmarks/w3_fedlora_mlp.py [--repeats 7] [--modes loop2 vmap2] [--write]

Both start at the same weights and must agree on loss and norm after every round, or this stops.
`--write` puts the figures, the machine and its load under benchmarks/results/.
"""

import argparse
import math
import sys
from pathlib import Path

import jax

CPU_DEVICES = 2

# Seconds a round as measured once on a quiet machine of 2 cores (AMD Zen 4): the tuned loop in two
# processes, and the fastest of twelve implementations. Only their ratio is used.
TABLE = {
    "W1": (0.420, 0.385, "plain jitted JAX, scan over chunks"),
    "W2": (2.53, 2.53, "PyTorch loop, two processes"),
    "W3": (1.97, 1.08, "DrJAX 0.2.1, two devices"),
    "W4": (3.50, 3.50, "PyTorch loop, two processes"),
    "W5": (2.72, 2.51, "pfl-research 0.6.0, two processes"),
}


def main(name: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--modes", nargs="+", default=["loop2", "vmap2"])
    parser.add_argument("--clients", type=int)
    parser.add_argument("--chunk", type=int, help="clients vmapped at once; measured by default")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        raise SystemExit("the CPU was not split into devices before JAX started")
    import ours
    import timing
    import torch_peers

    start = timing.machine()
    one_round = ours.make(name, clients=asked.clients, chunk=asked.chunk or "auto")
    peers = {m: torch_peers.make(name, m, clients=asked.clients) for m in asked.modes}
    last = {}

    def watched(who, function, read):
        def call():
            last.setdefault(who, []).append(read(function()))

        return call

    functions = {"jaxfed": watched("jaxfed", one_round, lambda r: r["norm"])}
    for mode, peer in peers.items():
        functions[f"torch {mode}"] = watched(f"torch {mode}", peer.round, lambda r: r.norm)
    seconds = timing.alternate(functions, asked.repeats)
    for peer in peers.values():
        peer.close()
    for who, norms in last.items():
        for i, (a, b) in enumerate(zip(norms, last["jaxfed"], strict=True)):
            if not math.isclose(a, b, rel_tol=1e-3):
                raise SystemExit(f"{who} differs after round {i + 1}: norm {a} against {b}")
    print(timing.table({name: seconds}, "torch loop2"))
    if "torch loop2" in seconds and asked.clients is None:
        loop, fastest, peer = TABLE[name]
        mine = min_or_median(seconds["jaxfed"]) / min_or_median(seconds["torch loop2"])
        print(
            f"\n{name}: {mine:.3f} of the two-process loop's time; the fastest peer ({peer}) takes "
            f"{fastest / loop:.3f} of it, so jaxfed takes {mine * loop / fastest:.2f} of the "
            "fastest peer's round time"
        )
    if asked.write:
        device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
        timing.write(
            name.lower(),
            {name: seconds},
            "torch loop2",
            start,
            command=f"python benchmarks/{Path(sys.argv[0]).name} {' '.join(sys.argv[1:])}",
            devices=device,
        )


def min_or_median(seconds: dict) -> float:
    return seconds["median"]
