"""Frozen weights in float32, bfloat16, int8 and int4, in turn: bytes, round times and losses.

    python benchmarks/costs/frozen_base.py [--on "W8 small"] [--kinds float32 int8] [--repeats 5]
        [--clients 20] [--chunk 1] [--write]

All start at the same weights, rounded in the narrow ones, and train float32 factors; activations
are float32. In int8 and int4 only kernels of layers are narrow: tables and the head stay.
"""

import argparse

import jax
import jax.numpy as jnp
from measuring import RESULTS, ours, timing, workloads

from jaxfed import trees

KINDS = {
    "float32": {},
    "bfloat16": {"dtype": jnp.bfloat16},
    "int8": {"base": "int8"},
    "int4": {"base": "int4"},
}


def nbytes(name: str, options: dict) -> int:
    """Of the frozen weights."""
    fed = ours.algorithm(name, workloads.arrays(name, 1), **options)
    return trees.nbytes(jax.eval_shape(fed.init, jax.random.key(0)).base)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--on", default="W8 small", choices=["W4", "W8 small", "W8 tiny"])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--chunk", type=int, help="clients vmapped at once; measured by default")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    start, losses = timing.machine(), {kind: [] for kind in asked.kinds}

    def watched(kind, one_round):
        return lambda: losses[kind].append(one_round()["loss"])

    options = {"clients": asked.clients, "chunk": "auto" if asked.chunk is None else asked.chunk}
    functions = {
        kind: watched(kind, ours.make(asked.on, **KINDS[kind], **options)) for kind in asked.kinds
    }
    seconds = timing.alternate(functions, asked.repeats)
    held = {kind: nbytes(asked.on, KINDS[kind]) for kind in asked.kinds}
    print(timing.table({asked.on: seconds}, asked.kinds[0]))
    for kind, found in losses.items():
        rounds = " ".join(f"{loss:.4f}" for loss in found)
        print(f"\n{kind}: {held[kind] / 1e6:.2f} MB; mean loss of each round: {rounds}")
    if asked.write:
        notes = {"command": timing.command(), "devices": ours.hardware()}
        rounded = {kind: [round(loss, 5) for loss in found] for kind, found in losses.items()}
        notes |= {"losses": rounded, "bytes": held}
        place = RESULTS / f"frozen_base_{asked.on.replace(' ', '_').lower()}"
        timing.write(place, {asked.on: seconds}, asked.kinds[0], start, **notes)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", ours.CPU_DEVICES)
    main()
