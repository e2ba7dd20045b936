"""pFedLoRU on digits whose labels are skewed over clients: does the personal part undo the global?

    jaxfed run configs/fedloru/personal_digits.py [--method fedloru]

Thirty clients, each with two of the ten labels. A client has a global product L U and its own A_k
B_k; `cosine` in metrics.jsonl is the mean over clients of the cosine between the two (-1: they
cancel). Takes a minute on 2 cores. Seen with seeds 0 to 2: 0.02 in the mean over rounds, from -0.01
to 0.06, so the parts are orthogonal; iid alike.
"""

from typing import Literal

import optax

from jaxfed import Experiment, local, lowrank, models, tasks
from jaxfed.algorithms import fedloru, pfedloru
from jaxfed.data import federate, images, partition, sources
from jaxfed.lowrank import restarts


def experiment(
    method: Literal["pfedloru", "fedloru"] = "pfedloru",
    clients: int = 30,
    cohort: int = 10,
    split: Literal["pathological", "iid"] = "pathological",
    classes_per_client: int = 2,
    rounds: int = 60,
    rank: int = 8,
    personal_rank: int = 2,
    every: int = 20,
    restart: Literal["keep", "reinit", "residual", "balanced"] = "reinit",
    batch_size: int = 10,
    epochs: int = 4,
    personal_epochs: int = 1,
    learning_rate: float = 0.1,
    personal_learning_rate: float = 0.1,
    scale: float = 2.0,
    seed: int = 0,
) -> Experiment:
    """pFedLoRU, or FedLoRU without personal factors, on scikit-learn's digits.

    Args:
        method: with factors of each client's own, or without.
        clients: how many clients share the training images.
        cohort: how many of them take part in a round.
        split: clients have a few labels each, or a random part of all images.
        classes_per_client: of the pathological split.
        rounds: how many rounds to run.
        rank: of the global factors beside each hidden layer.
        personal_rank: of a client's own factors.
        every: rounds between merges of the global factors.
        restart: what becomes of the global factors at a merge.
        batch_size: of a local step.
        epochs: of a client on the global factors in a round.
        personal_epochs: likewise, on its own factors; the authors take fewer.
        learning_rate: of SGD on the global factors.
        personal_learning_rate: of SGD on a client's own factors.
        scale: alpha / rank of both.
        seed: decides the split, the initial weights, who is drawn and in which order.
    """
    source = sources.digits()
    labels = source.train["label"]
    if split == "iid":
        parts = partition.iid(len(labels), clients, seed=seed)
    else:
        parts = partition.pathological(labels, clients, classes=classes_per_client, seed=seed)
    digits = tasks.classification(
        models.MLP((128, 128), classes=10),
        source.test,
        select=lowrank.Select(
            factors="dense.*kernel",
            full="bias|head",
            rank=rank,
            alpha=scale * rank,
            base="zero",
            up="random",
        ),
        preprocess=images.normalise([0.3], [0.38], scale=16),
    )
    work = local.Work(batch_size, epochs=epochs)
    merges = {"every": every, "restart": getattr(restarts, restart)}
    clipped = optax.clip_by_global_norm(1.0)
    optimizer = optax.chain(clipped, optax.sgd(learning_rate))
    if method == "fedloru":
        algorithm = fedloru(digits, work, **merges, client_optimizer=optimizer)
    else:
        algorithm = pfedloru(
            digits,
            work,
            **merges,
            rank=personal_rank,
            alpha=scale * personal_rank,
            personal_work=local.Work(batch_size, epochs=personal_epochs),
            client_optimizer=optimizer,
            personal_optimizer=optax.chain(clipped, optax.sgd(personal_learning_rate)),
        )
    return Experiment(
        federate(source, parts, personal_fraction=0.2, seed=seed),
        algorithm,
        rounds=rounds,
        cohort=cohort,
        seed=seed,
        evaluate_every=10,
    )
