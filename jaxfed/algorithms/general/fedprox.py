"""FedProx: Li et al., MLSys 2020, Algorithm 2.

client k of the cohort:  w_k <- local training of F_k(w) + mu/2 ||w - w_t||^2 from w_t
server:                  w_{t+1} <- sum_k p_k w_k
"""

from collections.abc import Callable

import jax
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree
from jaxfed.algorithms.general.fedavg import fedavg
from jaxfed.tasks.task import Task
from jaxfed.templates import check_number


def fedprox(
    task: Task,
    work: local.Work,
    *,
    mu: float,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation = optax.sgd(1.0),  # noqa: B008 (immutable)
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedAvg whose clients minimise h_k(w; w_t) = F_k(w) + mu/2 ||w - w_t||^2.

    The record's loss is F_k, without the proximal term.

    Args:
        task: the model and its loss F_k.
        work: local work of a client in each round.
        mu: weight of the proximal term; the paper tunes it over 0.001 to 1.
        client_optimizer: of the local steps; restarted in each round.
        server_optimizer: takes the negative mean change as its gradient; averages by default.
        mean: of the uploads; weighted by examples by default.
    """
    check_number("mu", mu, 0.0)
    return fedavg(
        task,
        work,
        client_optimizer=optax.chain(pull(mu), local.accepting(client_optimizer)),
        server_optimizer=server_optimizer,
        mean=mean,
    )


def pull(mu: float) -> optax.GradientTransformation:
    """A transformation that adds mu (w - w_t) to the gradient; w_t are the parameters at `init`."""

    def update(grads, w_t, w=None):
        return jax.tree.map(lambda g, new, old: g + mu * (new - old), grads, w, w_t), w_t

    return optax.GradientTransformation(lambda w_t: w_t, update)
