"""How many clients at once, and how many rounds in a call: measured on a real round."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxfed.simulation.engine import Machine, largest, memory_limit


def chunk_candidates(clients: int) -> list[int]:
    """Divisors of the clients on one device, about a factor of two apart or more: [n, ..., 1]."""
    found: list[int] = []
    for size in (n for n in range(clients, 0, -1) if clients % n == 0):
        if not found or size * 2 <= found[-1] or size == 1:
            found.append(size)
    return found


def measured_chunk(
    make: Callable[[Machine], jax.stages.Wrapped],
    machine: Machine,
    arguments: tuple,
    candidates: Sequence[int],
    calls: int,
) -> tuple[int, float]:
    """(the fastest chunk, its seconds) on a real round.

    `make(machine)` gives the jitted round and `arguments` its (server, states, examples, plan),
    placed. Each of the candidates is timed twice on copies of what is donated. One that needs more
    memory than there is, by the compiled program's own analysis, is left out. The search stops when
    two in a row take over 1.15 times the best, or when the `calls` that lie ahead take less time
    than that candidate took to compile.
    """
    seconds: dict[int, float] = {}
    limit, worse = memory_limit(machine), 0
    for chunk in candidates:
        begin = time.perf_counter()
        program = make(dataclasses.replace(machine, chunk=chunk)).lower(*arguments).compile()
        compiling = largest(time.perf_counter() - begin, machine)
        needed = temporary_bytes(program) * machine.sharing
        if largest(needed / limit, machine) > 1:
            continue
        seconds[chunk] = largest(min(_timed(program, arguments) for _ in range(2)), machine)
        worse = worse + 1 if seconds[chunk] > 1.15 * min(seconds.values()) else 0
        if worse == 2 or calls * min(seconds.values()) < compiling:
            break
    if not seconds:
        raise ValueError(
            f"even one client at a time needs {needed} bytes, and {limit} are free; use a smaller "
            "batch or a smaller model"
        )
    best = min(seconds, key=lambda chunk: seconds[chunk])
    return best, seconds[best]


def temporary_bytes(program: Any) -> int:
    """What a call of a compiled program needs on each device, beside its arguments."""
    return getattr(program.memory_analysis(), "temp_size_in_bytes", 0)


def _timed(program: Callable, arguments: tuple) -> float:
    server, states, *rest = arguments
    server, states = jax.block_until_ready(jax.tree.map(jnp.copy, (server, states)))
    begin = time.perf_counter()
    jax.block_until_ready(program(server, states, *rest))
    return time.perf_counter() - begin
