"""The analysis of a run's losses, gradients and updates, measured on its folder.

    from jaxfed.analysis import probe, tables

    analysis = probe.of_run(experiment, "runs/mine")  # the experiment of that run
    print(tables.tables(analysis))
    tables.draw(analysis, "runs/mine/plots")

The run's own files do not change, and the run may still be in progress.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxfed import trees, values
from jaxfed.algorithm import Algorithm, Cohort, PyTree, overheard
from jaxfed.analysis import gradients, history, operators, spectrum, updates
from jaxfed.analysis.settings import Probe
from jaxfed.analysis.tables import Analysis
from jaxfed.combine import measure
from jaxfed.lowrank.factors import Theta
from jaxfed.simulation import engine, identity, keys, loaded, run_folder
from jaxfed.simulation.experiment import Experiment

PARTS: dict[str, Callable] = {
    "weights": operators.whole,
    "trained": lambda base, theta: (base, theta),
    "factors": operators.factors,
}
ROOM = 2**30  # bytes of the Krylov spaces of clients that are measured together


def _check(probe: Probe) -> None:
    """Raises ValueError if the probe's fields are invalid."""
    for name, low in {"depth": 1, "probes": 2, "top": 1, "batch": 1}.items():
        values.whole(name, getattr(probe, name), low)
    if probe.top > probe.depth:
        raise ValueError(f"top={probe.top} is above depth={probe.depth}; use at most that")
    for name, least in {"ranks": 1, "clients": 0}.items():
        values.wholes(name, getattr(probe, name), least)
    if not probe.ranks:
        raise ValueError(f"ranks={probe.ranks}; give one or more, each at least 1")
    if probe.round is not None:
        values.whole("round", probe.round, 0)
    values.choice("part", probe.part, PARTS)
    values.pattern("paths", probe.paths)


def of_run(
    experiment: Experiment, directory: str | os.PathLike, probe: Probe | None = None
) -> Analysis:
    """The analysis of the run of this experiment in this directory, as the probe defines it.

    Hessians and gradients are those of the server's model, on each client's training examples and
    on all clients' together. Updates are the uploads of these clients in the next round. Raises
    FileNotFoundError if there is no run, and ValueError if the checkpoint or a client does not
    exist or the experiment is not the run's.
    """
    probe, directory, e = probe or Probe(), Path(directory), experiment
    values.kind("experiment", experiment, Experiment, "the Experiment of the run")
    values.kind("probe", probe, Probe, "a Probe, such as probe.Probe(depth=10)")
    _check(probe)
    spectrum.matfree("decomp")
    if why := run_folder.why_not_begun(directory):
        raise FileNotFoundError(why)
    identity.check_same(e, run_folder.read_settings(directory))
    e = dataclasses.replace(e, algorithm=keys.as_numbers(e.algorithm))
    machine, ids = engine.machine(), history.ids_of(probe.clients, e.data.clients, e.cohort)
    model = loaded.restored(e, directory, probe.round, machine)
    before, after = (
        history.deployed(e.algorithm, server) for server in (model.first, model.server)
    )
    trees.refuse_running(after, "a Hessian is that of weights, which statistics are not")
    base, theta = PARTS[probe.part](*after)
    part = operators.only(base, theta, probe.chosen)
    parameters = sum(x.size for x in jax.tree.leaves(part[1]))
    held = max(1, ROOM // (4 * parameters * probe.depth))
    machine = dataclasses.replace(machine, chunk=held)
    clients = history.cohort_of(e, model, ids, machine)
    model.people.close()

    server, krylov = _of_server(e, part, probe)
    change = jax.jit(updates.change)(before, after)
    moved = {p: w for p, w in change.items() if probe.chosen(p)}
    alike, gap = _updates(e.algorithm, machine, model.server, clients, probe, len(ids))
    analysis = Analysis(
        name=directory.resolve().name,
        round=model.round,
        part=probe.part,
        parameters=parameters,
        ids=ids,
        sizes=e.data.train.count[ids],
        server=server,
        nodes=spectrum.Nodes(krylov.values[None], krylov.weights[None]),
        clients=_of_clients(e, part, machine, clients, probe, len(ids)),
        gradients=_gradients(e, after, machine, clients, probe, len(ids)),
        updates=alike,
        discrepancy=gap,
        layers={p: x for p, x in updates.shown(moved).items() if x[0] > 0},
        share=_share(part[1], moved, krylov, probe) if probe.part == "weights" else None,
        top=probe.top,
    )
    return jax.device_get(analysis)


# ---------------------------------------------------------------------- measurements


def _of_server(
    e: Experiment, part: tuple[dict, Theta], probe: Probe
) -> tuple[spectrum.Spectrum, spectrum.Krylov]:
    """The spectrum of the mean loss over all clients' examples, batch after batch."""

    def measured(base, theta, examples, key):
        return _measured(e, base, theta, operators.union(examples, key), key, probe)

    alone = engine.machine(1)
    arguments = engine.place((*part, e.data.train.examples, jax.random.key(e.seed)), alone)
    return engine.compiled(measured, alone)(*arguments)


def _of_clients(
    e: Experiment,
    part: tuple[dict, Theta],
    machine: engine.Machine,
    clients: Cohort,
    probe: Probe,
    count: int,
) -> spectrum.Spectrum:
    """The spectra of the clients' losses [count, ...], all with the same random vectors."""

    def one(base, theta, k):
        return _measured(e, base, theta, k, jax.random.key(e.seed), probe)[0]

    return _each(one, machine, part, clients, count)


def _measured(
    e: Experiment, base: dict, theta: Theta, k: Any, key: jax.Array, probe: Probe
) -> tuple[spectrum.Spectrum, spectrum.Krylov]:
    apply = operators.hessian(partial(e.task.loss, base), theta, k, probe.batch)
    return spectrum.measure(apply, theta, key, depth=probe.depth, probes=probe.probes)


def _gradients(
    e: Experiment,
    model: tuple[PyTree, Theta],
    machine: engine.Machine,
    clients: Cohort,
    probe: Probe,
    count: int,
) -> dict[str, jax.Array]:
    """Cosines between the clients' gradients of all chosen weights, whole and of lower ranks."""
    part = operators.only(*operators.whole(*model), probe.chosen)
    inputs = {p: f.a.ndim - 1 for p, f in model[1].factors.items()}

    def one(base, theta, k):
        gradient = operators.gradient(partial(e.task.loss, base), theta, k, probe.batch)
        return gradient.full, gradients.low_rank(gradient.full, max(probe.ranks), inputs)

    def compared(measured):
        whole, low = measured
        return {"whole": gradients.cosines(gradients.inner(whole)), **_of_ranks(low, probe.ranks)}

    return _each(one, machine, part, clients, count, compared)


def _each(
    measure: Callable,
    machine: engine.Machine,
    part: tuple,
    clients: Cohort,
    count: int,
    then: Callable = lambda measured: measured,
) -> Any:
    """then(measured), with measure(base, theta, k) of the first `count` clients [count, ...]."""
    run = operators.of_clients(measure, engine.for_each_client(machine))

    def first(base, theta, clients):
        return then(jax.tree.map(lambda x: x[:count], run(base, theta, clients)))

    return engine.compiled(first, machine)(*engine.place(part, machine), clients)


def _of_ranks(low: Theta, ranks: Sequence[int]) -> dict[str, jax.Array]:
    return {
        f"rank {r}": gradients.cosines(gradients.inner_of_products(gradients.leading(low, r)))
        for r in sorted(ranks)
    }


def _updates(
    algorithm: Algorithm,
    machine: engine.Machine,
    server: Any,
    clients: Cohort,
    probe: Probe,
    count: int,
) -> tuple[dict[str, jax.Array], jax.Array | None]:
    """(cosines, discrepancy) of these clients' uploads in the next round.

    If the round has several exchanges, the last one counts. Uploads that are not a change of theta
    are compared as they were sent.
    """

    def run(server, clients):
        crossed = []

        def hear(reply, message, cohort):
            crossed.append((message, reply.upload))
            return reply

        algorithm.run_round(server, clients, overheard(engine.for_each_client(machine), hear))
        message, upload = crossed[-1]
        first = jax.tree.map(lambda x: x[:count], upload)
        if not algorithm.sends_change:
            return {"as sent": gradients.cosines(gradients.inner(first))}, None
        return _compared(message, first, clients.weight[:count], probe.ranks)

    return engine.compiled(run, machine)(engine.place(server, machine), clients)


def _compared(
    message: PyTree, upload: PyTree, weight: jax.Array, ranks: Sequence[int]
) -> tuple[dict[str, jax.Array], jax.Array | None]:
    """(cosines between updates, as changes of weights and as they were sent; the discrepancy)."""
    before, change = (getattr(tree, "theta", tree) for tree in (message, upload))
    if not isinstance(before, Theta) or not isinstance(change, Theta):
        return {"as sent": gradients.cosines(gradients.inner(upload))}, None
    whole = gradients.inner_of_products(gradients.moved(before, change))
    cosines = {"whole": gradients.cosines(whole)}
    if not change.factors:
        low = jax.vmap(partial(gradients.low_rank, rank=max(ranks)))(change.full)
        return {**cosines, **_of_ranks(low, ranks)}, None
    gap = measure.discrepancy(measure.after_training(message, upload), weight)
    return {**cosines, "as sent": gradients.cosines(gradients.inner(change))}, gap


def _share(
    theta: Theta, moved: Mapping[str, jax.Array], krylov: spectrum.Krylov, probe: Probe
) -> jax.Array:
    """The share of W_t - W_0 in the span of the Hessian's top eigenvectors."""
    _, unravel = jax.flatten_util.ravel_pytree(theta)
    vectors = jax.vmap(unravel)(krylov.vectors[: probe.top])
    return updates.share(vectors, theta._replace(full={p: moved[p] for p in theta.full}))
