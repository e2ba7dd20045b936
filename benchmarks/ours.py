"""The five workloads in jaxfed: the same arrays, the same order, the same result.

round = ours.make("W3")
first = round()  # {"loss": ..., "norm": ...}
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workloads

from jaxfed import engine, fedavg, local, lowrank, models, task
from jaxfed.algorithm import Algorithm

MODELS = {
    "W1": lambda: models.MLP((200, 200), 10),
    "W2": lambda: models.FemnistCNN(62),
    "W3": lambda: models.MLP((1024, 1024), 10),
    "W5": lambda: models.resnet10(10),
}


def algorithm(name: str, arrays: workloads.Arrays) -> Algorithm:
    """FedAvg over the workload's trained weights, begun at its arrays."""
    workload = workloads.WORKLOADS[name]
    trained = arrays.factors or arrays.params
    factors = {p: lowrank.Factors(a, b, workload.scale) for p, (a, b) in arrays.factors.items()}
    full = {p: w for p, w in arrays.params.items() if p in (workload.full if factors else trained)}
    base = {p: w for p, w in arrays.params.items() if p not in full}
    begun = jax.tree.map(jnp.asarray, (base, lowrank.Theta(full, factors)))
    classifier = task.classification(MODELS[name](), arrays.examples)
    work = local.Work(workload.batch, epochs=1, shuffle=False)
    return fedavg(
        classifier._replace(init=lambda key: begun),
        work,
        client_optimizer=optax.sgd(workload.optimizer.rate),
    )


def plan(clients: int, examples: int) -> engine.Plan:
    """One round of all clients, in order."""
    ids = np.arange(clients, dtype=np.int32)[None]
    count = np.full_like(ids, examples)
    return engine.Plan(
        np.zeros(1, np.int32), ids, ids, ids * examples, count, np.full(ids.shape, 1 / clients)
    )


def make(
    name: str,
    *,
    clients: int | None = None,
    devices: int | None = None,
    chunk: int | str | None = "auto",
) -> Callable[[], dict]:
    """A function that runs one round from where the last one ended; {"loss", "norm", "chunk"}."""
    workload = workloads.WORKLOADS[name]
    clients = clients or workload.clients
    arrays = workloads.arrays(name, clients)
    machine = engine.machine(devices, None if chunk == "auto" else chunk)
    fed = algorithm(name, arrays)

    def compiled(machine: engine.Machine) -> Callable:
        verb = engine.for_each_client(machine, uniform=True)
        rounds = engine.rounds(fed, verb, 0, workload.examples)
        return engine.compiled(rounds, machine, donate=(0, 1))

    server = engine.place(jax.jit(fed.init)(jax.random.key(0)), machine)
    examples = engine.place(arrays.examples, machine)
    now = plan(clients, workload.examples)
    if chunk == "auto":
        here = clients // len(machine.devices)
        best, _ = engine.measured_chunk(
            compiled, machine, (server, (), examples, now), engine.chunk_candidates(here), 10**6
        )
        machine = engine.Machine(machine.devices, best)
    step, state = compiled(machine), {"server": server}

    def one_round() -> dict:
        server, _, metrics = step(state["server"], (), examples, now)
        state["server"] = jax.block_until_ready(server)
        norm = optax.tree.norm(server.theta)
        return {
            "loss": float(metrics["loss"].mean()),
            "norm": float(norm),
            "chunk": machine.chunk,
        }

    return one_round
