"""Centralised training on the union of the clients' data, under the same contract: a reference.

    each round, one step:  w <- w - optimizer(sum_k p_k grad F_k(w; batch of client k))

This is FedSGD (McMahan et al., AISTATS 2017, Section 2) with the optimizer on the server. If every
client takes part, the mean gradient is the gradient on one batch of K B examples from the union,
with client k's examples weighted by its share p_k. If a batch is a client's whole data set, it is
the gradient on all the data. So the optimizer and its moments are those of one machine that holds
all the data, and clients do no local training.
"""

import optax

from jaxfed import local
from jaxfed.algorithm import Algorithm
from jaxfed.algorithms.general.fedavg import fedavg
from jaxfed.tasks.task import Task


def centralised(
    task: Task, *, batch_size: int, optimizer: optax.GradientTransformation
) -> Algorithm:
    """Centralised training: a round is one step of `optimizer` on `batch_size` examples a client.

    I local steps of a federated method correspond to I rounds of this one. With factors as theta
    it is centralised LoRA. The ledger counts the bytes that exchanging gradients would cost.
    """
    return fedavg(
        task,
        local.Work(batch_size, steps=1),
        client_optimizer=optax.sgd(1.0),  # a client's change is then its negative gradient
        server_optimizer=optimizer,
    )
