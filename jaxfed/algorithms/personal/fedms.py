"""FedMS, or FedFMSL: Wu et al., arXiv 2312.15926: a global and a local expert, and a gate.

    round t < T: (A, B) <- FedAvg; the global expert
    afterwards, client k of the cohort, from its local expert (A_k, B_k), at first (A, B):
        a layer returns  x W + u(x) s (x A) B + v(x) s (x A_k) B_k,   (u, v) = softmax(x G)
        A_k, B_k, G_k <- local training, A and B frozen; uploads G_k - G
    G <- sum_k p_k G_k

In the paper the gate is a network with an adapter of its own, and only that adapter is averaged;
here each layer has a router G, which starts at zero, u = v = 1/2. The paper activates layers one
after the other; that is left out, as its schedule could not be verified. Weights trained whole are
trained with the global expert, and stay as they are afterwards.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, trees
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.lowrank import gates
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.tasks.task import Task
from jaxfed.templates import check_number


class Server(NamedTuple):
    """The server's state."""

    base: PyTree  # frozen
    theta: Theta  # the global expert
    router: dict[str, jax.Array]  # G, {path: [in..., 2]}


class State(NamedTuple):
    """A client's state."""

    own: dict[str, Factors]  # the local expert
    begun: jax.Array  # [] whether it has trained it


class Upload(NamedTuple):
    """The upload of each client."""

    theta: Theta  # the change of the global expert; zero after round T
    router: dict[str, jax.Array]  # the change of G; zero before


def fedms(
    task: Task,
    work: local.Work,
    *,
    rounds: int,
    personal_work: local.Work,
    client_optimizer: optax.GradientTransformation,
    personal_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedMS over the task's factors; each client keeps its local expert.

    Bytes: the expert crosses in the first stage, and down once more to a client that trains for the
    first time in the second one, in which otherwise only the routers cross.

    Args:
        task: the model and its loss.
        work: local work on the global expert in each round of the first stage.
        rounds: T, rounds of the first stage.
        personal_work: local work on local expert and router in each later round.
        client_optimizer: of the global expert; restarted in each round.
        personal_optimizer: of local expert and router, likewise.
        mean: of the uploads; weighted by examples by default.
    """
    check_number("rounds", rounds, 1)
    local.accepting(client_optimizer)
    local.accepting(personal_optimizer, "personal_optimizer")

    def init(key):
        base, theta = task.init(key)
        if not theta.factors:
            raise ValueError("no factors are trained, which could be an expert; select some")
        return Server(base, theta, gates.even_routers(theta.factors))

    def init_client(server, key):
        return State(optax.tree.zeros_like(server.theta.factors), jnp.asarray(False))

    def expert(theta, state):
        """The local expert; the global one, if the client has not begun."""
        return jax.tree.map(partial(jnp.where, state.begun), state.own, theta.factors)

    def client(base, message, k):
        theta, router = message
        first = k.round < rounds

        def loss_of_own(trained, batch, key):
            return task.loss(base, gates.routed(theta, *trained), batch, key)

        new, metrics = local.sgd(
            partial(task.loss, base), client_optimizer, theta, local.only_if(k, first), work
        )
        mine = local.only_if(local.again(k, 1), ~first)
        begin = expert(theta, k.state), router
        (own, gate), late = local.sgd(loss_of_own, personal_optimizer, begin, mine, personal_work)
        begun = k.state.begun | (mine.count > 0)
        loss = jnp.where(first, metrics["loss"], late["loss"])
        upload = Upload(optax.tree.sub(new, theta), optax.tree.sub(gate, router))
        needed = first | ~k.state.begun
        return Reply(
            upload,
            State(jax.tree.map(partial(jnp.where, begun), own, k.state.own), begun),
            {"loss": loss},
            received=(trees.nbytes_if(needed, theta), trees.nbytes_if(~first, router)),
            sent=(trees.nbytes_if(first, upload.theta), trees.nbytes_if(~first, upload.router)),
        )

    def run_round(server, cohort, for_each_client):
        message = server.theta, server.router
        reply = for_each_client(client, server.base, message, cohort)
        delta = mean(reply.upload, cohort.weight)
        theta, router = optax.tree.add(message, tuple(delta))
        return server._replace(theta=theta, router=router), reply.state, reply.metrics

    def deploy(server, state):
        own = expert(server.theta, state)
        return server.base, gates.routed(server.theta, own, server.router)

    return Algorithm(init, init_client, run_round, deploy, task)
