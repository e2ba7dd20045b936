"""The workloads in jaxfed: the same arrays, the same order, the same result.

round = ours.make("W3")
first = round()  # {"loss": ..., "norm": ...}
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workloads

from jaxfed import local, lowrank, models, tasks, trees
from jaxfed.algorithm import Algorithm
from jaxfed.algorithms import fedavg, pf2lora
from jaxfed.algorithms.personal.pf2lora import State
from jaxfed.data.federated import taken
from jaxfed.lowrank import fused
from jaxfed.pretrained import layouts
from jaxfed.simulation import engine, tuning

CPU_DEVICES = 2  # into which scripts split the CPU, before JAX starts


def encoder(name: str, width: int, feedforward: int, depth: int, heads: int) -> models.Encoder:
    workload = workloads.WORKLOADS[name]
    return models.Encoder(
        workload.vocabulary,
        width,
        depth,
        heads,
        feedforward,
        *workload.shape,
        workload.classes,
        types=0,
        pad=None,
        head="linear",
        epsilon=1e-5,
        scanned=name.startswith(("W6", "W7")),
    )


def decoder(name: str) -> models.Decoder:
    workload = workloads.WORKLOADS[name]
    width, feedforward, depth, heads, groups = workloads.DECODERS[name]
    sizes = workload.vocabulary, width, depth, heads, feedforward, *workload.shape
    return models.Decoder(*sizes, kind="llama", groups=groups, tied=False)


MODELS = {
    "W1": lambda: models.MLP((200, 200), 10),
    "W2": lambda: models.FemnistCNN(62),
    "W3": lambda: models.MLP((1024, 1024), 10),
    "W4": lambda: encoder("W4", 256, 1024, 4, 4),
    "W5": lambda: models.resnet10(10),
    "W6": lambda: encoder("W6", 768, 3072, 12, 12),
    "W7": lambda: encoder("W7", 768, 3072, 12, 12),
    **{f"{w} tiny": partial(encoder, f"{w} tiny", 16, 32, 2, 2) for w in ("W6", "W7")},
    "W7 small": lambda: encoder("W7 small", 256, 1024, 4, 4),
    **{name: partial(decoder, name) for name in workloads.DECODERS},
}


def algorithm(
    name: str, arrays: workloads.Arrays, base: Literal["int8", "int4"] | None = None, **options
) -> Algorithm:
    """FedAvg, or PF2LoRA, over the workload's trained weights, starting from its arrays.

    `base` stores the frozen kernels of layers in few bits. `options` go to the model, which may
    keep its frozen weights in another type.
    """
    workload, model = workloads.WORKLOADS[name], MODELS[name]().clone(**options)
    params, a, b = arrays.params, *({p: f[i] for p, f in arrays.factors.items()} for i in (0, 1))
    if getattr(model, "scanned", False):
        params, a, b = layouts.scanned(params), layouts.scanned(a), layouts.scanned(b)
    scale = workload.scale
    factors = {p: lowrank.Factors(a[p], b[p], scale, workloads.stack(p)) for p in a}
    full = {p: w for p, w in params.items() if p in (workload.full if factors else params)}
    inputs = tuple(n for n in arrays.examples if n != "label")
    drawn = jax.eval_shape(model.init, jax.random.key(0), *(arrays.examples[n] for n in inputs))
    kept = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.dtype
        for path, leaf in jax.tree_util.tree_leaves_with_path(drawn["params"])
    }
    frozen = {p: w.astype(kept[p]) for p, w in params.items() if p not in full}
    if base:
        inside = {p for p in frozen if p.startswith("layer") and p.endswith("kernel")}
        frozen |= {p: lowrank.quantised.quantise(frozen[p], base) for p in inside}
    first = jax.tree.map(jnp.asarray, (frozen, lowrank.Theta(full, factors)))
    make = tasks.classification if workload.classes else tasks.next_token
    task = make(model, examples_of(arrays), inputs=inputs)
    work = local.Work(workload.batch, epochs=1, shuffle=False)
    task, steps = task._replace(init=lambda key: first), optimizer(workload.optimizer)
    if not workload.own_rank:
        return fedavg(task, work, client_optimizer=steps)
    return pf2lora(
        task,
        work,
        rank=workload.own_rank,
        inner_rate=workload.own_rate,
        upper_optimizer=steps,
        keep_moments=False,
        personal_head=False,
        scale=scale,
    )


def planned(name: str, **options) -> tuple[Algorithm, dict[str, np.ndarray]]:
    """(FedLoRA on a decoder, one client's examples) to compile only: its weights are all zero.

    Nothing is allocated where `init` is only traced.
    """
    workload, shapes = workloads.WORKLOADS[name], workloads.SHAPES[name]
    model = MODELS[name]().clone(**options)
    examples = examples_of(workloads.Arrays(workloads.examples(name, 1), {}, {}, {}))
    kept = jax.eval_shape(model.init, jax.random.key(0), examples["tokens"])["params"]
    types = {p: w.dtype for p, w in trees.by_path(kept).items()}

    def init(key):
        factors = {}
        for p in workloads.adapted(name, shapes):
            layers, rows, columns = shapes[p]
            a, b = (
                jnp.zeros((layers, rows, workload.rank)),
                jnp.zeros((layers, workload.rank, columns)),
            )
            factors[p] = lowrank.Factors(a, b, workload.scale, workloads.stack(p))
        base = {p: jnp.zeros(shape, types[p]) for p, shape in shapes.items()}
        return base, lowrank.Theta({}, factors)

    task = tasks.next_token(model, examples, inputs=("tokens",))
    work, steps = local.Work(workload.batch, epochs=1, shuffle=False), optimizer(workload.optimizer)
    return fedavg(task._replace(init=init), work, client_optimizer=steps), examples


def states(name: str, arrays: workloads.Arrays) -> Any:
    """What clients keep at first, [K, ...]: factors of their own in W7, else nothing."""
    if not arrays.own:
        return ()
    sides = ({p: f[i] for p, f in arrays.own.items()} for i in (0, 1))
    if MODELS[name]().scanned:
        sides = map(layouts.scanned, sides)
    a, b = (
        {p: np.moveaxis(x, workloads.stack(p), 0) for p, x in side.items()} for side in sides
    )  # the axis of clients before that of layers
    scale = workloads.WORKLOADS[name].scale
    y = {p: lowrank.Factors(a[p], b[p], scale, workloads.stack(p)) for p in a}
    return State(jax.tree.map(jnp.asarray, y), {}, ())


def examples_of(arrays: workloads.Arrays) -> dict[str, np.ndarray]:
    """As a task has them: of texts, all tokens but the first are scored."""
    tokens = arrays.examples.get("tokens")
    if tokens is None or arrays.examples["label"].ndim == 1:
        return arrays.examples
    scored = np.ones(tokens.shape, np.int8)
    scored[:, 0] = 0
    return {"tokens": tokens, "scored": scored}


def optimizer(chosen: workloads.Sgd | workloads.AdamW) -> optax.GradientTransformation:
    if isinstance(chosen, workloads.Sgd):
        return optax.sgd(chosen.rate)
    return optax.adamw(chosen.rate, weight_decay=chosen.decay)


def hardware() -> str:
    """The number and kind of JAX's devices."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"


def plan(clients: int, examples: int) -> engine.Plan:
    """One round of all clients, in order."""
    ids = np.arange(clients, dtype=np.int32)[None]
    count = np.full_like(ids, examples)
    return engine.Plan(
        np.zeros(1, np.int32), ids, ids, ids * examples, count, np.full(ids.shape, 1 / clients)
    )


def running(
    fed: Algorithm,
    examples: dict,
    now: engine.Plan,
    *,
    most: int,
    chunk: int | str | None = "auto",
    uniform: bool = True,
    states: Any = None,
) -> Callable[[], tuple[Any, dict, int | None]]:
    """A function that runs one round from where the last one ended: (server, metrics, chunk).

    `most` is the largest client's number of examples, and `uniform` promises that all have as many.
    The chunk that is "auto" is measured first; None takes all clients at once. `states` are what
    clients keep; by default as the algorithm has it.
    """
    machine = engine.machine(chunk=None if chunk == "auto" else chunk)
    clients = now.id.shape[1]

    def compiled(machine: engine.Machine) -> Callable:
        verb = engine.for_each_client(machine, uniform=uniform)
        return engine.compiled(engine.rounds(fed, verb, 0, most), machine, donate=(0, 1))

    server = jax.jit(fed.init)(jax.random.key(0))
    if states is None:
        keys = jax.random.split(jax.random.key(1), clients)
        states = jax.vmap(fed.init_client, in_axes=(None, 0))(server, keys)
    # As a federated data set holds them, so that the CPU's devices need no copies of their own.
    examples = {name: taken(x, np.arange(len(x))) for name, x in examples.items()}
    kept = list(engine.place((server, states), machine))
    examples = engine.place(examples, machine)
    if chunk == "auto":
        candidates = tuning.chunk_candidates(clients // len(machine.devices))
        best = tuning.measured_chunk(compiled, machine, (*kept, examples, now), candidates, 10**6)
        machine = dataclasses.replace(machine, chunk=best.chunk)
    step = compiled(machine)

    def one_round() -> tuple[Any, dict, int | None]:
        *kept[:], metrics = jax.block_until_ready(step(*kept, examples, now))
        return kept[0], metrics, machine.chunk

    return one_round


def make(
    name: str,
    *,
    clients: int | None = None,
    chunk: int | str | None = "auto",
    low_rank: str | None = None,
    **options,
) -> Callable[[], dict]:
    """A function that runs one round from where the last one ended: {"loss", "norm", "chunk"}.

    `low_rank` is a form of lowrank.fused. `options` go to `algorithm`, such as W4's
    dtype=jnp.bfloat16.
    """
    workload = workloads.WORKLOADS[name]
    clients = workload.clients if clients is None else clients
    arrays = workloads.arrays(name, clients)
    fed, now = algorithm(name, arrays, **options), plan(clients, workload.examples)
    begun = {"states": states(name, arrays), "most": workload.examples}
    with fused.form(low_rank):
        run = running(fed, examples_of(arrays), now, chunk=chunk, **begun)

    def one_round() -> dict:
        with fused.form(low_rank):
            server, metrics, chunk = run()
        norm = optax.tree.norm(server.theta)
        return {"loss": float(metrics["loss"].mean()), "norm": float(norm), "chunk": chunk}

    return one_round
