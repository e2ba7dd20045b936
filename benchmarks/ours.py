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

from jaxfed import local, lowrank, models, tasks
from jaxfed.algorithm import Algorithm
from jaxfed.algorithms import fedavg
from jaxfed.data.federated import taken
from jaxfed.simulation import engine, tuning

MODELS = {
    "W1": lambda: models.MLP((200, 200), 10),
    "W2": lambda: models.FemnistCNN(62),
    "W3": lambda: models.MLP((1024, 1024), 10),
    "W4": lambda: models.Encoder(
        workloads.VOCABULARY,
        256,
        4,
        4,
        1024,
        64,
        2,
        types=0,
        pad=None,
        head="linear",
        epsilon=1e-5,
    ),
    "W5": lambda: models.resnet10(10),
}


def algorithm(name: str, arrays: workloads.Arrays, **options) -> Algorithm:
    """FedAvg over the workload's trained weights, begun at its arrays.

    `options` are of the model, which may keep its frozen weights in another type.
    """
    workload, model = workloads.WORKLOADS[name], MODELS[name]().clone(**options)
    trained = arrays.factors or arrays.params
    factors = {p: lowrank.Factors(a, b, workload.scale) for p, (a, b) in arrays.factors.items()}
    full = {p: w for p, w in arrays.params.items() if p in (workload.full if factors else trained)}
    inputs = tuple(n for n in arrays.examples if n != "label")
    drawn = jax.eval_shape(model.init, jax.random.key(0), *(arrays.examples[n] for n in inputs))
    kept = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(drawn["params"])
    }
    base = {p: w.astype(kept[p]) for p, w in arrays.params.items() if p not in full}
    begun = jax.tree.map(jnp.asarray, (base, lowrank.Theta(full, factors)))
    classifier = tasks.classification(model, arrays.examples, inputs=inputs)
    work = local.Work(workload.batch, epochs=1, shuffle=False)
    return fedavg(
        classifier._replace(init=lambda key: begun),
        work,
        client_optimizer=optimizer(workload.optimizer),
    )


def optimizer(of: workloads.Sgd | workloads.AdamW) -> optax.GradientTransformation:
    if isinstance(of, workloads.Sgd):
        return optax.sgd(of.rate)
    return optax.adamw(of.rate, weight_decay=of.decay)


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
    **options,
) -> Callable[[], dict]:
    """A function that runs one round from where the last one ended; {"loss", "norm", "chunk"}.

    `options` are of the model, such as dtype=jnp.bfloat16 of W4's.
    """
    workload = workloads.WORKLOADS[name]
    clients = clients or workload.clients
    arrays = workloads.arrays(name, clients)
    machine = engine.machine(devices, None if chunk == "auto" else chunk)
    fed = algorithm(name, arrays, **options)

    def compiled(machine: engine.Machine) -> Callable:
        verb = engine.for_each_client(machine, uniform=True)
        rounds = engine.rounds(fed, verb, 0, workload.examples)
        return engine.compiled(rounds, machine, donate=(0, 1))

    server = engine.place(jax.jit(fed.init)(jax.random.key(0)), machine)
    order = np.arange(clients * workload.examples)
    # As a federated data set holds them, so that the CPU's devices need no copies of their own.
    held = {name: taken(x, order) for name, x in arrays.examples.items()}
    examples = engine.place(held, machine)
    del arrays, held
    now = plan(clients, workload.examples)
    if chunk == "auto":
        here = clients // len(machine.devices)
        best, _ = tuning.measured_chunk(
            compiled, machine, (server, (), examples, now), tuning.chunk_candidates(here), 10**6
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
