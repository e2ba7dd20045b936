"""The number of clients that run at once, measured on a real round."""

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxfed.simulation.engine import Machine, largest, memory_limit

log = logging.getLogger(__name__)


def chunk_candidates(clients: int) -> list[int]:
    """Divisors [n, ..., 1] of the clients on one device, at least a factor of two apart."""
    sizes: list[int] = []
    for size in (n for n in range(clients, 0, -1) if clients % n == 0):
        if not sizes or size * 2 <= sizes[-1] or size == 1:
            sizes.append(size)
    return sizes


def measured_chunk(
    make: Callable[[Machine], jax.stages.Wrapped],
    machine: Machine,
    arguments: tuple,
    candidates: Sequence[int],
    calls: int,
) -> tuple[int, float]:
    """(the fastest chunk, its seconds per call) on a real round.

    `make(machine)` gives the jitted round, and `arguments` are its (server, states, examples,
    plan), already placed. Each candidate is timed twice on copies of the donated arguments. A
    candidate is skipped if the compiled program's own analysis says that it needs more memory than
    is free. The search stops when two successive candidates take over 1.15 times the best time, or
    when the remaining `calls` would take less time than compiling the last candidate.
    """
    seconds: dict[int, float] = {}
    limit, worse = memory_limit(machine), 0
    for chunk in candidates:
        log.info("compiling a round, %s clients at once", chunk)
        begin = time.perf_counter()
        program = make(dataclasses.replace(machine, chunk=chunk)).lower(*arguments).compile()
        compiling = largest(time.perf_counter() - begin, machine)
        needed = temporary_bytes(program) * machine.sharing
        if largest(needed / limit, machine) > 1:
            continue
        seconds[chunk] = largest(min(_timed(program, arguments) for _ in range(2)), machine)
        log.info("measured %.3g s a round, %s clients at once", seconds[chunk], chunk)
        worse = worse + 1 if seconds[chunk] > 1.15 * min(seconds.values()) else 0
        if worse == 2 or calls * min(seconds.values()) < compiling:
            break
    if not seconds:
        raise ValueError(
            f"even one client at a time needs {needed} bytes, but {limit} are free; use a smaller "
            "batch or a smaller model"
        )
    best = min(seconds, key=lambda chunk: seconds[chunk])
    return best, seconds[best]


def temporary_bytes(program: Any) -> int:
    """Bytes that a call of a compiled program needs on each device, beside its arguments."""
    return getattr(program.memory_analysis(), "temp_size_in_bytes", 0)


def _timed(program: Callable, arguments: tuple) -> float:
    server, states, *rest = arguments
    server, states = jax.block_until_ready(jax.tree.map(jnp.copy, (server, states)))
    begin = time.perf_counter()
    jax.block_until_ready(program(server, states, *rest))
    return time.perf_counter() - begin
