"""How many clients at once and rounds in a call: as asked for, as before, or as measured."""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import jax

from jaxfed.algorithm import Algorithm
from jaxfed.simulation import blocks, engine, participation, tuning
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.host import Host
from jaxfed.simulation.programs import Programs


def chosen(
    algorithm: Algorithm,
    host: Host,
    supply: blocks.Supply,
    server: Any,
    done: int,
    before: Mapping,
    programs: Programs | None,
) -> tuple[engine.Machine, int, Any]:
    """(machine, fuse, jitted rounds): chunk and fuse as asked for, as before, or as measured."""
    e, machine, people = supply.experiment, supply.machine, supply.population
    moving = supply.examples is None or people.moves  # each round needs what the host prepares
    chunk, fuse = _as_before(machine, host.chunk, 1 if moving else host.fuse, before)
    # So that what was measured is not compiled again.
    made: dict[int | None, Any] = {}

    def make(machine: engine.Machine) -> Any:
        return made.setdefault(machine.chunk, jitted_rounds(algorithm, e, machine, programs))

    first = supply.block(range(1))
    arguments = (server, first.states, first.examples, first.plan)
    ahead = e.rounds - done
    if "auto" in (chunk, fuse):
        here = -(-first.plan.id.shape[1] // len(machine.devices))
        candidates = tuning.chunk_candidates(here) if chunk == "auto" else [chunk]
        chunk, seconds = tuning.measured_chunk(make, machine, arguments, candidates, ahead)
        fuse = participation.fuse(e, host, seconds) if fuse == "auto" else fuse
    machine = dataclasses.replace(machine, chunk=chunk)
    step = make(machine)
    jax.eval_shape(step, *arguments)  # raises what an algorithm's code has to raise
    return machine, int(fuse), step


def _as_before(machine: engine.Machine, chunk: Any, fuse: Any, before: Mapping) -> tuple[Any, Any]:
    """(chunk, fuse) as asked for, "auto" as host.json has them.

    A warning if this computer cannot end in the same bits.
    """
    now = bits(machine, chunk, fuse)
    if changed := {
        n: f"{before[n]}, now {now[n]}"
        for n in now
        if n in before and before[n] != now[n] != "auto"
    }:
        warnings.warn(
            f"the run started with other {changed}: its results will agree with those of an "
            "unbroken run up to rounding, not to the bit",
            stacklevel=5,
        )
    if before.get("devices") != now["devices"]:
        return chunk, fuse
    return tuple(
        before.get(name, asked) if asked == "auto" else asked
        for name, asked in (("chunk", chunk), ("fuse", fuse))
    )


def bits(machine: engine.Machine, chunk: Any, fuse: Any) -> dict[str, Any]:
    """What runs must share to end in the same bits."""
    return {
        "chunk": chunk,
        "fuse": fuse,
        "devices": len(machine.devices),
        "device": machine.devices[0].device_kind,
        "processes": jax.process_count(),
        "jax": jax.__version__,
    }


def jitted_rounds(
    algorithm: Algorithm, e: Experiment, machine: engine.Machine, programs: Programs | None = None
) -> Any:
    """The jitted rounds on this machine; see engine.rounds. Of `programs`, if there are any."""
    verb = engine.for_each_client(machine, uniform=e.data.train.uniform)
    most = e.data.train.most
    if programs is None:
        rounds = engine.rounds(algorithm, verb, e.seed, most)
        return engine.compiled(rounds, machine, donate=(0, 1))
    rounds = engine.rounds(algorithm, verb, e.seed, programs.size.most, width=most)
    return programs.compiled(rounds, machine, donate=(0, 1))
