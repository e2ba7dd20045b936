"""Evaluation: the global model on the test set, and each client's model on its own test examples.

The engine's verb runs both as client procedures, so they use every device. The test set is cut into
as many pieces as there are devices, and each piece acts as a client.
"""

import dataclasses
import warnings
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import local
from jaxfed.algorithm import (
    Algorithm,
    Cohort,
    Data,
    ForEachClient,
    PyTree,
    Reply,
)
from jaxfed.data.federated import Federated, Split, filled_up, length
from jaxfed.simulation import engine, measures
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.programs import Programs
from jaxfed.tasks.task import Task, check_sums

PERCENTILES = (10, 50, 90)


def sums(algorithm: Algorithm, task: Task, verb: ForEachClient, batch_size: int) -> Callable:
    """(server, states [K, ...], data, count [K]) -> {name: sums over each client's examples [K]}.

    Not jitted yet; see engine.compiled.
    """
    work = local.Work(batch_size, epochs=1, shuffle=False)

    def client(base, server, k):
        model = algorithm.deploy(server, k.state)

        def add(total, batch, key):
            return jax.tree.map(jnp.add, total, task.evaluate(*model, batch))

        shapes = jax.eval_shape(partial(task.evaluate, *model), _batch(k.data, batch_size))
        zero = jax.tree.map(
            lambda s: jnp.zeros(s.shape, jnp.promote_types(s.dtype, jnp.float32)), shapes
        )
        return Reply(local.each_step(add, zero, k, work), (), {})

    def run(server, states, data, count):
        keys = jnp.broadcast_to(jax.random.key(0), count.shape)
        cohort = Cohort(states, data, count, count, keys, jnp.arange(len(count)), 0, keys[0])
        return verb(client, (), server, cohort).upload

    return run


def _batch(data: Data, size: int) -> dict:
    examples = jax.tree.map(lambda x: x[:1].repeat(size, axis=0), data.examples)
    return {**examples, "mask": jnp.ones(size)}


def global_model(
    algorithm: Algorithm,
    task: Task,
    verb: ForEachClient,
    examples: int,
    parts: int,
    batch_size: int,
) -> Callable:
    """(server, test examples [examples, ...]) -> {name: sums over `parts` pieces of them [parts]}.

    The global model is the model of a client that was never drawn. Not jitted yet.
    """
    start, size = pieces(examples, parts, batch_size)
    summed = sums(algorithm, task, verb, batch_size)

    def run(server, test):
        keys = jax.random.split(jax.random.key(0), parts)
        fresh = jax.vmap(algorithm.init_client, in_axes=(None, 0))(server, keys)
        return summed(server, fresh, Data(test, jnp.asarray(start), examples), jnp.asarray(size))

    return run


def deploys_own(algorithm: Algorithm) -> bool:
    """True if the model that a client deploys depends on what it keeps, as in PF2LoRA."""
    found = False

    @jax.custom_batching.custom_vmap
    def seen(model: PyTree) -> PyTree:
        return model

    @seen.def_vmap
    def _(size: int, batched: list, model: PyTree) -> tuple[PyTree, PyTree]:
        nonlocal found
        found = any(jax.tree.leaves(batched))
        return model, batched[0]

    def deployed(key: jax.Array) -> PyTree:
        server = algorithm.init(key)
        states = jax.vmap(algorithm.init_client, (None, 0))(server, jax.random.split(key, 2))
        if not jax.tree.leaves(states):
            return ()
        return jax.vmap(lambda state: seen(algorithm.deploy(server, state)))(states)

    jax.eval_shape(deployed, jax.random.key(0))
    return found


def personal_models(
    algorithm: Algorithm, task: Task, verb: ForEachClient, most: int, batch_size: int
) -> Callable:
    """(server, states [P, ...], examples, start [P], count [P]) -> {name: sums [P]}.

    Each client's own model is evaluated on the rows start : start + count of the examples; `most`
    bounds count. Not jitted yet.
    """
    summed = sums(algorithm, task, verb, batch_size)

    def run(server, states, examples, start, count):
        return summed(server, states, Data(examples, start, most), count)

    return run


def parts(order: np.ndarray, devices: int, width: int) -> list[np.ndarray]:
    """Parts [devices * width] of the clients in `order`, which has one block for each device.

    A part takes the next `width` clients of each block; -1 is padding.
    """
    blocks = order.reshape(devices, -1)
    blocks = np.pad(blocks, ((0, 0), (0, -blocks.shape[1] % width)), constant_values=-1)
    return [blocks[:, i : i + width].reshape(-1) for i in range(0, blocks.shape[1], width)]


def over_parts(
    measure: Callable, split: Split, parts: Sequence[np.ndarray], states_of: Callable
) -> tuple[dict, np.ndarray]:
    """({name: sums [n]}, count [n]) of the clients of all parts, one part after the other.

    `measure(states, start, count)` gives the sums of one part, and `states_of(ids)` its clients'
    states. So memory depends on the size of a part, not on that of the population.
    """
    sums, own = [], []
    for ids in parts:
        states, start, count = _part(split, ids, states_of)
        own.append(count)
        sums.append(jax.device_get(measure(states, start, count)))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *sums), np.concatenate(own)


def _part(split: Split, ids: np.ndarray, states_of: Callable) -> tuple[PyTree, Any, np.ndarray]:
    """(states, start, count) of these clients; -1 is padding and has no examples."""
    known, real = np.maximum(ids, 0), ids >= 0
    count = np.where(real, split.count[known], 0).astype(np.int32)
    return states_of(np.where(real, ids, split.clients)), split.start[known], count


def pieces(examples: int, count: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(start [count], size [count]) of `count` consecutive pieces, cut between whole batches."""
    width = -(-examples // (batch_size * count)) * batch_size
    start = np.minimum(np.arange(count) * width, examples)
    return start, np.minimum(width, examples - start)


def overall(summary: Callable, sums: dict, count: int | np.ndarray) -> dict:
    """{name: number} over `count` examples, from sums over pieces of them [K, ...].

    `summary` is the task's function of sums and count.
    """
    total = {n: np.sum(np.asarray(v, np.float64), axis=0) for n, v in sums.items()}
    return {n: float(v) for n, v in summary(total, count).items()}


def spread(summary: Callable, sums: dict, count: np.ndarray) -> dict:
    """{name: {mean, min, p10, p50, p90, union}} over the clients that have their own test examples.

    `union` is the number over all their examples together, each under its own client's model. If a
    number is not a mean over examples, `union` can differ from every mean over clients: Matthews
    correlation is zero on a client whose examples have one label, but not on the union.
    """
    has = count > 0
    mine = {n: np.asarray(v, np.float64)[has] for n, v in sums.items()}
    union = overall(summary, mine, count.sum())
    return {
        n: {
            "mean": float(r.mean()),
            "min": float(r.min()),
            **{f"p{q}": float(np.percentile(r, q)) for q in PERCENTILES},
            "union": union[n],
        }
        for n, r in summary(mine, count[has]).items()
    }


def by_client(
    summary: Callable, sums: dict, count: np.ndarray, ids: np.ndarray
) -> dict[str, np.ndarray]:
    """{"client": ids [n], "examples": [n], name: numbers [n]} of clients with tests, in order."""
    has = np.flatnonzero(count > 0)
    has = has[np.argsort(ids[has])]
    mine = {n: np.asarray(v, np.float64)[has] for n, v in sums.items()}
    return {"client": ids[has], "examples": count[has], **summary(mine, count[has])}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """(server, states_of) -> {"accuracy", "test_loss", "personal"?}; `evaluation` creates it."""

    sums: dict[str, jax.stages.Wrapped]  # {"test": ..., "personal": ...}, jitted; see `evaluation`
    examples: dict[str, PyTree]  # by the same names, on the devices
    data: Federated
    parts: list[np.ndarray]  # each part's clients are evaluated at once
    summary: Callable  # the task's function of sums and count
    server_measures: Callable | None = None  # the experiment's

    def __call__(self, server: Any, states_of: Callable) -> dict:
        return self.measured(server, states_of)[0]

    def measured(self, server: Any, states_of: Callable) -> tuple[dict, dict[str, np.ndarray]]:
        """(what a call gives, the same by client as `by_client` gives it, or {})."""
        sums, each = self.sums["test"](server, self.examples["test"]), dict[str, np.ndarray]()
        numbers = overall(self.summary, sums, length(self.data.test))
        numbers["test_loss"] = numbers.pop("loss")
        if self.parts:

            def measure(states, start, count):
                examples = self.examples["personal"]
                return self.sums["personal"](server, states, examples, start, count)

            own = over_parts(measure, self.data.personal, self.parts, states_of)
            numbers["personal"] = spread(self.summary, *own)
            each = by_client(self.summary, *own, np.concatenate(self.parts))
        if wrong := _not_finite(numbers):
            warnings.warn(
                f"{', '.join(wrong)}: not finite, as the model's outputs on some test examples are "
                "not, and so the accuracy beside it means nothing; look for NaN and infinity in "
                "the test data, or lower the learning rate",
                stacklevel=2,
            )
        return numbers, each

    def of_server(self, server: Any, done: int, others: Collection[str]) -> dict[str, float]:
        """The experiment's own measures of a server, beside `others`, after so many rounds."""
        return measures.of_server(self.server_measures, server, done, others)

    def check(self, server: Any, done: int) -> None:
        """Raises the errors of the task and of the experiment's measures, before any round."""
        sums = jax.eval_shape(self.sums["test"], server, self.examples["test"])
        names = measures.check(self.summary, sums)
        measures.of_server(self.server_measures, server, done, names)

    def compile(self, server: Any, states_of: Callable) -> None:
        """Compiles what a call with these would."""
        self.sums["test"].lower(server, self.examples["test"]).compile()
        if self.parts:
            states, start, count = _part(self.data.personal, self.parts[0], states_of)
            examples = self.examples["personal"]
            self.sums["personal"].lower(server, states, examples, start, count).compile()


def _not_finite(numbers: dict, prefix: str = "") -> list[str]:
    """The names of the numbers that are NaN or infinite: ["test_loss", "personal/loss/mean"]."""
    inside = [_not_finite(x, f"{prefix}{n}/") for n, x in numbers.items() if isinstance(x, dict)]
    here = [n for n, x in numbers.items() if not isinstance(x, dict) and not np.isfinite(x)]
    return [prefix + n for n in here] + [name for names in inside for name in names]


def evaluation(
    e: Experiment,
    algorithm: Algorithm,
    machine: engine.Machine,
    at_once: int,
    programs: Programs | None = None,
) -> Evaluation:
    """The evaluation of this experiment; test examples are on the devices, nothing is compiled yet.

    About `at_once` clients' states are on the devices together.
    """
    if e.evaluate_every:
        check_sums(e.task, e.data.test)
    compiled: Callable = engine.compiled if programs is None else programs.compiled
    devices, personal = len(machine.devices), e.data.personal
    size = e.data.size if programs is None else programs.size
    batch = max(1, min(e.evaluate_batch, size.own_most))
    chunk = max(1, 2000 // batch)  # clients, so that some 2000 examples are evaluated at once
    one, some = (engine.for_each_client(dataclasses.replace(machine, chunk=n)) for n in (1, chunk))
    count, has = length(e.data.test), np.flatnonzero(personal.count)
    sums = {
        "test": global_model(algorithm, e.task, one, count, devices, e.evaluate_batch),
        "personal": personal_models(algorithm, e.task, some, size.own_most, batch),
    }
    order = has[engine.deal(personal.count[has], devices)]
    if len(order):
        order = np.pad(
            order, (0, -size.tested % devices + size.tested - len(order)), constant_values=-1
        )
    width = min(len(order) // devices, chunk * max(1, at_once // (chunk * devices)))
    own = filled_up(personal.examples, size.own_rows)
    return Evaluation(
        {name: compiled(function, machine) for name, function in sums.items()},
        engine.place({"test": e.data.test, "personal": own}, machine),
        e.data,
        parts(order, devices, width) if len(has) else [],
        e.task.summary,
        e.server_measures,
    )
