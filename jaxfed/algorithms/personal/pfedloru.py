"""pFedLoRU: Park and Klabjan, arXiv 2409.12371: FedLoRU for statistically heterogeneous clients.

Client k has W + s L U + s_p A_k B_k: global factors (L, U) and its own (A_k, B_k).

    client k of the cohort, in this order:
        (L_k, U_k) <- more epochs on f_k(W + s L U + s_p A_k B_k), A_k and B_k fixed
        (A_k, B_k) <- fewer epochs on the same, L_k and U_k fixed
    L <- sum_k p_k L_k,  U <- sum_k p_k U_k
    if t mod tau == 0:  W <- W + s L U          (combine.accumulate; A_k B_k is never merged)

The authors' rebuttal says that the global factors come first and have more epochs, but gives no
numbers. B_k starts at zero, so a client's first model is the global model.

Reviewers asked if the two parts cancel. The metric `cosine` is that of s L_k U_k and s_p A_k B_k at
the end of a client's round: <L_k U_k, A_k B_k> / (|L_k U_k| |A_k B_k|), over all layers together.
Of the global part it sees what is not merged yet.
"""

from collections.abc import Callable, Sequence

import jax
import optax

from jaxfed import aggregate, combine, local, lowrank
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import two_adapters


def pfedloru(
    task: Task,
    work: local.Work,
    *,
    every: int | Sequence[int],
    restart: Callable,
    rank: int,
    alpha: float | None = None,
    personal_work: local.Work,
    client_optimizer: optax.GradientTransformation,
    personal_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """pFedLoRU; each client keeps its own factors of the given `rank`.

    Weights trained whole are global, and trained with the global factors.

    Args:
        task: the model and its loss f_k.
        work: local work on the global factors in each round.
        every: tau, or the rounds after which to merge; see combine.accumulate.
        restart: how the global factors continue after a merge, likewise.
        rank: of the client's own factors.
        alpha: the client's own factors have scale s_p = alpha / rank; 1 by default.
        personal_work: local work on the client's own factors, with fewer epochs than `work`.
        client_optimizer: of the global factors; restarted in each round.
        personal_optimizer: of the client's own factors, likewise.
        mean: of the uploads; weighted by examples by default.
    """

    def client(base, theta, k):
        def loss(theta, own, batch, key):
            return task.loss(base, lowrank.joined(theta, own), batch, key)

        def loss_of_global(theta, batch, key):
            return loss(theta, k.state, batch, key)

        def loss_of_own(own, batch, key):
            return loss(trained, own, batch, key)

        trained, metrics = local.sgd(loss_of_global, client_optimizer, theta, k, work)
        own, _ = local.sgd(
            loss_of_own, personal_optimizer, k.state, local.again(k, 1), personal_work
        )
        metrics = {**metrics, "cosine": lowrank.cosine(trained.factors, own)}
        return Reply(optax.tree.sub(trained, theta), own, metrics)

    inner = two_adapters(task, client, rank=rank, alpha=alpha, mean=mean)
    return combine.accumulate(inner, every=every, restart=restart)
