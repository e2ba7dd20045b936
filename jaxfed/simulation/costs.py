"""What a prepared run costs: FLOPs and memory, without running it."""

import dataclasses

import numpy as np

from jaxfed import trees
from jaxfed.simulation import compilation, engine, flops, ledger, tuning
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
    return flops.Round(
        *(part._replace(flops=float(np.average(part.flops, weights=share))) for part in found)
    )


def mean_wire(p: Prepared) -> ledger.Wire:
    """Bytes that a client receives and sends, in the mean over the first round's clients."""
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


def memory(p: Prepared, chunk: int) -> int:
    """Bytes that a device needs for one round beside its arguments, as compiled."""
    first = p.supply.block(range(1))
    machine = dataclasses.replace(p.machine, chunk=chunk)
    step = compilation.jitted_rounds(p.algorithm, p.experiment, machine)
    program = step.lower(p.state.server, first.states, first.examples, first.plan).compile()
    return tuning.temporary_bytes(program)
