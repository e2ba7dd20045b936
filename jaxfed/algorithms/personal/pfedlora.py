"""pFedLoRA: Yi et al., arXiv 2310.13283, adapted to a common model as in PF2LoRA's experiments.

In the paper, each client has its own model and a small adapter of common shape, and trains the two
alternately. Here the client's own part is a second adapter (C_k, D_k) beside the common W and
(A, B). In the tables of arXiv 2503.03920 both adapters have rank 5.

    client k of the cohort, in this order:
        (C_k, D_k) <- local training of f_k(W + s A B + s_p C_k D_k), A and B frozen
        (A_k, B_k) <- local training of the same, C_k and D_k frozen
    A <- sum_k p_k A_k,  B <- sum_k p_k B_k;  C_k and D_k stay on the client
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
    """pFedLoRA; each client keeps its own factors of the given `rank`.

    Weights trained whole are shared, and trained with the shared factors.

    Args:
        task: the model and its loss f_k.
        work: local work on the shared factors in each round.
        rank: of the client's own factors; 5 in arXiv 2503.03920.
        alpha: the client's own factors have scale s_p = alpha / rank; 1 by default.
        personal_work: local work on the client's own factors in each round.
        client_optimizer: of the shared factors; restarted in each round.
        personal_optimizer: of the client's own factors, likewise.
        mean: of the uploads; weighted by examples by default.
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
