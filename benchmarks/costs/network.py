"""What a round sends between chips, compiled for chips that are not here, and where it binds.

    python benchmarks/costs/network.py [--targets h100:8 tpu:v5e:2x2] [--llama CLIENTS] [--write]

Compiles W3 for each target, with two clients a chip, and reads the collectives in the programs.
Then a model of costs gives clients a second against chips and clients a round. Its figures:

    client    seconds of one client on one chip: the lower bound of the compiled program
    bytes     of the all-reduce, from the compiled program: all that is trained, in float32
    links     bytes a second that a chip sends, from the makers' pages (LINKS)

A round of K clients on n chips takes K / n clients one after the other, and then the all-reduce:
2 S (n - 1) / n bytes over a chip's links. Between computers of GPUs, each GPU sends its eighth of S
over its own network card. Latency is left out, so all seconds are lower bounds.

`--llama CLIENTS` compiles W8 on LLaMA's shape at 8B for one H100 instead, with at most so many
clients at once. Needs `pip install 'jaxfed[targets]'`.
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp
from measuring import RESULTS, ours, timing, workloads

from jaxfed.cli import describe
from jaxfed.simulation import engine, targets, tuning

EACH = 2  # clients a chip in the compiled programs
TARGETS = ("h100:1", "h100:8", "h100:64", "tpu:v5e:2x2", "tpu:v5e:8x8", "tpu:v5e:16x16")
CLIENTS = (10**3, 10**4, 10**5, 10**6)  # a round


class Links(NamedTuple):
    """Bytes a second that one chip sends."""

    near: float  # to the chips of its computer, or of its pod
    far: float  # beyond
    together: int  # chips that are near each other


# v5e: 400 GB/s in both directions a chip, 256 chips a pod, 6.4 Tbit/s from pod to pod
# (cloud.google.com/tpu/docs/v5e). H100: NVLink of 900 GB/s in both directions, 8 GPUs a computer
# (nvidia.com/en-us/data-center/h100), and a card of 400 Gbit/s for each of them (DGX H100's guide,
# docs.nvidia.com/dgx/dgxh100-user-guide).
LINKS = {"h100": Links(450e9, 50e9, 8), "v5e": Links(200e9, 6.4e12 / 8 / 256, 256)}


class Point(NamedTuple):
    """What was read from a program for `chips` chips."""

    target: str
    chips: int
    collectives: tuple[tuple[str, float, float], ...]
    client: float  # seconds on a chip


def kind(target: str) -> str:
    return target.removeprefix("tpu:").partition(":")[0]


def compiled(target: str) -> Point:
    """W3's round for a target."""
    where, w = targets.target(target), workloads.WORKLOADS["W3"]
    arrays, clients = workloads.arrays("W3", 1), EACH * len(where.devices)
    fed = ours.algorithm("W3", arrays)
    (found,) = round_of(where, fed, arrays.examples, clients, w.examples, w.steps, [EACH])
    seconds = max(targets.seconds(where.device, found.work).values())
    return Point(target, len(where.devices), found.work.collectives, seconds / EACH)


def round_of(where, fed, examples, clients, most, turns, chunks) -> list[targets.Compiled]:
    """targets.compiled of a round; `examples` are those of one client."""
    shapes = {
        n: jax.ShapeDtypeStruct((clients * most, *x.shape[1:]), x.dtype)
        for n, x in examples.items()
    }

    def make(machine: engine.Machine):
        verb = engine.for_each_client(machine, uniform=True)
        return engine.compiled(engine.rounds(fed, verb, 0, most), machine, donate=(0, 1))

    server = jax.eval_shape(fed.init, jax.random.key(0))
    arguments = (server, (), shapes, ours.plan(clients, most))
    return targets.compiled(where, make, arguments, chunks, turns)


def sending(size: float, chips: int, links: Links) -> float:
    """Seconds of an all-reduce of `size` bytes over so many chips."""
    near = min(chips, links.together)
    within = 2 * size * (near - 1) / near / links.near
    groups = chips // near
    return within + 2 * size / near * (groups - 1) / groups / links.far


def model(points: list[Point], size: float) -> str:
    """Markdown: for each target and K, clients a second and the share of communication."""
    rows = ["| chips | clients a round | s a round | clients/s | sending | 10^9 clients take |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    for p in (p for p in points if p.chips > 1):
        sent = sending(size, p.chips, LINKS[kind(p.target)])
        for k in CLIENTS:
            seconds = max(k / p.chips, 1) * p.client + sent
            rows.append(
                f"| {p.target} | {k:,} | {seconds:.3g} | {k / seconds:,.0f} "
                f"| {sent / seconds:.1%} | {1e9 / k * seconds / 3600:.3g} h |"
            )
    return "\n".join(rows)


PAYLOADS = {  # bytes, float32
    "factors of W3": 4 * 8 * (784 + 1024 + 1024 + 1024 + 1024 + 10),
    "factors of W6": 4 * 12 * 2 * 8 * (768 + 768),
    "factors of W8": 4 * 16 * 16 * (2048 + 2048 + 2048 + 512),
    "factors at 8B": 4 * 32 * 16 * (4096 + 4096 + 4096 + 1024),
    "all weights at 8B": 4 * 8.03e9,
}


def payloads() -> str:
    """Markdown: seconds of an all-reduce of what is trained, on each number of chips."""
    chips = {"8 H100": 8, "64 H100": 64, "1024 H100": 1024, "256 v5e": 256, "1024 v5e": 1024}
    rows = [f"| sent | MB | {' | '.join(chips)} |", f"| --- | --- |{' --- |' * len(chips)}"]
    for name, size in PAYLOADS.items():
        each = [
            sending(size, n, LINKS["v5e" if c.endswith("v5e") else "h100"])
            for c, n in chips.items()
        ]
        times = " | ".join(f"{1e3 * t:.3g} ms" for t in each)
        rows.append(f"| {name} | {size / 1e6:,.3g} | {times} |")
    return "\n".join(rows)


def bounds(points: list[Point], size: float) -> str:
    """Markdown: what was compiled, and the clients a chip at which sending takes half a round."""
    rows = ["| chips | collectives in the program | ms a client | µs of sending | binds below |"]
    rows.append("| --- | --- | --- | --- | --- |")
    for p in points:
        moved = ", ".join(f"{n:g} {k} of {s / 1e6:.3g} MB" for k, n, s in p.collectives) or "none"
        sent = sending(size, p.chips, LINKS[kind(p.target)])
        rows.append(
            f"| {p.target} | {moved} | {p.client * 1e3:.3g} | {sent * 1e6:.3g} "
            f"| {sent / p.client:.2g} clients a chip |"
        )
    return "\n".join(rows)


def llama(clients: int) -> str:
    """LLaMA's shape at 8B on one H100, as `jaxfed describe --for` says it."""
    options = {"dtype": jnp.bfloat16, "compute": jnp.bfloat16, "remat": True}
    where, w = targets.target("h100:1"), workloads.WORKLOADS["W8 8B"]
    fed, examples = ours.planned("W8 8B", **options)
    chunks = [n for n in tuning.chunk_candidates(w.clients) if n <= clients]
    tried = round_of(where, fed, examples, w.clients, w.examples, w.steps, chunks)
    return describe.elsewhere(where, tried)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--llama", type=int, metavar="CLIENTS")
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    start = timing.machine()
    if asked.llama:
        name, text = "llama_8b", llama(asked.llama)
    else:
        points = []
        for target in asked.targets:
            points.append(compiled(target))
            print(points[-1], flush=True)
        trained = workloads.arrays("W3", 1).factors.values()
        size = sum(x.nbytes for pair in trained for x in pair)
        name, text = "network", "\n\n".join([bounds(points, size), model(points, size), payloads()])
    print(text)
    if asked.write:
        head = timing.listed({"command": timing.command(), **start})
        (RESULTS / f"{name}.md").write_text(f"{head}\n\n{text}\n")


if __name__ == "__main__":
    main()
