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

from jaxfed import aggregate, local, trees
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import as_trained, check_number


class Server(NamedTuple):
    """The server's state."""

    base: PyTree  # frozen
    theta: PyTree  # trained, w_t
    h: PyTree  # the mean of all h_k


def feddyn(
    task: Task,
    work: local.Work,
    *,
    penalty: float,
    clients: int,
    client_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.uniform_mean,
) -> Algorithm:
    """FedDyn over theta; each client keeps h_k, which starts at zero.

    If a client solves its local problem exactly, h_k = grad F_k(w_k). The record's loss is F_k,
    without the two additional terms.

    Args:
        task: the model and its loss F_k.
        work: local work in each round, which minimises the local problem approximately.
        penalty: alpha, the weight of the proximal term; above 0.
        clients: N, the size of the population.
        client_optimizer: of the local steps; restarted in each round.
        mean: of the uploads; uniform by default, as in the paper.
    """
    check_number("penalty", penalty, 0.0, above=True)  # the server divides by it
    check_number("clients", clients, 1)
    client_optimizer = local.accepting(client_optimizer)

    def init(key):
        base, theta = task.init(key)
        return Server(base, theta, optax.tree.zeros_like(theta))

    def client(base, w, k):
        def dynamic(g, v):
            return jax.tree.map(lambda g, v, h, w: g - h + penalty * (v - w), g, v, k.state, w)

        optimizer = optax.chain(optax.stateless(dynamic), client_optimizer)
        w_k, metrics = local.sgd(partial(task.loss, base), optimizer, w, k, work)
        delta = optax.tree.sub(w_k, w)
        h_k = optax.tree.add_scale(k.state, -penalty, trees.zero_running(delta))
        return Reply(delta, h_k, metrics)

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        delta = mean(reply.upload, cohort.weight)
        share = jnp.sum(cohort.weight > 0) / clients  # |S| / N
        h = optax.tree.add_scale(server.h, -penalty * share, trees.zero_running(delta))
        h = optax.tree.cast_like(h, server.h)
        theta = optax.tree.add_scale(optax.tree.add(server.theta, delta), -1 / penalty, h)
        return server._replace(theta=theta, h=h), reply.state, reply.metrics

    return Algorithm(
        init,
        lambda server, key: optax.tree.zeros_like(server.theta),  # h_k
        run_round,
        as_trained,
        task,
        clients=clients,
    )
