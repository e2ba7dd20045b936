"""Any method of the zoo on handwritten digits: 30 clients, Dirichlet(0.5), 10 of them a round.

    jaxfed run configs/zoo/digits.py --method fedex
    jaxfed run configs/zoo/digits.py --method fedprox --merge-every 5     FedLoRU around FedProx
    jaxfed run configs/zoo/digits.py --method flexlora --mixture strong   most clients of full rank
    jaxfed run configs/zoo/digits.py --method fedavg --noise 1            privacy of clients
    jaxfed run configs/zoo/digits.py --method scaffold --unavailable 0.2 --lost 0.1

`jaxfed zoo` lists the methods. A method trains what its row says: all weights; factors beside a
base that is kept; factors beside a base of zeros, from scratch; or (FedBN) all weights of a model
with batch norms. Rows make small runs, so constants such as FedProx's mu and the rounds between
merges are the row's. Takes less than a minute on 2 cores, most of it compilation. Seen after 30
rounds: FedAvg 0.950, FedLoRU 0.839 (seed 0).
"""

from typing import Literal

from jaxfed import Experiment, combine, local, models, tasks
from jaxfed.algorithms import row, zoo
from jaxfed.data import federate, images, partition, sources
from jaxfed.lowrank import mixed, restarts

MIXTURES = {
    "halves": None,
    "uniform": mixed.uniform,
    "light": mixed.light,
    "normal": mixed.normal,
    "strong": mixed.strong,
}
RATES = {"flexlora": 0.05}  # of methods that diverge at 0.1


def experiment(
    method: str = "fedloru",
    clients: int = 30,
    cohort: int = 10,
    concentration: float = 0.5,
    rounds: int = 30,
    rank: int = 4,
    batch_size: int = 10,
    epochs: int = 2,
    learning_rate: float | None = None,
    scale: float = 2.0,
    mixture: Literal["halves", "uniform", "light", "normal", "strong"] = "halves",
    merge_every: int | None = None,
    unavailable: float = 0.0,
    lost: float = 0.0,
    noise: float | None = None,
    clip: float = 1.0,
    seed: int = 0,
) -> Experiment:
    """One method on scikit-learn's digits (1,797 images of 8 x 8, inside the package).

    Args:
        method: the name of a row of the zoo.
        clients: how many clients share the training images.
        cohort: how many of them take part in a round.
        concentration: of the Dirichlet split over labels; small is uneven.
        rounds: how many rounds to run; methods with stages divide them.
        rank: of the factors beside the hidden layer; of mixed ranks the largest.
        batch_size: of a local step.
        epochs: of a client over its own images in a round; one on a personal part.
        learning_rate: of the clients' SGD; by default 0.1, of flexlora 0.05: one side of its
            factors is orthonormal, and at 0.1 its clients diverge after 26 rounds.
        scale: alpha / rank, the factor before the low-rank term.
        mixture: of mixed ranks, how many clients have which one of 1 to `rank`: FlexLoRA's
            distributions, of small clients (light) or large ones (strong); halves: by turns half
            of `rank` and all of it, and FLoRA and FlexLoRA have equal ranks.
        merge_every: rounds between FedLoRU's merges around the method, which then trains factors
            beside a base of zeros; by default none.
        unavailable: the probability that a drawn client neither receives nor sends.
        lost: the probability that a client that was there does not answer.
        noise: on the sum of the clients' clipped changes, in units of `clip`; the record then has
            epsilon, at delta = 1 / (10 clients). By default none.
        clip: the largest norm of a client's change, where there is noise.
        seed: decides the split, the initial weights, who is drawn and in which order.
    """
    one = zoo.named(method)
    if merge_every is not None and one.trains == "any":
        one = one._replace(trains="scratch")
    source = sources.digits()
    parts = partition.dirichlet(
        source.train["label"], clients, concentration=concentration, seed=seed
    )
    digits = tasks.classification(
        models.MLP((64,), classes=10, norm="running" if one.trains == "norms" else "none"),
        source.test,
        select=one.select(factors="dense.*kernel", full="bias|head", rank=rank, alpha=scale * rank),
        preprocess=images.normalise([0.3], [0.38], scale=16),
    )
    setting = row.Setting(
        work=local.Work(batch_size, epochs=epochs),
        rate=RATES.get(method, 0.1) if learning_rate is None else learning_rate,
        clients=clients,
        cohort=cohort,
        rank=rank,
        rounds=rounds,
        personal_work=local.Work(batch_size, epochs=1),
        mixture=MIXTURES[mixture],
    )
    algorithm = one.make(digits, setting)
    if merge_every is not None:
        algorithm = combine.accumulate(algorithm, every=merge_every, restart=restarts.balanced)
    if noise is not None:
        algorithm = combine.private(
            algorithm,
            clip=clip,
            noise=noise,
            clients=clients,
            cohort_size=cohort,
            rounds=rounds,
            delta=1 / (10 * clients),
        )
    if unavailable > 0 or lost > 0:
        algorithm = combine.unreliable(algorithm, unavailable=unavailable, lost=lost)
    return Experiment(
        federate(source, parts, personal_fraction=0.2, seed=seed),
        algorithm,
        rounds=rounds,
        cohort=cohort,
        seed=seed,
        evaluate_every=10,
    )
