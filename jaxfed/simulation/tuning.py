"""How many clients run at once, and how convolutions are computed: measured on a real round."""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxfed import trees
from jaxfed.simulation import hlo
from jaxfed.simulation.engine import Machine, largest, memory_limit

log = logging.getLogger(__name__)

Make = Callable[[Machine], jax.stages.Wrapped]
"""The jitted round on a machine."""


class Measured(NamedTuple):
    """A round as it was measured."""

    chunk: int  # clients at once
    seconds: float  # of a round
    compiling: float  # seconds that its program took
    program: Any


def chunk_candidates(clients: int) -> list[int]:
    """Divisors [n, ..., 1] of the clients on one device, at least a factor of two apart."""
    sizes: list[int] = []
    for size in (n for n in range(clients, 0, -1) if clients % n == 0):
        if not sizes or size * 2 <= sizes[-1] or size == 1:
            sizes.append(size)
    return sizes


def measured_chunk(
    make: Make, machine: Machine, arguments: tuple, candidates: Sequence[int], calls: int
) -> Measured:
    """The fastest of the chunks that were tried on a real round, two of them as a rule on a CPU.

    `arguments` are the round's (server, states, examples, plan), already placed; the donated ones
    are copied. Of the descending `candidates`, the first is compiled. While the program's own
    analysis says that it needs more memory than is free, the next is the largest that should fit by
    it. That one is the result on a GPU or a TPU, where fewer clients at once are never faster. On a
    CPU the one follows that `predicted` expects to be the fastest of the others, and after a gain
    the next smaller one: but none that should be 8 % slower, and only where a gain of a tenth, or
    half of the last gain, over the `calls` that are left, would win back a compilation.
    """
    found: dict[int, Measured] = {}
    limit, left = memory_limit(machine), list(candidates)
    cost: dict[int, float] = {}
    first = 1.2 if machine.devices[0].platform == "cpu" else 1  # so that half the gain is a tenth
    upcoming: int | None = left[0]
    while (chunk := upcoming) is not None:
        log.info("compiling a round, %s clients at once", chunk)
        here = dataclasses.replace(machine, chunk=chunk)
        program, compiling = _compiled(make(here), machine, arguments)
        needed = largest(temporary_bytes(program) * machine.sharing, machine)
        left = [n for n in left if n != chunk]
        if needed > limit:
            left = [n for n in left if n <= max(limit / needed * chunk, candidates[-1])]
            upcoming = max((n for n in left if n < chunk), default=None)
            continue
        seconds = _seconds(program, machine, arguments)
        log.info("measured %.3g s a round, %s clients at once", seconds, chunk)
        gain = min((m.seconds for m in found.values()), default=first * seconds) - seconds
        found[chunk] = Measured(chunk, seconds, compiling, program)
        if calls * gain / 2 <= compiling:
            break
        if not cost:
            cost = _costs(program, chunk, (chunk, *left), arguments[0])
            upcoming = min(left, key=lambda n: cost[n], default=None)
        else:
            upcoming = max((n for n in left if n < chunk), default=None)
        if upcoming and not largest(cost[upcoming] < 1.08 * cost[chunk], machine):
            break
    if not found:
        raise ValueError(
            f"even one client at a time needs {needed:.0f} bytes, but {limit} are free; use a "
            "smaller batch or a smaller model"
        )
    return min(found.values(), key=lambda m: m.seconds)


def measured_lowering(
    make: Callable[[str], jax.stages.Wrapped],
    machine: Machine,
    arguments: tuple,
    default: Measured,
    others: Sequence[str],
    calls: int,
) -> str | None:
    """Which of the `others` is over 5 % faster than the default round, the fastest; or None.

    One is compiled only if a gain of a tenth, over the `calls` that are left, would win back the
    time of its compilation.
    """
    best, fastest, limit = None, 0.95 * default.seconds, memory_limit(machine)
    for name in others:
        if calls * default.seconds / 10 < default.compiling:
            return best
        log.info("compiling a round, its convolutions by %s", name)
        program, _ = _compiled(make(name), machine, arguments)
        if largest(temporary_bytes(program) * machine.sharing, machine) > limit:
            continue
        seconds = _seconds(program, machine, arguments)
        log.info("measured %.3g s a round, its convolutions by %s", seconds, name)
        if seconds < fastest:
            best, fastest = name, seconds
    return best


def temporary_bytes(program: Any) -> int:
    """Bytes that a call of a compiled program needs on each device, beside its arguments."""
    return getattr(program.memory_analysis(), "temp_size_in_bytes", 0)


# ---------------------------------------------------------------------- before it is measured


class Core(NamedTuple):
    """One device of a CPU, in round numbers that only order candidates.

    Chosen so that `predicted` finds the fastest chunks of W1 to W5 on a Xeon of 2023.
    """

    launch: float = 3e-6  # seconds a kernel
    flops: float = 60e9  # a second
    bandwidth: float = 6e9  # bytes a second from memory
    cached: float = 3.0  # times as fast from the caches near the core
    near: float = 4e5  # bytes of a kernel that these caches hold for the next one
    alone: float = 1.5  # times as fast at the products of one client, which are not batched


def predicted(step: hlo.Work, at: int, chunk: int, base: float) -> float:
    """Seconds of one client's local step on a CPU, `chunk` at once, from a program for `at`.

    Kernels, and the base (read in both directions), are shared by the clients of a chunk. What is
    left of the program's bytes is each client's own. The fewer of them a kernel touches, the more
    of them are still in a cache when the next kernel reads them.
    """
    core = Core()
    arithmetic = (step.wide + step.narrow) / at / core.flops / (core.alone if chunk == 1 else 1)
    shared = step.kernels * core.launch + min(2 * base, step.bytes) / core.bandwidth
    own = max(step.bytes - 2 * base, 0) / at
    found = min(1, core.near * step.kernels / max(own * chunk, 1))
    speed = core.bandwidth * (1 + (core.cached - 1) * found)
    return arithmetic + shared / chunk + own / speed


def _costs(program: Any, at: int, chunks: Sequence[int], server: Any) -> dict[int, float]:
    """What `predicted` has for each of the chunks, from a program for one of them."""
    step, base = hlo.local_step(hlo.parsed(program.as_text())), trees.nbytes(server.base)
    return {n: predicted(step, at, n, base) for n in chunks}


# ---------------------------------------------------------------------- measured


def _compiled(step: Any, machine: Machine, arguments: tuple) -> tuple[Any, float]:
    """(the program, the seconds that compiling it took)."""
    begin = time.perf_counter()
    program = step.lower(*arguments).compile()
    return program, largest(time.perf_counter() - begin, machine)


def _seconds(program: Callable, machine: Machine, arguments: tuple) -> float:
    """The least seconds of two calls."""
    return largest(min(_timed(program, arguments) for _ in range(2)), machine)


def _timed(program: Callable, arguments: tuple) -> float:
    server, states, *rest = arguments
    server, states = jax.block_until_ready(jax.tree.map(jnp.copy, (server, states)))
    begin = time.perf_counter()
    jax.block_until_ready(program(server, states, *rest))
    return time.perf_counter() - begin
