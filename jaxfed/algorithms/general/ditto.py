"""Ditto: Li et al., ICML 2021, Algorithm 1, around FedAvg.

    server sends w; client k of the cohort:
        w_k <- local training of F_k from w                       sent: w_k - w
        v_k <- v_k - eta (grad F_k(v_k) + lambda (v_k - w))       s local steps; v_k stays at home
    w <- w + sum_k p_k (w_k - w)

A client runs its v_k, which minimises h_k(v; w) = F_k(v) + lambda/2 ||v - w||^2: with lambda = 0 it
has learned alone, and as lambda grows it goes to w.
"""

from collections.abc import Callable
from functools import partial

import jax
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import averaging


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
    """Ditto over theta; each client keeps v_k, a theta of its own, which starts at the server's.

    The paper draws clients by p_k and averages them uniformly; here they are drawn uniformly, and
    the mean weighs them. The record's loss is F_k along w_k, `personal_loss` F_k along v_k.
    """
    if lam < 0:
        raise ValueError(f"lam={lam} would push clients away from the server; use lam >= 0")

    def client(base, w, k):
        loss = partial(task.loss, base)
        w_k, metrics = local.sgd(loss, client_optimizer, w, k, work)
        pull = optax.stateless(
            lambda g, v: jax.tree.map(lambda g, v, w: g + lam * (v - w), g, v, w)
        )
        toward_w = optax.chain(pull, personal_optimizer)
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
