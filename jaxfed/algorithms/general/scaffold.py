"""SCAFFOLD: Karimireddy et al., ICML 2020, Algorithm 1, option II.

client i of the cohort S:  y_i <- x, then K times  y_i <- y_i - eta_l (g_i(y_i) - c_i + c)
                           c_i^+ <- c_i - c + (x - y_i) / (K eta_l)
server:                    x <- x + eta_g mean_i (y_i - x)
                           c <- c + |S| / N mean_i (c_i^+ - c_i)
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
    theta: PyTree  # trained, x
    c: PyTree  # the server's control variate


class Message(NamedTuple):
    """The message to each client."""

    theta: PyTree
    c: PyTree


class Upload(NamedTuple):
    """The upload of each client."""

    theta: PyTree  # y_i - x
    c: PyTree  # c_i^+ - c_i


def scaffold(
    task: Task,
    work: local.Work,
    *,
    learning_rate: float,
    clients: int,
    server_learning_rate: float = 1.0,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.uniform_mean,
) -> Algorithm:
    """SCAFFOLD over theta; each client keeps its control variate c_i, which starts at zero.

    The local step is y <- y - eta_l (g(y) - c_i + c). It must be plain SGD, because option II
    divides by the learning rate.

    Args:
        task: the model and its loss.
        work: local work of a client in each round; the paper's K steps.
        learning_rate: eta_l of the local steps; above 0.
        clients: N, the size of the population.
        server_learning_rate: eta_g; the paper's experiments use 1.
        mean: of the uploads; uniform by default, as in the paper.
    """
    check_number("learning_rate", learning_rate, 0.0, above=True)  # option II divides by it
    check_number("server_learning_rate", server_learning_rate, 0.0)
    check_number("clients", clients, 1)

    def init(key):
        base, theta = task.init(key)
        if server_learning_rate != 1:
            trees.refuse_running(theta, f"server_learning_rate={server_learning_rate} is not 1")
        return Server(base, theta, optax.tree.zeros_like(theta))

    def init_client(server, key):
        return optax.tree.zeros_like(server.theta)  # c_i

    def client(base, message, k):
        x, c = message
        correction = optax.tree.sub(c, k.state)
        optimizer = optax.chain(
            optax.stateless(lambda g, _: optax.tree.add(g, correction)), optax.sgd(learning_rate)
        )
        y, metrics = local.sgd(partial(task.loss, base), optimizer, x, k, work)
        steps = work.local_steps(k.count)
        delta = optax.tree.sub(y, x)
        # c_i^+ = c_i - c + (x - y) / (K eta_l); a client that takes no step keeps its c_i
        change = optax.tree.add_scale(
            optax.tree.scale(-1, c), -1 / (jnp.maximum(steps, 1) * learning_rate), delta
        )
        change = jax.tree.map(lambda d: jnp.where(steps > 0, d, 0), trees.zero_running(change))
        change = optax.tree.cast_like(change, c)
        return Reply(Upload(delta, change), optax.tree.add(k.state, change), metrics)

    def run_round(server, cohort, for_each_client):
        message = Message(server.theta, server.c)
        reply = for_each_client(client, server.base, message, cohort)
        delta = mean(reply.upload, cohort.weight)
        share = jnp.sum(cohort.weight > 0) / clients  # |S| / N
        theta = optax.tree.add_scale(server.theta, server_learning_rate, delta.theta)
        c = optax.tree.cast_like(optax.tree.add_scale(server.c, share, delta.c), server.c)
        return server._replace(theta=theta, c=c), reply.state, reply.metrics

    return Algorithm(init, init_client, run_round, as_trained, task, clients=clients)
