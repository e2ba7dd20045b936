"""FedLoRU on handwritten digits: 100 clients, Dirichlet(0.5), 20 of them a round.

    jaxfed run configs/quickstart.py

Trains from scratch with factors of rank 2, which is too low for FedLoRA: it ends near 69 % of test
accuracy. FedLoRU merges them into the weights every 10 rounds and draws both anew, and ends near
95 %, for a tenth of the bytes that FedAvg needs to reach 97 %. From rank 8 on, FedLoRA is as good.
benchmarks/claims/binding_rank.py chose the learning rates on held-out examples, and gives the means
over five seeds. Takes half a minute on 2 cores, most of it compilation.
"""

from typing import Literal

import optax

from jaxfed import Experiment, local, lowrank, models, tasks
from jaxfed.algorithms import fedavg, fedloru
from jaxfed.data import federate, images, partition, sources
from jaxfed.lowrank import restarts

RATES = {"fedloru": 1.0, "fedlora": 0.3, "fedavg": 1.0}


def experiment(
    method: Literal["fedloru", "fedlora", "fedavg"] = "fedloru",
    clients: int = 100,
    cohort: int = 20,
    concentration: float = 0.5,
    rounds: int = 200,
    rank: int = 2,
    every: int = 10,
    restart: Literal["keep", "reinit", "residual", "balanced"] = "balanced",
    batch_size: int = 10,
    epochs: int = 5,
    learning_rate: float | None = None,
    clip: float = 1.0,
    scale: float = 2.0,
    seed: int = 0,
) -> Experiment:
    """One of three methods on scikit-learn's digits (1,797 images of 8 x 8, inside the package).

    Args:
        method: what clients train and what the server does with it.
        clients: how many clients share the training images.
        cohort: how many of them take part in a round.
        concentration: of the Dirichlet split over labels; small is uneven.
        rounds: how many rounds to run.
        rank: of the factors beside each hidden layer.
        every: FedLoRU merges after this many rounds.
        restart: what becomes of the factors at a merge.
        batch_size: of a local step.
        epochs: of a client over its own images in a round.
        learning_rate: of the clients' SGD; by default the best for the method (RATES).
        clip: the largest norm of a gradient.
        scale: alpha / rank, the factor before the low-rank term.
        seed: decides the split, the initial weights, who is drawn and in which order.
    """
    source = sources.digits()
    parts = partition.dirichlet(
        source.train["label"], clients, concentration=concentration, seed=seed
    )
    data = federate(source, parts, personal_fraction=0.2, seed=seed)
    select = {
        "fedavg": lowrank.everything,
        "fedlora": lowrank.Select(
            factors="dense.*kernel",
            full="bias|head",
            rank=rank,
            alpha=scale * rank,
            base="zero",
            up="random",
        ),
    }
    digits = tasks.classification(
        models.MLP((128, 128), classes=10),
        source.test,
        select=select["fedavg" if method == "fedavg" else "fedlora"],
        preprocess=images.normalise([0.3], [0.38], scale=16),
    )
    work = local.Work(batch_size, epochs=epochs)
    rate = RATES[method] if learning_rate is None else learning_rate
    optimizer = optax.chain(optax.clip_by_global_norm(clip), optax.sgd(rate))
    if method == "fedloru":
        algorithm = fedloru(
            digits,
            work,
            every=every,
            restart=getattr(restarts, restart),
            client_optimizer=optimizer,
        )
    else:
        algorithm = fedavg(digits, work, client_optimizer=optimizer)
    return Experiment(data, algorithm, rounds=rounds, cohort=cohort, seed=seed, evaluate_every=10)
