"""In which form rounds are compiled: as asked for, as before, or as measured."""

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxfed.algorithm import Algorithm
from jaxfed.lowrank import fused
from jaxfed.models import conv
from jaxfed.simulation import blocks, engine, participation, tuning
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.host import Host
from jaxfed.simulation.programs import Programs


class Form(NamedTuple):
    """In which form rounds are compiled: the same form ends in the same bits."""

    chunk: Any  # clients at once; they or rounds may be "auto" until they are measured
    fuse: Any  # rounds in a call
    convolutions: str  # see Host
    low_rank: str  # see Host


def chosen(
    algorithm: Algorithm,
    host: Host,
    supply: blocks.Supply,
    server: Any,
    done: int,
    before: Mapping,
    programs: Programs | None,
) -> tuple[engine.Machine, Form, Any]:
    """(machine, form, jitted rounds): the form as asked for, as before, or as measured."""
    e, machine, people = supply.experiment, supply.machine, supply.population
    moving = supply.examples is None or people.moves  # each round needs what the host prepares
    asked = Form(host.chunk, 1 if moving else host.fuse, host.convolutions, host.low_rank)
    form = _as_before(machine, asked, before)
    # So that what was measured is not compiled again.
    made: dict[tuple, Any] = {}

    def make(machine: engine.Machine, convolutions: str = form.convolutions) -> Any:
        convolutions = "default" if convolutions == "auto" else convolutions
        here = machine.chunk, convolutions
        if here not in made:
            lowered = convolutions, form.low_rank
            made[here] = jitted_rounds(algorithm, e, machine, programs, *lowered)
        return made[here]

    first = supply.block(range(1))
    arguments = (server, first.states, first.examples, first.plan)
    if "auto" in (form.chunk, form.fuse):
        shared = programs is not None
        form = _measured(form, make, supply, host, arguments, e.rounds - done, shared=shared)
    elif form.convolutions == "auto":
        form = form._replace(convolutions="default")
    machine = dataclasses.replace(machine, chunk=form.chunk)
    step = make(machine, form.convolutions)
    jax.eval_shape(step, *arguments)  # raises what an algorithm's code has to raise
    return machine, form, step


def _measured(
    form: Form,
    make: Callable[..., Any],
    supply: blocks.Supply,
    host: Host,
    arguments: tuple,
    ahead: int,
    *,
    shared: bool,
) -> Form:
    """The form with what is "auto" measured on a real round, `ahead` of which are left.

    Fused rounds are a program of their own, which is compiled if it saves more time than that
    takes, or if other runs share it.
    """
    e, machine = supply.experiment, supply.machine
    here = -(-arguments[-1].id.shape[1] // len(machine.devices))
    candidates = tuning.chunk_candidates(here) if form.chunk == "auto" else [form.chunk]
    best = tuning.measured_chunk(make, machine, arguments, candidates, ahead)
    machine = dataclasses.replace(machine, chunk=best.chunk)
    convolutions = form.convolutions
    if convolutions == "auto":
        others = conv.alternatives(machine.devices[0].platform)
        others = others if conv.SCOPE in best.program.as_text() else ()
        given = partial(make, machine), machine, arguments, best, others, ahead
        convolutions = tuning.measured_lowering(*given) or "default"
    fuse = form.fuse
    if fuse == "auto":
        worth = shared or ahead * SAVED > best.compiling
        fuse = participation.fuse(e, host, best.seconds) if worth else 1
    return Form(best.chunk, int(fuse), convolutions, form.low_rank)


SAVED = 2e-3  # seconds that a round in a call of many saves


def _as_before(machine: engine.Machine, asked: Form, before: Mapping) -> Form:
    """The form as asked for, with what is "auto" as host.json has it.

    A warning if this computer cannot end in the same bits.
    """
    now = bits(machine, asked)
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
        return asked
    kept = {n: before[n] for n, x in asked._asdict().items() if x == "auto" and n in before}
    return asked._replace(**kept)


def bits(machine: engine.Machine, form: Form) -> dict[str, Any]:
    """What runs must share to end in the same bits."""
    return {
        **form._asdict(),
        "devices": len(machine.devices),
        "device": machine.devices[0].device_kind,
        "processes": jax.process_count(),
        "jax": jax.__version__,
    }


def check(low_rank: str, machine: engine.Machine) -> None:
    """Raises ValueError if devices of this kind have no such form of low-rank terms."""
    platform = machine.devices[0].platform
    if low_rank == "kernel" and platform != "gpu":
        raise ValueError(
            f"low_rank='kernel' is a kernel for GPUs, and this is a {platform.upper()}; use "
            "'products'"
        )


def jitted_rounds(
    algorithm: Algorithm,
    e: Experiment,
    machine: engine.Machine,
    programs: Programs | None = None,
    convolutions: str = "default",
    low_rank: str = "products",
) -> Any:
    """The jitted rounds on this machine; see engine.rounds. Of `programs`, if there are any."""
    check(low_rank, machine)
    verb = engine.for_each_client(machine, uniform=e.data.train.uniform)
    most = e.data.train.most
    if programs is None:
        rounds = engine.rounds(algorithm, verb, e.seed, most)
        rounds = _lowered(rounds, convolutions, low_rank)
        return engine.compiled(rounds, machine, donate=(0, 1))
    rounds = engine.rounds(algorithm, verb, e.seed, programs.size.most, width=most)
    return programs.compiled(_lowered(rounds, convolutions, low_rank), machine, donate=(0, 1))


def _lowered(rounds: Callable, convolutions: str, low_rank: str) -> Callable:
    """The rounds, whose convolutions and low-rank terms are lowered so."""
    if (convolutions, low_rank) == ("default", "products"):
        return rounds

    def run(server, states, examples, plan):
        lowering = None if convolutions == "default" else convolutions
        form = None if low_rank == "products" else "kernel"
        with conv.lowering(lowering), fused.form(form):
            return rounds(server, states, examples, plan)

    return run
