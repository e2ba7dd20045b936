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
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import check_weight, mixture, two_adapters


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
    """FedDPA-T; each client keeps factors of the given `rank` and scale alpha / rank.

    As in the released code the local adapter goes first, beside the global one as received, and the
    global one is then trained by itself. Weights trained whole are shared.
    """
    check_weight(a)

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

    return two_adapters(task, client, rank=rank, alpha=alpha, mean=mean, join=join)
