"""What other rules would have made of the same uploads: digits whose labels are skewed.

    jaxfed run configs/zoo/counterfactual.py

Thirty clients with two of the ten labels each, ten of them a round. FedLoRA averages A and B apart;
in each round FedEx-LoRA, FLoRA and FlexLoRA are applied to the same uploads, and metrics.jsonl has
of each the discrepancy, the distance from the applied rule and the loss for the next round's
clients. docs/results/counterfactual.md shows what this run says. Takes a minute on 2 cores.
"""

import optax

from jaxfed import Experiment, combine, local, lowrank, models, tasks
from jaxfed.algorithms import fedlora
from jaxfed.data import federate, images, partition, sources
from jaxfed.lowrank import rules

OTHERS = {"fedex": rules.FEDEX, "flora": rules.FLORA, "flexlora": rules.FLEXLORA}


def experiment(
    clients: int = 30,
    cohort: int = 10,
    classes_per_client: int = 2,
    rounds: int = 40,
    rank: int = 4,
    batch_size: int = 10,
    epochs: int = 4,
    learning_rate: float = 0.1,
    scale: float = 2.0,
    seed: int = 0,
) -> Experiment:
    """FedLoRA with three other rules beside it, on scikit-learn's digits.

    Args:
        clients: how many clients share the training images.
        cohort: how many of them take part in a round.
        classes_per_client: how many labels each has.
        rounds: how many rounds to run.
        rank: of the factors beside the hidden layer.
        batch_size: of a local step.
        epochs: of a client over its own images in a round.
        learning_rate: of the clients' SGD.
        scale: alpha / rank, the factor before the low-rank term.
        seed: decides the split, the initial weights, who is drawn and in which order.
    """
    source = sources.digits()
    labels = source.train["label"]
    parts = partition.pathological(labels, clients, classes=classes_per_client, seed=seed)
    digits = tasks.classification(
        models.MLP((64,), classes=10),
        source.test,
        select=lowrank.Select(
            factors="dense.*kernel", full="bias|head", rank=rank, alpha=scale * rank
        ),
        preprocess=images.normalise([0.3], [0.38], scale=16),
    )
    algorithm = fedlora(
        digits,
        local.Work(batch_size, epochs=epochs),
        rule=rules.SEPARATE,
        client_optimizer=optax.sgd(learning_rate),
    )
    return Experiment(
        federate(source, parts),
        combine.counterfactual(algorithm, rules=OTHERS),
        rounds=rounds,
        cohort=cohort,
        seed=seed,
        evaluate_every=10,
    )
