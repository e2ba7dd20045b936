"""FedALT: Bian et al., AAAI 2026 (arXiv 2503.11880): an adapter, and the rest of the world's.

Client k's layer returns  x W + u(x) s (x R_k) Q_k + v(x) s (x A_k) B_k,  (u, v) = softmax(x G_k).

    client k of the cohort:
        R_k, Q_k = means of A_j and of B_j over all other clients j; frozen
        A_k, B_k, G_k <- local training; uploads the change of A_k and B_k

The server sends (A, B), the mean over all N clients, from which a client takes itself out:
R_k = (N A - A_k) / (N - 1). So one adapter crosses each way, and clients that are not drawn count
with what they sent last. With all clients in each round this is the authors' rule.

All adapters start alike. Routers start at zero, u = v = 1/2; they stay on the client. Weights
trained whole are shared and averaged over the cohort, as in FedAvg. The mean is that of adapters
which stay on clients, so it cannot be merged into W, and what a client uploads must be what it
keeps: combine.accumulate, compressed, flasc, private and skip_nonfinite refuse it.
"""

from typing import NamedTuple

import jax
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, Reply
from jaxfed.lowrank import gates
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.tasks.task import Task
from jaxfed.templates import Server, check_number


class State(NamedTuple):
    """A client's state."""

    own: dict[str, Factors]  # A_k and B_k
    router: dict[str, jax.Array]  # G_k, {path: [in..., 2]}


def fedalt(
    task: Task,
    work: local.Work,
    *,
    clients: int,
    client_optimizer: optax.GradientTransformation,
) -> Algorithm:
    """FedALT over the task's factors.

    Args:
        task: the model and its loss.
        work: local work in each round.
        clients: N, the size of the population, at least 2.
        client_optimizer: of the client's adapter, its router and weights trained whole; restarted
            in each round.
    """
    check_number("clients", clients, 2)
    local.accepting(client_optimizer)

    def init(key):
        server = Server(*task.init(key))
        if not server.theta.factors:
            raise ValueError("no factors are trained, which clients could have apart; select some")
        return server

    def init_client(server, key):
        return State(server.theta.factors, gates.even_routers(server.theta.factors))

    def rest(theta, state):
        """Theta with R_k and Q_k as its factors."""

        def others(mean, own):
            return (clients * mean - own) / (clients - 1)

        return theta._replace(factors=jax.tree.map(others, theta.factors, state.own))

    def client(base, theta, k):
        frozen = rest(theta, k.state).factors

        def loss(trained, batch, key):
            full, (own, router) = trained
            mixed = gates.routed(Theta(full, frozen), own, router)
            return task.loss(base, mixed, batch, key)

        begin = theta.full, k.state
        (full, state), metrics = local.sgd(loss, client_optimizer, begin, k, work)
        change = optax.tree.sub(Theta(full, state.own), Theta(theta.full, k.state.own))
        return Reply(change, state, metrics)

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        full = aggregate.weighted_mean(reply.upload.full, cohort.weight)
        present = (cohort.weight > 0).astype(cohort.weight.dtype)
        factors = aggregate.weighted_mean(reply.upload.factors, present / clients)
        theta = optax.tree.add(server.theta, Theta(full, factors))
        return server._replace(theta=theta), reply.state, reply.metrics

    def deploy(server, state):
        return server.base, gates.routed(rest(server.theta, state), state.own, state.router)

    return Algorithm(
        init,
        init_client,
        run_round,
        deploy,
        task,
        clients=clients,
        sends_change=False,
        sums_states=True,
    )
