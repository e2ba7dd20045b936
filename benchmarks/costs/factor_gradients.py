"""The gradient of a narrow weight on a CPU, as autodiff has it and by `lowrank.products`.

    python benchmarks/costs/factor_gradients.py [--repeats 15] [--write]

For y = x w, g being the gradient of y: the gradient x' g alone, whose inputs are in a cache or in
memory as their sizes have it. The shapes are those of factors beside layers of W3, W4 and W5, with
an axis of clients where they have one. On other platforms both are the same program.
"""

import argparse
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from measuring import RESULTS, timing

from jaxfed.lowrank import products

SHAPES = {  # clients (0: no axis), rows, inputs, outputs
    "W5, a beside a convolution of stride 2": (0, (32, 16, 16), 576, 16),
    "W5, b beside it": (0, (32, 16, 16), 16, 128),
    "the same of four clients": (4, (32, 16, 16), 16, 128),
    "W4, a of a query": (0, (8, 64), 256, 8),
    "W4, b of a query": (0, (8, 64), 8, 256),
    "the same of four clients, b": (4, (8, 64), 8, 256),
    "W3, a of ten clients": (10, (20,), 1024, 8),
}


def by_autodiff(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tensordot(x, w, axes=1)


def seconds(times, name: str, repeats: int) -> float:
    """The median of a call of the gradient of w."""
    clients, rows, inputs, outputs = SHAPES[name]
    stream, many = np.random.default_rng(0), (clients,) if clients else ()

    def normal(*shape):
        return jnp.asarray(stream.standard_normal((*many, *shape), np.float32))

    x, w, g = normal(*rows, inputs), normal(inputs, outputs), normal(*rows, outputs)

    def gradient(x, w, g):
        return jax.vjp(lambda w: times(x, w), w)[1](g)[0]

    call = jax.jit(jax.vmap(gradient) if clients else gradient)
    jax.block_until_ready(call(x, w, g))
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call(x, w, g))
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    start = timing.machine()
    rows = ["| | autodiff, ms | products.times, ms | ratio |", "| --- | --- | --- | --- |"]
    for name in SHAPES:
        plain, here = (seconds(f, name, asked.repeats) for f in (by_autodiff, products.times))
        rows.append(f"| {name} | {1e3 * plain:.3f} | {1e3 * here:.3f} | {here / plain:.2f} |")
        print(rows[-1], flush=True)
    if asked.write:
        head, text = timing.listed({"command": timing.command(), **start}), "\n".join(rows)
        (RESULTS / "factor_gradients.md").write_text(f"{head}\n\n{text}\n")


if __name__ == "__main__":
    main()
