"""FedDPA: Yang et al., NeurIPS 2024 (arXiv 2403.19211): a global adapter and a local one.

FedDPA-F trains in sequence:     (A, B) <- FedAvg; then (C_k, D_k) <- (A, B), trained locally
FedDPA-T alternates each round:  (C_k, D_k) <- training of f_k(W + (1 - a) s A B + a s C_k D_k)
                                 (A_k, B_k) <- training of f_k(W + s A B), then averaged

A client deploys W + (1 - a) s A B + a s C_k D_k with one `a` for all inputs; `feddpa_instances`
has a weight for each.
"""

from collections.abc import Callable, Mapping
from functools import partial

import jax
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, Client, PyTree, Reply
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.tasks.task import Task
from jaxfed.templates import check_number, mixture, two_adapters


def feddpa_t(
    task: Task,
    work: local.Work,
    *,
    rank: int,
    alpha: float | None = None,
    a: float,
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
        personal_work: local work on the local adapter in each round.
        client_optimizer: of the global adapter; restarted in each round.
        personal_optimizer: of the local adapter, likewise.
        mean: of the uploads; weighted by examples by default.
    """
    check_number("a", a, 0.0, 1.0)
    client = alternating(task, work, a, personal_work, client_optimizer, personal_optimizer)
    return two_adapters(task, client, rank=rank, alpha=alpha, mean=mean, join=mixed(a))


def mixed(a: float) -> Callable[[Theta, Mapping[str, Factors]], Theta]:
    """(theta, own) -> W + (1 - a) s A B + a s C D."""
    return lambda theta, own: mixture(theta, own, 1 - a, a)


def alternating(
    task: Task,
    work: local.Work,
    a: float,
    personal_work: local.Work,
    client_optimizer: optax.GradientTransformation,
    personal_optimizer: optax.GradientTransformation,
) -> Client:
    """A client of FedDPA-T: the local adapter in the mixture, then the global one alone."""
    join = mixed(a)

    def client(base, theta, k):
        def loss_of_own(own, batch, key):
            return task.loss(base, join(theta, own), batch, key)

        loss = partial(task.loss, base)
        own, _ = local.sgd(
            loss_of_own, personal_optimizer, k.state, local.again(k, 1), personal_work
        )
        trained, metrics = local.sgd(loss, client_optimizer, theta, k, work)
        return Reply(optax.tree.sub(trained, theta), own, metrics)

    return client
