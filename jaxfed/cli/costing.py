"""`jaxfed describe`: what a config would cost, without training."""

import dataclasses
import logging
from functools import partial

from jaxfed import trees
from jaxfed.cli import calling, describe, options
from jaxfed.cli.watching import Watch
from jaxfed.simulation import costs, targets, tuning
from jaxfed.simulation.prepare import prepare

log = logging.getLogger(__name__)


def command(arguments: list[str], watch: Watch) -> None:
    """Carries out `jaxfed describe CONFIG`."""
    name, arguments = options.taken("for", arguments)
    where = None if name is None else targets.target(name)
    _, experiment, _, launch = calling.read(arguments, "describe", watch)
    if where is not None and launch.host.devices is not None:
        raise ValueError(f"--for {name} says how many devices there are; leave --devices out")
    devices = launch.host.devices if where is None else 1
    low_rank = launch.host.low_rank
    host = dataclasses.replace(
        launch.host, devices=devices, chunk=1, fuse=1, low_rank="products"
    )  # which every device has; what is compiled for the target has the form asked for
    ready = partial(prepare, experiment, host, compiling=False)
    prepared = ready(drawing=False)  # a model may be larger than this computer's memory
    server = prepared.state.server
    wire = costs.mean_wire(prepared if prepared.wire_is_exact else ready())
    most = -(-experiment.cohort // len((where or prepared.machine).devices))
    asked = launch.host.chunk
    cost = costs.compute(prepared)
    parts = {
        "the server": trees.nbytes(server),
        "what clients keep": prepared.population.held,
        "training examples": trees.nbytes(experiment.data.train.examples),
    }
    theta = describe.whole(server.theta, experiment.task.init)
    lines = [
        describe.weights(server.base, theta),
        "",
        describe.parameters(server.base, theta, wire, trees.size(server.theta)),
        describe.traffic(wire, experiment.rounds, experiment.cohort, costs.merges(prepared)),
        describe.compute(cost, experiment.rounds, experiment.cohort),
        describe.population(experiment.data.train, experiment.cohort),
        describe.held(parts),
    ]
    if where is None:
        chunks = sorted({1, most}) if asked == "auto" else [asked]
        lines.append(describe.working({n: costs.memory(prepared, n, low_rank) for n in chunks}))
    else:
        log.info("compiling a round for %s", name)
        chunks = tuning.chunk_candidates(most) if asked == "auto" else [asked]
        tried = costs.elsewhere(prepared, where, chunks, cost.client.turns, low_rank)
        lines.append(describe.elsewhere(where, tried))
    watch.clear()
    print("\n".join(lines))
