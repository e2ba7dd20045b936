"""What a run's losses, gradients and updates say of rank, measured on its folder.

    from jaxfed.analysis import probe, tables

    found = probe.of_run(experiment, "runs/mine")  # the experiment that the run was begun with
    print(tables.tables(found))
    tables.draw(found, "runs/mine/plots")

Nothing that a run needs is changed, and it may still be going on.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax

from jaxfed.algorithm import Algorithm, Cohort, PyTree, overheard
from jaxfed.analysis import gradients, history, operators, spectrum, updates
from jaxfed.analysis.tables import Analysis
from jaxfed.combine import measure
from jaxfed.lowrank.factors import Theta
from jaxfed.simulation import engine, run_folder
from jaxfed.simulation.experiment import Experiment, check_same

PARTS: dict[str, Callable] = {
    "weights": operators.whole,
    "trained": lambda base, theta: (base, theta),
    "factors": operators.factors,
}
ROOM = 2**30  # bytes for the Krylov spaces of the clients that are measured at once


@dataclasses.dataclass(frozen=True)
class Probe:
    """What is measured, and how closely.

    Args:
        round: after which round; by default that of the newest checkpoint. 0 is before the first.
        clients: whose losses and updates; by default as many as take part in a round, evenly over
            all.
        part: which parameters Hessians are over: all weights with factors folded in, what is
            trained, or the factors alone.
        paths: a regular expression; only the weights in whose path it is found.
        depth: steps of Lanczos' method; each costs a product with the Hessian.
        probes: random vectors for the Frobenius norm; each costs a product too.
        top: eigenvectors whose share in the update is told.
        ranks: of the approximations of gradients and updates that are compared.
        batch: examples in a batch.
    """

    round: int | None = None
    clients: tuple[int, ...] = ()
    part: Literal["weights", "trained", "factors"] = "weights"
    paths: str = ""
    depth: int = 20
    probes: int = 20
    top: int = 5
    ranks: tuple[int, ...] = (1, 4, 16)
    batch: int = 250

    def chosen(self, path: str) -> bool:
        return re.search(self.paths, path) is not None


def _check(probe: Probe) -> None:
    """Raises ValueError if a probe cannot be made."""
    for name, low in {"depth": 1, "probes": 2, "top": 1, "batch": 1}.items():
        if getattr(probe, name) < low:
            raise ValueError(f"{name}={getattr(probe, name)}; use at least {low}")
    if probe.top > probe.depth:
        raise ValueError(f"top={probe.top} eigenvectors of depth={probe.depth}; use at most that")
    if not probe.ranks or min(probe.ranks) < 1:
        raise ValueError(f"ranks={probe.ranks}; give some, of at least 1")
    if probe.part not in PARTS:
        raise ValueError(f"part={probe.part!r}; use one of {', '.join(PARTS)}")
    try:
        re.compile(probe.paths)
    except re.error as error:
        raise ValueError(f"paths={probe.paths!r} is no regular expression: {error}") from None


def of_run(
    experiment: Experiment, directory: str | os.PathLike, probe: Probe | None = None
) -> Analysis:
    """What the probe finds in the run that was begun with this experiment in this directory.

    Hessians and gradients are those of the server's model, on each client's training examples and
    on all of them together. Updates are what these clients would send in the next round. Raises
    ValueError if there is no such checkpoint or client, or the experiment is not the run's.
    """
    probe, directory, e = probe or Probe(), Path(directory), experiment
    _check(probe)
    if why := run_folder.why_not_begun(directory):
        raise FileNotFoundError(why)
    check_same(e, run_folder.read_settings(directory))
    machine, ids = engine.machine(), history.ids_of(probe.clients, e.data.clients, e.cohort)
    model = history.restored(e, directory, probe.round, machine)
    before, after = (
        history.deployed(e.algorithm, server) for server in (model.first, model.server)
    )
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
    found = Analysis(
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
    return jax.device_get(found)


# ---------------------------------------------------------------------- what is measured


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
    """Cosines between the clients' gradients of all chosen weights, and their approximations."""
    part = operators.only(*operators.whole(*model), probe.chosen)
    inputs = {p: f.a.ndim - 1 for p, f in model[1].factors.items()}

    def one(base, theta, k):
        found = operators.gradient(partial(e.task.loss, base), theta, k, probe.batch)
        return found.full, gradients.low_rank(found.full, max(probe.ranks), inputs)

    def compared(found):
        whole, low = found
        return {"whole": gradients.cosines(gradients.inner(whole)), **_of_ranks(low, probe.ranks)}

    return _each(one, machine, part, clients, count, compared)


def _each(
    measure: Callable,
    machine: engine.Machine,
    part: tuple,
    clients: Cohort,
    count: int,
    then: Callable = lambda found: found,
) -> Any:
    """then(what `measure(base, theta, k)` says of the first `count` clients [count, ...])."""
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
    """(cosines, discrepancy) of what these clients would send in their next round.

    Of a round with several exchanges, the last counts. What are no changes of theta are compared
    as they were sent.
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
    """Cosines between updates, as changes of weights and as they were sent; the discrepancy."""
    before, change = (getattr(tree, "theta", tree) for tree in (message, upload))
    if not isinstance(before, Theta) or not isinstance(change, Theta):
        return {"as sent": gradients.cosines(gradients.inner(upload))}, None
    whole = gradients.inner_of_products(gradients.moved(before, change))
    found = {"whole": gradients.cosines(whole)}
    if not change.factors:
        low = jax.vmap(partial(gradients.low_rank, rank=max(ranks)))(change.full)
        return {**found, **_of_ranks(low, ranks)}, None
    gap = measure.discrepancy(measure.after_training(message, upload), weight)
    return {**found, "as sent": gradients.cosines(gradients.inner(change))}, gap


def _share(
    theta: Theta, moved: Mapping[str, jax.Array], krylov: spectrum.Krylov, probe: Probe
) -> jax.Array:
    """How much of W_t - W_0 lies in the Hessian's top eigenvectors."""
    _, unravel = jax.flatten_util.ravel_pytree(theta)
    vectors = jax.vmap(unravel)(krylov.vectors[: probe.top])
    return updates.share(vectors, theta._replace(full={p: moved[p] for p in theta.full}))
