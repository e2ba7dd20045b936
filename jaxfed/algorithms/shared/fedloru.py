"""FedLoRU: Park and Klabjan, arXiv 2409.12371.

    for t = 1 .. T:
        clients of the round start at (A, B), train them beside the frozen W, send them
        A <- sum_k p_k A_k,  B <- sum_k p_k B_k
        if t mod tau == 0:  W <- W + s A B  on the server and every client

This is FedLoRA with `accumulate` around it. So is FedLoRU over SCAFFOLD or over FedProx:

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
    """FedAvg over the factors, merged into the base every tau rounds; see combine.accumulate.

    The sources differ on the restart: the authors' released run uses `restarts.keep`, their
    rebuttal calls `restarts.reinit` optional, and `restarts.residual` is FRLoRA's.
    """
    fedlora = fedavg(
        task,
        work,
        client_optimizer=client_optimizer,
        server_optimizer=server_optimizer,
        mean=mean,
    )
    return combine.accumulate(fedlora, every=every, restart=restart)
