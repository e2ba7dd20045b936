"""FedLoRU: Park and Klabjan, arXiv 2409.12371.

    for t = 1 .. T:
        each client of the cohort trains (A, B) beside the frozen W and uploads (A_k, B_k)
        A <- sum_k p_k A_k,  B <- sum_k p_k B_k
        if t mod tau == 0:  W <- W + s A B  on the server and every client

This is FedLoRA inside `accumulate`. FedLoRU over SCAFFOLD or FedProx is written the same way:

    accumulate(scaffold(task, work, ...), every=tau, restart=reinit)
"""

from collections.abc import Callable, Sequence

import jax
import optax

from jaxfed import aggregate, combine, local
from jaxfed.algorithm import Algorithm, PyTree
from jaxfed.algorithms.general.fedavg import fedavg
from jaxfed.tasks.task import Task


def fedloru(
    task: Task,
    work: local.Work,
    *,
    every: int | Sequence[int],
    restart: Callable,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation = optax.sgd(1.0),  # noqa: B008 (immutable)
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedAvg over the factors, which are merged into the base every tau rounds.

    Args:
        task: the model and its loss.
        work: local work of a client in each round; the paper takes 5 epochs of batches of 32.
        every: tau, or the rounds after which to merge; the paper's CIFAR-100 run merges every 50.
        restart: how the factors continue after a merge. The authors' run uses `restarts.keep`,
            their rebuttal calls `restarts.reinit` optional, and `restarts.residual` is FRLoRA's.
        client_optimizer: of the local steps; restarted in each round.
        server_optimizer: takes the negative mean change as its gradient; averages by default.
        mean: of the uploads; weighted by examples by default.
    """
    fedlora = fedavg(
        task,
        work,
        client_optimizer=client_optimizer,
        server_optimizer=server_optimizer,
        mean=mean,
    )
    return combine.accumulate(fedlora, every=every, restart=restart)
