"""What a prepared run costs: FLOPs and memory, without running it."""

import dataclasses
from collections.abc import Sequence
from functools import partial

import numpy as np

from jaxfed import trees
from jaxfed.simulation import compilation, engine, flops, ledger, targets, tuning
from jaxfed.simulation.prepare import Prepared


def compute(p: Prepared) -> flops.Round:
    """FLOPs of a client and of the server in a round, means over all clients and rounds."""
    e = p.experiment
    counts, clients = np.unique(e.data.train.count, return_counts=True)
    pairs = np.meshgrid(counts, np.arange(e.rounds))  # [rounds, counts] each
    found = flops.counted_round(
        p.algorithm,
        trees.shapes(p.state.server),
        p.supply.cohort(),
        pairs[0].ravel(),
        pairs[1].ravel(),
    )
    share = np.tile(clients, e.rounds)

    def mean(of_each: np.ndarray | float) -> float:
        return float(np.average(np.broadcast_to(of_each, share.shape), weights=share))

    return flops.Round(*(p._replace(flops=mean(p.flops), turns=mean(p.turns)) for p in found))


def mean_wire(p: Prepared) -> ledger.Wire:
    """Bytes that a client receives and sends, in the mean over the first round's clients.

    If they depend on values (`wire_is_exact` is False), the run must have drawn its arrays.
    """
    if p.wire_is_exact:
        return p.wire
    one, e, first = engine.machine(1, chunk=1), p.experiment, p.supply.block(range(1))
    verb = engine.for_each_client(one, uniform=e.data.train.uniform)
    rounds = engine.rounds(p.algorithm, verb, e.seed, e.data.train.most)
    return ledger.mean(rounds, p.state.server, first.states, first.examples, first.plan)


def merges(p: Prepared) -> int:
    """Bytes of merges that absent clients receive in all rounds; see ledger.eager."""
    e, server = p.experiment, trees.shapes(p.state.server)
    each = sum(p.algorithm.broadcast(server, t) for t in range(e.rounds))
    return each * (e.data.clients - e.cohort)


def memory(p: Prepared, chunk: int, low_rank: str) -> int:
    """Bytes that a device needs for one round beside its arguments, as compiled."""
    first = p.supply.block(range(1))
    machine = dataclasses.replace(p.machine, chunk=chunk)
    step = compilation.jitted_rounds(
        p.algorithm,
        p.experiment,
        machine,
        convolutions=p.form.convolutions,
        low_rank=low_rank,
    )
    program = step.lower(p.state.server, first.states, first.examples, first.plan).compile()
    return tuning.temporary_bytes(program)


def elsewhere(
    p: Prepared, where: targets.Target, chunks: Sequence[int], turns: float, low_rank: str
) -> list[targets.Compiled]:
    """A round compiled for devices that are not here; see targets.compiled."""
    first = p.supply.block(range(1))
    arguments = (p.state.server, first.states, first.examples, first.plan)
    make = partial(
        compilation.jitted_rounds,
        p.algorithm,
        p.experiment,
        convolutions=p.form.convolutions,
        low_rank=low_rank,
    )
    return targets.compiled(where, make, arguments, chunks, turns)
