"""What an evaluation finds: the global model's scores, and those of clients' own models."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxfed import engine, evaluate
from jaxfed.algorithm import Algorithm, PyTree
from jaxfed.data.federated import Federated, length
from jaxfed.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """(server, states_of) -> {"accuracy", "test_loss", "personal"?}; made by `evaluation`."""

    sums: dict[str, Callable]  # {"test": ..., "personal": ...}, jitted; see evaluate.py
    examples: dict[str, PyTree]  # of the same names, on the devices
    data: Federated
    parts: list[np.ndarray]  # the clients that are evaluated at once
    summary: Callable  # the task's, of these sums

    def __call__(self, server: Any, states_of: Callable) -> dict:
        sums = self.sums["test"](server, self.examples["test"])
        found = evaluate.overall(self.summary, sums, length(self.data.test))
        found["test_loss"] = found.pop("loss")
        if self.parts:

            def measure(states, start, count):
                examples = self.examples["personal"]
                return self.sums["personal"](server, states, examples, start, count)

            own = evaluate.over_parts(measure, self.data.personal, self.parts, states_of)
            found["personal"] = evaluate.spread(self.summary, *own)
        return found


def evaluation(
    e: Experiment, algorithm: Algorithm, machine: engine.Machine, at_once: int
) -> Evaluation:
    """The evaluation of this experiment, with test examples placed and nothing compiled yet.

    Of clients' own models, about `at_once` are on the devices together.
    """
    devices, personal = len(machine.devices), e.data.personal
    batch = max(1, min(e.evaluate_batch, personal.most))
    chunk = max(1, 2000 // batch)  # clients, so that some 2000 examples are evaluated at once
    one, some = (engine.for_each_client(dataclasses.replace(machine, chunk=n)) for n in (1, chunk))
    count, has = length(e.data.test), np.flatnonzero(personal.count)
    sums = {
        "test": evaluate.global_model(algorithm, e.task, one, count, devices, e.evaluate_batch),
        "personal": evaluate.personal_models(algorithm, e.task, some, personal.most, batch),
    }
    order = engine.deal(personal.count[has], devices)
    order = np.where(order >= 0, has[order], -1) if len(has) else has
    width = min(len(order) // devices, chunk * max(1, at_once // (chunk * devices)))
    return Evaluation(
        {name: engine.compiled(function, machine) for name, function in sums.items()},
        engine.place({"test": e.data.test, "personal": personal.examples}, machine),
        e.data,
        evaluate.parts(order, devices, width) if len(has) else [],
        e.task.summary,
    )
