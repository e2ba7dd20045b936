"""jaxfed's side of accelerator.py: its workloads, and JAX's own peaks."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import ours
import workloads

from jaxfed.simulation import engine, flops, tuning

NARROW = {"dtype": jnp.bfloat16, "compute": jnp.bfloat16}
FUSED = ("W3", "W6", "W8")  # also with the kernel of lowrank.fused
LARGEST = {"W6": 20, "W7": 10, "W8": 4}  # clients at once that surely fit
_compiling: list[float] = []


def start() -> dict:
    """The card and JAX's version; from here on seconds of compilation are kept."""
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: (
            _compiling.append(seconds) if "backend_compile" in event else None
        )
    )
    device = jax.devices()[0]
    return {"card": device.device_kind, "platform": device.platform, "jax": jax.__version__}


def compiling() -> float:
    """Seconds that XLA has compiled for since the start."""
    return sum(_compiling)


def memory() -> int | None:
    """The most bytes of the device that this process has held; None on a CPU."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def peaks(side: int, length: int) -> Iterator[tuple[dict, Callable]]:
    """Ten products of matrices [side, side] in each type, and ten passes over `length` floats."""
    for how, dtype, precision in (
        ("bfloat16", jnp.bfloat16, None),
        ("float32", jnp.float32, None),
        ("exact float32", jnp.float32, "highest"),
    ):

        def products(dtype=dtype, precision=precision) -> Callable[[], float]:
            y = jax.random.normal(jax.random.key(0), (side, side), dtype) / side**0.5
            product = jax.jit(partial(jnp.matmul, precision=precision))
            return lambda: _ten_times(lambda x: product(x, y), y)

        yield {"how": how, "work": 20 * side**3}, products

    def copies() -> Callable[[], float]:
        x = jnp.zeros(length, jnp.float32)
        added = jax.jit(lambda x: x + 1)
        return lambda: _ten_times(added, x)

    yield {"how": "copy", "work": 10 * 2 * 4 * length}, copies


def _ten_times(function: Callable, x: jax.Array) -> float:
    for _ in range(10):
        x = function(x)
    return float(x.ravel()[0])


def cases(
    name: str, clients: int, types: tuple[str, ...], *, scaling: bool
) -> Iterator[tuple[dict, Callable]]:
    """(a label, a function that makes a round, which returns the norm) for each way to run it.

    The most clients at once come last, so that the peak memory is each way's own, and after them
    the kernel for low-rank terms, with as many.
    """
    forms = [] if scaling else _forms(name)
    at_once = tuning.chunk_candidates(LARGEST.get(name, clients))
    sizes = 1 if scaling or name in LARGEST else 2
    at_once = [n for n in at_once[:sizes][::-1] if n > 1] or [clients]
    for kind in types:
        if kind == "bfloat16" and not workloads.WORKLOADS[name].vocabulary:
            continue  # only text models keep narrow weights
        options = NARROW if kind == "bfloat16" else {}
        if name in workloads.DECODERS:
            options = {**options, "remat": True}
        ways = [("jitted round", chunk, None) for chunk in at_once]
        ways += [(f"jitted round, {form}", at_once[-1], form) for form in forms]
        for how, chunk, form in ways:

            def make(chunk=chunk, form=form, options=options) -> Callable[[], float]:
                one_round = ours.make(name, clients=clients, chunk=chunk, low_rank=form, **options)
                return lambda: one_round()["norm"]

            yield {"how": how, "type": kind, "chunk": chunk}, make


def _forms(name: str) -> list[str]:
    """Other forms of low-rank terms. On a CPU the kernel is interpreted, in tiny workloads."""
    workload, _, tiny = name.partition(" ")
    here = jax.devices()[0].platform
    kernels = ["kernel"] if here == "gpu" else ["interpreted"] if tiny else []
    return kernels if workload in FUSED else []


def work(name: str) -> float:
    """FLOPs of one client's round."""
    machine, most = engine.machine(1), workloads.WORKLOADS[name].examples
    arrays = workloads.arrays(name, 1)
    fed = ours.algorithm(name, arrays)
    verb = engine.for_each_client(machine, uniform=True)
    server = jax.eval_shape(fed.init, jax.random.key(0))
    examples = jax.eval_shape(lambda x: x, ours.examples_of(arrays))
    rounds = engine.rounds(fed, verb, 0, most)
    states = ours.states(name, arrays)
    return flops.counted(rounds, server, states, examples, ours.plan(1, most)).flops
