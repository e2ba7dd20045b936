"""Centralised training on the union of the clients' data, under the same contract: a reference.

    each round, one step:  w <- w - optimizer(sum_k p_k grad F_k(w; batch of client k))

This is FedSGD (McMahan et al., AISTATS 2017, Section 2) with the optimizer on the server. Where
every client takes part, the mean of their gradients is the gradient on one batch of K B examples of
the union, client k's counting by its share p_k; with whole epochs as batches, on all of it. So the
optimizer and its moments are those of a machine that has all the data, and nothing is local.
"""

import optax

from jaxfed import local
from jaxfed.algorithm import Algorithm
from jaxfed.algorithms.general.fedavg import fedavg
from jaxfed.tasks.task import Task


def centralised(
    task: Task, *, batch_size: int, optimizer: optax.GradientTransformation
) -> Algorithm:
    """One step of `optimizer` a round on a batch of `batch_size` examples from each client.

    I local steps of a federated method are I rounds of this one. With factors as theta it is
    centralised LoRA. What the ledger counts is what the exchange of gradients would cost.
    """
    return fedavg(
        task,
        local.Work(batch_size, steps=1),
        client_optimizer=optax.sgd(1.0),  # so that a client's change is its negative gradient
        server_optimizer=optimizer,
    )
