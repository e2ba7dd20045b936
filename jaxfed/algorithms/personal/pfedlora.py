"""pFedLoRA: Yi et al., arXiv 2310.13283, as PF2LoRA's experiments carry it over to one model.

In the paper each client has a model of its own and a small adapter of common shape, and trains them
in turn. Here the client's own part is a second adapter (C_k, D_k) beside a common W and (A, B); in
the tables of arXiv 2503.03920 both have rank 5.

    client k of the cohort, in this order:
        (C_k, D_k) <- local training of f_k(W + s A B + s_p C_k D_k), A and B frozen
        (A_k, B_k) <- local training of the same, C_k and D_k frozen
    A <- sum_k p_k A_k,  B <- sum_k p_k B_k;  C_k and D_k stay at home
"""

from collections.abc import Callable

import jax
import optax

from jaxfed import aggregate, local, lowrank
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import two_adapters


def pfedlora(
    task: Task,
    work: local.Work,
    *,
    rank: int,
    alpha: float | None = None,
    personal_work: local.Work,
    client_optimizer: optax.GradientTransformation,
    personal_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """pFedLoRA; each client keeps factors of the given `rank` and scale alpha / rank.

    `personal_work` is done on the client's factors, `work` on the shared ones and on the weights
    that are trained whole.
    """

    def client(base, theta, k):
        def loss(theta, own, batch, key):
            return task.loss(base, lowrank.joined(theta, own), batch, key)

        def loss_of_own(own, batch, key):
            return loss(theta, own, batch, key)

        def loss_of_shared(theta, batch, key):
            return loss(theta, own, batch, key)

        own, _ = local.sgd(
            loss_of_own, personal_optimizer, k.state, local.again(k, 1), personal_work
        )
        trained, metrics = local.sgd(loss_of_shared, client_optimizer, theta, k, work)
        return Reply(optax.tree.sub(trained, theta), own, metrics)

    return two_adapters(task, client, rank=rank, alpha=alpha, mean=mean)
