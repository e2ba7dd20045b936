"""A config for tests of `jaxfed analyse`: softmax regression, whose Hessian can be written down."""

from typing import Literal

import numpy as np
import optax

from jaxfed import Experiment, local, lowrank, models, tasks
from jaxfed.algorithms import fedavg, scaffold
from jaxfed.combine import measure
from jaxfed.data import federate, sources

CLIENTS, PIXELS, CLASSES = 4, 4, 3


def experiment(method: Literal["scaffold", "fedavg"] = "scaffold", rounds: int = 3) -> Experiment:
    """All of four unequal clients in every round.

    Args:
        method: SCAFFOLD on factors, which tells their discrepancy, or FedAvg on whole weights.
        rounds: how many to run.
    """
    rng = np.random.default_rng(0)
    label = rng.integers(CLASSES, size=60).astype(np.int32)
    image = rng.normal(size=(60, PIXELS)) + np.eye(CLASSES, PIXELS)[label]
    examples = {"image": image.astype(np.float32), "label": label}
    source = sources.arrays(examples, {n: x[:8] for n, x in examples.items()})
    parts = np.split(np.argsort(label, kind="stable"), [10, 22, 45])
    select = lowrank.Select(factors="kernel", full="bias", rank=2)
    made = tasks.classification(
        models.MLP((), CLASSES),
        source.test,
        select=select if method == "scaffold" else lowrank.everything,
    )
    work = local.Work(6, epochs=2, shuffle=False)
    if method == "scaffold":
        averaging = scaffold(made, work, learning_rate=0.6, clients=CLIENTS)
        algorithm = measure.with_discrepancy(averaging)
    else:
        algorithm = fedavg(made, work, client_optimizer=optax.sgd(0.2))
    return Experiment(
        federate(source, parts), algorithm, rounds=rounds, cohort=CLIENTS, evaluate_every=0
    )
