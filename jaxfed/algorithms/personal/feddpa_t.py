"""FedDPA: Yang et al., NeurIPS 2024 (arXiv 2403.19211): a global adapter and a local one.

FedDPA-F trains in sequence:     (A, B) <- FedAvg; then (C_k, D_k) <- (A, B), trained locally
FedDPA-T alternates each round:  (C_k, D_k) <- training of f_k(W + (1 - a) s A B + a s C_k D_k)
                                 (A_k, B_k) <- training of f_k(W + s A B), then averaged

A client deploys W + (1 - a) s A B + a s C_k D_k with one `a` for all inputs. With `instances` it
has the paper's instance-wise weight in place of a: a times the mean cosine similarity of the
input's features to those of so many of the client's training examples. The features are the inputs
of the model's last layer, with the local adapter alone.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.lowrank.factors import Factors
from jaxfed.tasks.task import Task
from jaxfed.templates import (
    Instances,
    averaging,
    check_number,
    features_of_some,
    instance_wise,
    mixture,
    nothing_seen,
    two_adapters,
)


class Kept(NamedTuple):
    """A client's state with instance-wise weights."""

    own: dict[str, Factors]  # C_k and D_k
    seen: jax.Array  # [S, d] features of some of its training examples


def feddpa_t(
    task: Task,
    work: local.Work,
    *,
    rank: int,
    alpha: float | None = None,
    a: float,
    instances: int | None = None,
    personal_work: local.Work,
    client_optimizer: optax.GradientTransformation,
    personal_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedDPA-T; each client keeps a local adapter of the given `rank`.

    As in the released code, the local adapter is trained first, beside the global adapter as
    received. Then the global adapter is trained without it. Weights trained whole are shared.

    Args:
        task: the model and its loss f_k.
        work: local work on the global adapter in each round.
        rank: of the local adapter.
        alpha: the local adapter has scale alpha / rank; 1 by default.
        a: weight of the local adapter, from 0 to 1; the paper's code: 0.5.
        instances: how many training examples a client keeps the features of, for instance-wise
            weights; the paper's code: 5. None for one weight.
        personal_work: local work on the local adapter in each round.
        client_optimizer: of the global adapter; restarted in each round.
        personal_optimizer: of the local adapter, likewise.
        mean: of the uploads; weighted by examples by default.
    """
    check_number("a", a, 0.0, 1.0)

    def join(theta, own):
        return mixture(theta, own, 1 - a, a)

    def client(base, theta, k):
        def loss_of_own(own, batch, key):
            return task.loss(base, join(theta, own), batch, key)

        loss = partial(task.loss, base)
        own, _ = local.sgd(
            loss_of_own, personal_optimizer, k.state, local.again(k, 1), personal_work
        )
        trained, metrics = local.sgd(loss, client_optimizer, theta, k, work)
        return Reply(optax.tree.sub(trained, theta), own, metrics)

    static = two_adapters(task, client, rank=rank, alpha=alpha, mean=mean, join=join)
    if instances is None:
        return static
    check_number("instances", instances, 1)

    def init_client(server, key):
        seen = nothing_seen(task, server.base, server.theta, instances)
        return Kept(static.init_client(server, key), seen)

    def noting(base, theta, k):
        reply = client(base, theta, k._replace(state=k.state.own))
        alone = theta._replace(factors=reply.state)
        seen = features_of_some(task, base, alone, k, instances)
        return reply._replace(state=Kept(reply.state, jnp.where(k.count > 0, seen, k.state.seen)))

    def deploy(server, state):
        return server.base, Instances(server.theta, *state)

    return averaging(
        instance_wise(task, a), noting, init_client=init_client, deploy=deploy, mean=mean
    )
