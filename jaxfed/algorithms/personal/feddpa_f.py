"""FedDPA: Yang et al., NeurIPS 2024 (arXiv 2403.19211): a global adapter and a local one.

FedDPA-F, after the federation:  (A, B) <- FedAvg; then (C_k, D_k) <- (A, B), trained alone
FedDPA-T, in turn, each round:   (C_k, D_k) <- training of f_k(W + (1 - a) s A B + a s C_k D_k)
                                 (A_k, B_k) <- training of f_k(W + s A B), which are averaged

A client runs W + (1 - a) s A B + a s C_k D_k with one `a` for all inputs. This is NOT the paper's
instance-wise weight, which is a times the cosine similarity between an input's embedding and those
of some training examples: it needs the embeddings of the model, which no Task has.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, trees
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import averaging, check_weight, mixture


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
    """FedDPA-F: `rounds` of FedAvg, and then clients that are drawn train an adapter of their own.

    In those later rounds the server stands still and nothing goes up. A client keeps what its own
    theta has more than the server's, so that before its training it runs the server's.
    """
    check_weight(a)

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
