"""FedSA-LoRA: Guo et al., ICLR 2025 (arXiv 2410.01463): share A, keep B.

    client k: (A, B_k, head_k) <- local training of all three, from the server's A
    A <- sum_k p_k A_k;  B_k and head_k stay on the client

A learns general features, B_k features of one client. This is FedPer with another personal part.
"""

from collections.abc import Callable

import jax
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree
from jaxfed.algorithms.general.fedper import fedper
from jaxfed.tasks.task import Task

PERSONAL = r"^factors/.*/b$|^full/"


def fedsa(
    task: Task,
    work: local.Work,
    *,
    client_optimizer: optax.GradientTransformation,
    common_start: bool = False,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedAvg over the down factors a; clients keep the up factors b and the weights trained whole.

    In the paper the classifier is the only weight trained whole. To share such weights, call fedper
    with the first half of PERSONAL. `common_start` is fedper's: True if all clients start alike.
    """
    return fedper(
        task,
        work,
        personal=PERSONAL,
        client_optimizer=client_optimizer,
        common_start=common_start,
        mean=mean,
    )
