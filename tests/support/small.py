"""A config that starts fast, for tests that run the command line in processes of their own.

    jaxfed run tests/support/small.py --method scaffold

Everything that a checkpoint must hold is in use: the states of clients, a server optimizer, merges.
"""

from typing import Literal

import numpy as np
import optax

from jaxfed import Experiment, combine, local, lowrank, models, tasks
from jaxfed.algorithms import fedloru, scaffold
from jaxfed.algorithms.general import fedopt
from jaxfed.data import federate, images, partition, sources
from jaxfed.lowrank import restarts


def drawn(examples: int, seed: int) -> sources.Examples:
    """Labelled images [n, 8, 8, 1] with values from 0 to 16."""
    rng = np.random.default_rng(seed)
    label = np.arange(examples) % 10
    image = rng.integers(0, 13, (examples, 64))
    image[np.arange(examples)[:, None], 6 * label[:, None] + np.arange(8)] += 4
    return {
        "image": image.reshape(-1, 8, 8, 1).astype(np.uint8),
        "label": label.astype(np.int32),
    }


def experiment(
    method: Literal["scaffold", "fedloru"] = "scaffold",
    rounds: int = 20,
    cohort: int = 5,
    rank: int = 4,
    learning_rate: float = 0.03,
    seed: int = 0,
) -> Experiment:
    """SCAFFOLD or FedLoRU with FedAdam, both merged every 3 rounds; 20 clients.

    The ten classes of images differ in their brightest pixels; scikit-learn takes long to import.

    Args:
        method: what clients and the server do.
        rounds: how many to run.
        cohort: clients a round.
        rank: of the factors.
        learning_rate: of the clients' SGD.
        seed: decides everything random.
    """
    source = sources.Source(drawn(1400, 0), drawn(360, 1))
    parts = partition.dirichlet(source.train["label"], 20, concentration=0.5, seed=seed)
    data = federate(source, parts, personal_fraction=0.2, seed=seed)
    digits = tasks.classification(
        models.MLP((16,), classes=10),
        source.test,
        select=lowrank.Select(
            factors="dense.*kernel", full="bias|head", rank=rank, base="zero", up="random"
        ),
        preprocess=images.normalise([0.3], [0.38], scale=16),
    )
    work = local.Work(10, epochs=1)
    if method == "scaffold":
        inner = scaffold(digits, work, learning_rate=learning_rate, clients=20)
        algorithm = combine.accumulate(inner, every=3, restart=restarts.reinit)
    else:
        algorithm = fedloru(
            digits,
            work,
            every=3,
            restart=restarts.reinit,
            client_optimizer=optax.sgd(learning_rate),
            server_optimizer=fedopt.adam(0.05),
        )
    return Experiment(data, algorithm, rounds=rounds, cohort=cohort, seed=seed, evaluate_every=20)
