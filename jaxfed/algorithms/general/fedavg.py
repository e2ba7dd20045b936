"""FedAvg: McMahan et al., AISTATS 2017, Algorithm 1, with the server step of FedOpt.

    client k of the cohort:  w_k <- local training of F_k from w_t; uploads w_k - w_t
    server:                  w_{t+1} <- w_t + sum_k p_k (w_k - w_t)     (or its optimizer's step)

If every weight is trained, this is FedAvg. With factors as theta it is FedLoRA: each client trains
A and B, and the server averages A and B separately (the baseline FedLoRA of arXiv 2409.12371).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax

from jaxfed import aggregate, local, values
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import as_trained


class Server(NamedTuple):
    """The server's state."""

    base: PyTree  # frozen
    theta: PyTree  # trained, w_t
    opt: PyTree  # the server optimizer's state


def fedavg(
    task: Task,
    work: local.Work,
    *,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation = optax.sgd(1.0),  # noqa: B008 (immutable)
    keep_moments: bool = False,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedAvg over any theta. Clients keep nothing or, with `keep_moments`, their optimizer's state.

    w_{t+1} = w_t + sum_k p_k (w^k - w_t) with the default server optimizer. Another optax
    optimizer gets the negative mean change as its gradient (Reddi et al., ICLR 2021, Algorithm 1).
    """
    client_optimizer = local.accepting(client_optimizer)
    server_optimizer = local.accepting(server_optimizer, "server_optimizer")
    values.function("mean", mean, "a function of uploads and weights, such as weighted_mean")
    values.kind("keep_moments", keep_moments, bool, "True or False")

    def init(key):
        base, theta = task.init(key)
        return Server(base, theta, server_optimizer.init(theta))

    def init_client(server, key):
        return client_optimizer.init(server.theta) if keep_moments else ()

    def client(base, theta, k):  # ClientUpdate(k, w)
        opt = k.state if keep_moments else client_optimizer.init(theta)
        trained, opt, metrics = local.continued(
            partial(task.loss, base), client_optimizer, theta, opt, k, work
        )
        return Reply(optax.tree.sub(trained, theta), opt if keep_moments else (), metrics)

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        delta = mean(reply.upload, cohort.weight)
        gradient = optax.tree.scale(-1, delta)
        updates, opt = server_optimizer.update(gradient, server.opt, server.theta)
        theta = optax.apply_updates(server.theta, updates)
        return server._replace(theta=theta, opt=opt), reply.state, reply.metrics

    return Algorithm(init, init_client, run_round, as_trained, task)
