"""W4 with its frozen weights in bfloat16 and in float32, in turn: round times and losses.

    python benchmarks/costs/bfloat16_base.py [--repeats 5] [--clients 20] [--chunk 1] [--write]

Both start at the same weights, rounded in one of them, and train float32 factors.
"""

import argparse

import jax
import jax.numpy as jnp
from measuring import RESULTS, ours, timing

DTYPES = {"float32": None, "bfloat16": jnp.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--chunk", type=int, help="clients vmapped at once; measured by default")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    start, losses = timing.machine(), {name: [] for name in DTYPES}

    def watched(name, one_round):
        return lambda: losses[name].append(one_round()["loss"])

    options = {"clients": asked.clients, "chunk": "auto" if asked.chunk is None else asked.chunk}
    functions = {
        name: watched(name, ours.make("W4", dtype=dtype, **options))
        for name, dtype in DTYPES.items()
    }
    seconds = timing.alternate(functions, asked.repeats)
    print(timing.table({"W4": seconds}, "float32"))
    for name, found in losses.items():
        print(f"\nmean loss of a round, {name}: " + " ".join(f"{loss:.4f}" for loss in found))
    if asked.write:
        notes = {"command": timing.command(), "devices": ours.hardware(), "losses": losses}
        timing.write(RESULTS / "bfloat16_base", {"W4": seconds}, "float32", start, **notes)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", ours.CPU_DEVICES)
    main()
