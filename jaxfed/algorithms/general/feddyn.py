"""FedDyn: Acar et al., ICLR 2021, Algorithm 1.

client k: w_k <- argmin F_k(w) - <h_k, w> + alpha/2 ||w - w_t||^2
          h_k <- h_k - alpha (w_k - w_t)
server:   h <- h - alpha / N sum_{k in S} (w_k - w_t)
          w <- mean_k w_k - h / alpha
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task


class Server(NamedTuple):
    base: PyTree  # frozen
    theta: PyTree  # trained, w_t
    h: PyTree


def feddyn(
    task: Task,
    work: local.Work,
    *,
    penalty: float,
    clients: int,
    client_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.uniform_mean,
) -> Algorithm:
    """FedDyn over theta; each of the population's `clients` keeps h_k, its gradient at w_k.

    `penalty` is the paper's alpha. The local problem is solved by `work` steps of the client
    optimizer. The record's loss is F_k, without the two added terms. The paper averages uniformly.
    """
    if not penalty > 0:
        raise ValueError(f"penalty={penalty}: the server divides by it; use a number above 0")

    def init(key):
        base, theta = task.init(key)
        return Server(base, theta, optax.tree.zeros_like(theta))

    def client(base, w, k):
        def dynamic(g, v):
            return jax.tree.map(lambda g, v, h, w: g - h + penalty * (v - w), g, v, k.state, w)

        optimizer = optax.chain(optax.stateless(dynamic), client_optimizer)
        w_k, metrics = local.sgd(partial(task.loss, base), optimizer, w, k, work)
        delta = optax.tree.sub(w_k, w)
        return Reply(delta, optax.tree.add_scale(k.state, -penalty, delta), metrics)

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        delta = mean(reply.upload, cohort.weight)
        share = jnp.sum(cohort.weight > 0) / clients  # |S| / N
        h = optax.tree.add_scale(server.h, -penalty * share, delta)
        theta = optax.tree.add_scale(optax.tree.add(server.theta, delta), -1 / penalty, h)
        return server._replace(theta=theta, h=h), reply.state, reply.metrics

    return Algorithm(
        init,
        lambda server, key: optax.tree.zeros_like(server.theta),  # h_k
        run_round,
        lambda server, state: (server.base, server.theta),
        task,
        clients=clients,
    )
