"""FedLin: Mitra et al., NeurIPS 2021 (arXiv 2102.07053), Algorithm 1: gradient tracking.

    client k, first exchange:   g_k <- grad F_k(w_t) on all its examples
    server:                     g <- sum_k p_k g_k
    client k, second exchange:  w_k <- w_t; local steps w_k <- w_k - eta (grad F_k(w_k) - g_k + g)
    server:                     w_{t+1} <- w_t + sum_k p_k (w_k - w_t)

Where g = 0 every client stands still, so the optimum of the mean is a fixed point with any number
of local steps, though clients differ. Unlike SCAFFOLD's clients, these keep nothing.
"""

from collections.abc import Callable
from functools import partial

import jax
import optax

from jaxfed import aggregate, local, values
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import Server, stateless


def fedlin(
    task: Task,
    work: local.Work,
    *,
    client_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedLin over theta, without the paper's sparsified gradients. Clients keep nothing.

    A client passes once more over its examples, in batches of `work`, for its own gradient. With
    all clients in a round and exact gradients the optimum is reached linearly.
    """
    client_optimizer = local.accepting(client_optimizer)
    values.function("mean", mean, "a function of uploads and weights, such as weighted_mean")
    values.kind("work", work, local.Work, "a local.Work, such as local.Work(10, epochs=1)")
    once = local.Work(work.batch_size, epochs=1, shuffle=False)

    def gradient(base, w, k):
        def add(total, batch, key):
            g = jax.grad(partial(task.loss, base))(w, batch, key)
            return optax.tree.add_scale(total, batch["mask"].sum() / k.count, g)

        g = local.each_step(add, optax.tree.zeros_like(w), k, once)
        return Reply(g, g, {})

    def train(known, g, k):  # W and w_t are on the client since the first exchange
        base, w = known
        correction = optax.tree.sub(g, k.state)
        shifted = optax.stateless(lambda grads, _: optax.tree.add(grads, correction))
        optimizer = optax.chain(shifted, client_optimizer)
        w_k, metrics = local.sgd(partial(task.loss, base), optimizer, w, k, work)
        return Reply(optax.tree.sub(w_k, w), (), metrics)

    def run_round(server, cohort, for_each_client):
        first = for_each_client(gradient, server.base, server.theta, cohort)
        g = mean(first.upload, cohort.weight)
        tracking = cohort._replace(state=first.state)  # g_k
        reply = for_each_client(train, (server.base, server.theta), g, tracking)
        delta = mean(reply.upload, cohort.weight)
        theta = optax.tree.add(server.theta, delta)
        return server._replace(theta=theta), cohort.state, reply.metrics

    return stateless(task, lambda key: Server(*task.init(key)), run_round)
