"""Bytes that a dense layer moves with and without factors, compiled for chips that are not here.

    python benchmarks/costs/lowrank_bytes.py [--targets h100:1 tpu:v5e:2x2] [--write]

One layer of W3 (1024 x 1024 in float32, 100 clients of 20 examples, rank 8) and one of W6
(768 x 768 in bfloat16, 20 clients of 16 x 128 tokens, rank 8), the base shared by all clients, and
the gradients of the factors and of the input; with factors as products, and by lowrank.fused's
kernel for GPUs. The unit is the bytes of the layer's input x of all clients, [K, B, d]; the base's
product alone reads x and writes y, which is 2 and its weights. Needs
`pip install 'jaxfed[targets]'`.
"""

import argparse
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from measuring import RESULTS, timing

from jaxfed import lowrank
from jaxfed.lowrank import Factors, Theta, fused
from jaxfed.simulation import engine, hlo, targets

LAYERS = {  # clients, rows of each, width, type
    "W3": (100, 20, 1024, jnp.float32),
    "W6": (20, 16 * 128, 768, jnp.bfloat16),
}
RANK = 8
FORMS = {None: "products", "kernel": "kernel"}


def layer(model: nn.Module, w, a, b, x, *, trained: bool) -> jax.Array:
    """[K, B, d] -> [K, B, d], each client with its own factors."""

    def one(a, b, x):
        factors = {"kernel": Factors(a, b, 1.0)} if trained else {}
        return lowrank.apply(model, {"kernel": w}, Theta({}, factors), x)

    return jax.vmap(one)(a, b, x)


def both(model: nn.Module, w, a, b, x, g, *, trained: bool) -> tuple:
    """The layer's output, and gradients of what is trained and of x, given those of the output."""
    if trained:
        y, back = jax.vjp(partial(layer, model, w, trained=True), a, b, x)
    else:
        y, back = jax.vjp(lambda x: layer(model, w, a, b, x, trained=False), x)
    return y, back(g)


def program(where: targets.Target, name: str, *, gradients: bool, trained: bool) -> hlo.Program:
    clients, rows, d, dtype = LAYERS[name]
    model = nn.Dense(d, use_bias=False, dtype=dtype, param_dtype=dtype)
    x = jax.ShapeDtypeStruct((clients, rows, d), dtype)
    shapes = [
        jax.ShapeDtypeStruct((d, d), dtype),
        jax.ShapeDtypeStruct((clients, d, RANK), jnp.float32),
        jax.ShapeDtypeStruct((clients, RANK, d), jnp.float32),
        x,
        *([x] if gradients else []),
    ]
    function = partial(both if gradients else layer, model, trained=trained)
    placed = engine.placed_shapes(tuple(shapes), engine.Machine(where.devices))
    lowered = targets.lowered(where, jax.jit(function), placed)
    return hlo.parsed(lowered.compile(where.options or None).as_text())


def unit(name: str) -> int:
    """Bytes of x of all clients."""
    clients, rows, d, dtype = LAYERS[name]
    return clients * rows * d * jnp.dtype(dtype).itemsize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", nargs="+", default=["h100:1", "tpu:v5e:2x2"])
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    start = timing.machine()
    rows = ["| layer | for | | kernels | bytes / bytes of x | arithmetic, µs | memory, µs |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for where in map(targets.target, asked.targets):
        for name in LAYERS:
            for gradients in (False, True):
                for form in ("", *FORMS):
                    if form == "kernel" and where.platform != "cuda":
                        continue
                    with fused.form(form or None):
                        found = program(where, name, gradients=gradients, trained=form != "")
                    work = hlo.work(found)
                    least = targets.seconds(where.device, work)
                    what = f"factors: {FORMS[form]}" if form != "" else "no factors"
                    what += ", and gradients" if gradients else ""
                    rows.append(
                        f"| {name} | {where.name} | {what} | {work.kernels:g} "
                        f"| {work.bytes / unit(name):.2f} | {1e6 * least['arithmetic']:.0f} "
                        f"| {1e6 * least['memory']:.0f} |"
                    )
                    print(rows[-1], flush=True)
    if asked.write:
        head = timing.listed({"command": timing.command(), **start})
        text = "\n".join(rows)
        (RESULTS / "lowrank_bytes.md").write_text(f"{head}\n\n{text}\n")


if __name__ == "__main__":
    main()
