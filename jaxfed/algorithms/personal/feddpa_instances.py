"""FedDPA-T with instance-wise weights: Yang et al., NeurIPS 2024 (arXiv 2403.19211).

client k trains as in `feddpa_t`, and keeps e_i, features of S of its training examples
it deploys, of an input x,   W + (1 - w(x)) s A B + w(x) s C_k D_k
                             w(x) = a mean_i cos(e(x), e_i)

The features e are the inputs of the model's last layer, with the local adapter alone.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree
from jaxfed.algorithms.personal.feddpa_t import alternating, mixed
from jaxfed.lowrank.factors import Factors
from jaxfed.tasks.task import Task
from jaxfed.templates import (
    Instances,
    averaging,
    check_number,
    features_of_some,
    instance_wise,
    nothing_seen,
    two_adapters,
)


class Kept(NamedTuple):
    """A client's state."""

    own: dict[str, Factors]  # C_k and D_k
    seen: jax.Array  # [S, d] features of some of its training examples


def feddpa_instances(
    task: Task,
    work: local.Work,
    *,
    rank: int,
    alpha: float | None = None,
    a: float,
    instances: int,
    personal_work: local.Work,
    client_optimizer: optax.GradientTransformation,
    personal_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedDPA-T whose clients weigh their two adapters for each input.

    The task needs `features` and `example`. A client that has not trained deploys the shared one.

    Args:
        task: the model and its loss f_k.
        work: local work on the global adapter in each round.
        rank: of the local adapter.
        alpha: the local adapter has scale alpha / rank; 1 by default.
        a: weight of the local adapter in training, and the most in use; the paper's code: 0.5.
        instances: S, the training examples whose features a client keeps; the paper's code: 5.
        personal_work: local work on the local adapter in each round.
        client_optimizer: of the global adapter; restarted in each round.
        personal_optimizer: of the local adapter, likewise.
        mean: of the uploads; weighted by examples by default.
    """
    check_number("a", a, 0.0, 1.0)
    check_number("instances", instances, 1)
    client = alternating(task, work, a, personal_work, client_optimizer, personal_optimizer)
    static = two_adapters(task, client, rank=rank, alpha=alpha, mean=mean, join=mixed(a))

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
