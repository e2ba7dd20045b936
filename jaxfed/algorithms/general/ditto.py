"""Ditto: Li et al., ICML 2021, Algorithm 1, around FedAvg.

    server sends w; client k of the cohort:
        w_k <- local training of F_k from w                       uploads w_k - w
        v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w))       s local steps; v_k is never sent
    w <- w + sum_k p_k (w_k - w)

Client k deploys v_k, which minimises h_k(v; w) = F_k(v) + lambda/2 ||v - w||^2. With lambda = 0 the
client learns alone; as lambda grows, v_k approaches w.
"""

from collections.abc import Callable
from functools import partial

import jax
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import averaging, check_number


def ditto(
    task: Task,
    work: local.Work,
    *,
    lam: float,
    personal_work: local.Work,
    client_optimizer: optax.GradientTransformation,
    personal_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """Ditto over theta; each client keeps v_k, its own theta, which starts at the server's.

    The paper draws clients with probability p_k and averages them uniformly. Here clients are drawn
    uniformly, and the mean weights them by p_k. The record's `loss` is the mean of F_k over the
    local steps of w_k, and `personal_loss` over those of v_k.

    Args:
        task: the model and its loss F_k.
        work: local work on w_k in each round.
        lam: lambda, the pull of v_k towards w; 0 for none.
        personal_work: local work on v_k in each round; the paper's s steps.
        client_optimizer: of w_k; restarted in each round.
        personal_optimizer: of v_k, likewise; the paper uses SGD with rate eta.
        mean: of the uploads; weighted by examples by default.
    """
    check_number("lam", lam, 0.0)
    own_optimizer = local.accepting(personal_optimizer, "personal_optimizer")

    def client(base, w, k):
        loss = partial(task.loss, base)
        w_k, metrics = local.sgd(loss, client_optimizer, w, k, work)
        pull = optax.stateless(
            lambda g, v: jax.tree.map(lambda g, v, w: g + lam * (v - w), g, v, w)
        )
        toward_w = optax.chain(pull, own_optimizer)
        v_k, personal = local.sgd(loss, toward_w, k.state, local.again(k, 1), personal_work)
        metrics = {**metrics, "personal_loss": personal["loss"]}
        return Reply(optax.tree.sub(w_k, w), v_k, metrics)

    return averaging(
        task,
        client,
        init_client=lambda server, key: server.theta,
        deploy=lambda server, v_k: (server.base, v_k),
        mean=mean,
    )
