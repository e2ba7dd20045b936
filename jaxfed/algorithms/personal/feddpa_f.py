"""FedDPA: Yang et al., NeurIPS 2024 (arXiv 2403.19211): a global adapter and a local one.

FedDPA-F trains in sequence:     (A, B) <- FedAvg; then (C_k, D_k) <- (A, B), trained locally
FedDPA-T alternates each round:  (C_k, D_k) <- training of f_k(W + (1 - a) s A B + a s C_k D_k)
                                 (A_k, B_k) <- training of f_k(W + s A B), then averaged

A client deploys W + (1 - a) s A B + a s C_k D_k with one `a` for all inputs; `feddpa_instances`
has a weight for each.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, trees
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import averaging, check_number, mixture


def feddpa_f(
    task: Task,
    work: local.Work,
    *,
    rounds: int,
    a: float,
    personal_work: local.Work,
    client_optimizer: optax.GradientTransformation,
    personal_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedDPA-F: `rounds` rounds of FedAvg; afterwards each drawn client trains its own adapter.

    In the later rounds clients upload nothing and the server does not change. A client keeps the
    difference between its own theta and the server's, which is zero until it trains.

    Args:
        task: the model and its loss f_k.
        work: local work in each round of FedAvg.
        rounds: rounds of FedAvg, from round 0.
        a: weight of the local adapter in the deployed model, from 0 to 1; the paper's code: 0.5.
        personal_work: local work on the local adapter in each later round.
        client_optimizer: of the local steps of FedAvg; restarted in each round.
        personal_optimizer: of the local adapter, likewise.
        mean: of the uploads; weighted by examples by default.
    """
    check_number("a", a, 0.0, 1.0)
    check_number("rounds", rounds, 1)

    def client(base, theta, k):
        federated, loss = k.round < rounds, partial(task.loss, base)
        trained, metrics = local.sgd(
            loss, client_optimizer, theta, local.only_if(k, federated), work
        )
        mine, personal = local.sgd(
            loss,
            personal_optimizer,
            optax.tree.add(theta, k.state),
            local.only_if(local.again(k, 1), ~federated),
            personal_work,
        )
        delta = optax.tree.sub(trained, theta)
        mean_loss = jnp.where(federated, metrics["loss"], personal["loss"])
        own, sent = optax.tree.sub(mine, theta), trees.nbytes_if(federated, delta)
        return Reply(delta, own, {"loss": mean_loss}, sent=sent)

    def deploy(server, own):
        mine = optax.tree.add(server.theta, own)
        full = optax.tree.add_scale(server.theta.full, a, own.full)
        return server.base, mixture(server.theta, mine.factors, 1 - a, a)._replace(full=full)

    return averaging(
        task,
        client,
        init_client=lambda server, key: optax.tree.zeros_like(server.theta),
        deploy=deploy,
        mean=mean,
    )
