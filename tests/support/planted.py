"""A right algorithm with exact aggregation, and the wrong ones that differ from it in one place."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import Algorithm, Reply, aggregate, local, lowrank
from jaxfed.lowrank import Factors


class Server(NamedTuple):
    base: dict
    theta: lowrank.Theta


def declared(server, t):
    return 4 if t else 0


def exact(
    task,
    work,
    learning_rate=0.05,
    *,
    residual: Callable = lambda r, scale: r,
    mean: Callable = aggregate.weighted_mean,
    state: Callable = lambda states: states,
    sent: Callable = lambda k: None,
    broadcast: Callable = declared,
) -> Algorithm:
    """FedEx-LoRA whose clients keep what they trained last."""

    def client(base, theta, k):
        trained, metrics = local.sgd(
            partial(task.loss, base), optax.sgd(learning_rate), theta, k, work
        )
        upload = optax.tree.sub(trained, theta)
        return Reply(upload, trained.factors["head/kernel"].b, metrics, sent=sent(k))

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        theta = optax.tree.add(server.theta, mean(reply.upload, cohort.weight))
        base = dict(server.base)
        for path, f in server.theta.factors.items():
            each: Factors = jax.tree.map(jnp.add, f, reply.upload.factors[path])
            products = jax.vmap(lowrank.product)(each)
            rest = jnp.tensordot(cohort.weight, products, 1) - lowrank.product(theta.factors[path])
            base[path] = base[path] + residual(rest, f.scale)
        return Server(base, theta), state(reply.state), reply.metrics

    return Algorithm(
        init=lambda key: Server(*task.init(key)),
        init_client=lambda server, key: jnp.zeros_like(server.theta.factors["head/kernel"].b),
        run_round=run_round,
        deploy=lambda server, state: (server.base, server.theta),
        task=task,
        broadcast=broadcast,
    )


def first(stacked, weight):
    return jax.tree.map(lambda x: x[0], stacked)


def plain(stacked, weight):
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)


def averaged(states):
    return jnp.broadcast_to(jnp.mean(states, axis=0), states.shape)


def shrinking(task, work, learning_rate=0.05) -> Algorithm:
    """FedEx-LoRA whose server scales the weights that are trained whole."""
    fed = exact(task, work, learning_rate)

    def run_round(server, cohort, for_each_client):
        server, states, metrics = fed.run_round(server, cohort, for_each_client)
        full = jax.tree.map(lambda x: 0.99 * x, server.theta.full)
        return server._replace(theta=server.theta._replace(full=full)), states, metrics

    return fed._replace(run_round=run_round)


PLANTED = {
    "weights trained whole shrink": shrinking,
    "alpha / r is forgotten": partial(exact, residual=lambda r, scale: r / scale),
    "the residual is transposed": partial(exact, residual=lambda r, scale: r.T),
    "only the first client is averaged": partial(exact, mean=first),
    "weights are forgotten": partial(exact, mean=plain, residual=lambda r, scale: 0 * r),
    "a personal state is averaged": partial(exact, state=averaged),
    "bytes are understated": partial(exact, sent=lambda k: 16),
    "a change of W is silent": partial(exact, broadcast=lambda server, t: 0),
}
