"""Rounds compiled for devices that are not here."""

import jax
import numpy as np
import ours
import workloads

from jaxfed.simulation import engine, hlo


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def text(where, fed, examples, clients, most):
    """The compiled program of a round in which all clients have `most` examples, all at once."""
    machine = engine.Machine(where.devices)
    verb = engine.for_each_client(machine, uniform=True)
    step = engine.compiled(engine.rounds(fed, verb, 0, most), machine, donate=(0, 1))
    server = jax.eval_shape(fed.init, jax.random.key(0))
    arguments = (server, (), examples, ours.plan(clients, most))
    lowered = step.trace(*engine.placed_shapes(arguments, machine)).lower(
        lowering_platforms=(where.platform,)
    )
    return lowered.compile(where.options or None).as_text()


def workload(where, name, clients):
    """The program of one of the workloads, of so many clients."""
    arrays = workloads.arrays(name, clients)
    examples, most = shapes(arrays.examples), workloads.WORKLOADS[name].examples
    return text(where, ours.algorithm(name, arrays), examples, clients, most)


def collectives(text):
    return {kind: (n, size) for kind, n, size in hlo.work(hlo.parsed(text)).collectives}


def images(rows, side):
    return {
        "image": np.zeros((rows, side, side, 3), np.float32),
        "label": np.arange(rows, dtype=np.int32) % 10,
    }
