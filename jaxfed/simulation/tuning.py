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
    """The fastest of the chunks that were tried on a real round, one or two of them as a rule.

    `arguments` are the round's (server, states, examples, plan), already placed; the donated ones
    are copied. Of the descending `candidates`, the first is compiled. While the program's own
    analysis says that it needs more memory than is free, the next is the largest that should fit by
    it. Once one is timed, only that is compiled which `predicted` expects to be the fastest of all;
    and after a gain, the next smaller one if half of that gain, over the `calls` that are left,
    would win back the time of its compilation.
    """
    found: dict[int, Measured] = {}
    limit, left = memory_limit(machine), list(candidates)
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
        before = min((m.seconds for m in found.values()), default=None)
        seconds = _seconds(program, machine, arguments)
        found[chunk] = Measured(chunk, seconds, compiling, program)
        log.info("measured %.3g s a round, %s clients at once", found[chunk].seconds, chunk)
        if calls * min(m.seconds for m in found.values()) < compiling:
            break
        if before is None:
            upcoming = _expected(program, chunk, machine, arguments[0], left)
        else:
            gain = before - found[chunk].seconds
            fewer = max((n for n in left if n < chunk), default=None)
            upcoming = fewer if calls * gain / 2 > compiling else None
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
    """One device of a CPU, in round numbers that only order candidates."""

    launch: float = 2e-6  # seconds a kernel
    flops: float = 50e9  # a second
    bandwidth: float = 10e9  # bytes a second
    cache: float = 4e6  # bytes, which it reads four times as fast


def predicted(step: hlo.Work, at: int, chunk: int, held: float, base: float) -> float:
    """Seconds of one client's local step on a CPU, `chunk` at once, from a program for `at`.

    Kernels, and the base (read in both directions), are shared by the clients of a chunk. What is
    left of the program's bytes is each client's own, and comes from the cache if it holds what the
    chunk keeps in memory: `held` bytes a client.
    """
    core = Core()
    shared = step.kernels * core.launch + min(2 * base, step.bytes) / core.bandwidth
    own = max(step.bytes - 2 * base, 0) / at / core.bandwidth
    arithmetic = (step.wide + step.narrow) / at / core.flops
    return arithmetic + shared / chunk + own / (4 if chunk * held <= core.cache else 1)


def _expected(
    program: Any, chunk: int, machine: Machine, server: Any, left: Sequence[int]
) -> int | None:
    """Which of the chunks that are `left` is predicted to be over 5 % faster than this one.

    None on a GPU or a TPU, where fewer clients at once are never faster.
    """
    if machine.devices[0].platform != "cpu" or not left:
        return None
    step, base = hlo.local_step(hlo.parsed(program.as_text())), trees.nbytes(server.base)
    held = temporary_bytes(program) / chunk
    cost = {n: predicted(step, chunk, n, held, base) for n in (chunk, *left)}
    best = min(left, key=lambda n: cost[n])
    return best if largest(cost[best] < 0.95 * cost[chunk], machine) else None


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
