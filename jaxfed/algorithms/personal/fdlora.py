"""FDLoRA: Qi et al., arXiv 2406.07925, Algorithm 1: dual LoRA, fused without gradients.

stage 1, round 0:         theta_p,k <- local training from the common start
                          theta_s <- mean of theta_p,k
stage 2, rounds 1 .. T:   theta_s,k <- inner optimizer on F_k, from theta_s
                          every H rounds: theta_p,k <- theta_s,k
                          theta_s <- outer optimizer on the mean of theta_s - theta_s,k
stage 3, from round T+1:  (w_s, w_p) <- argmin F_k(W + w_s s A B + w_p s C_k D_k), by AdaFusion

This follows descriptions of the algorithm. They disagree on the search in AdaFusion and on how it
combines the adapters. Here it is a compass search over the two weights on a few of the client's
examples, and the adapters enter as the weighted sum of their products.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, lowrank, trees
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.algorithms.general.fedavg import Server
from jaxfed.tasks.task import Task
from jaxfed.templates import check_number, mixture


class Kept(NamedTuple):
    """A client's state."""

    own: dict[str, lowrank.Factors]  # theta_p,k
    weights: jax.Array  # [2] w_s, w_p


def fdlora(
    task: Task,
    work: local.Work,
    *,
    rounds: int,
    sync: int | None,
    personal_work: local.Work,
    personal_optimizer: optax.GradientTransformation,
    inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
    shots: int,
    search: int,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.uniform_mean,
) -> Algorithm:
    """FDLoRA; each client keeps its own factors theta_p,k and the two weights of the fusion.

    All clients should take part in round 0 and once after round T, as in the paper. A client that
    misses round 0 keeps the common start as its own LoRA until the next synchronisation. A client
    that misses stage 3 deploys with weights 1/2. Weights trained whole are the server's.

    Args:
        task: the model and its loss F_k.
        work: local work of stage 2 in each round.
        rounds: T, the rounds of stage 2; round 0 and stage 3 are additional.
        sync: H, the rounds between two synchronisations; None for no synchronisation.
        personal_work: local work of stage 1.
        personal_optimizer: of stage 1.
        inner_optimizer: of the local steps of stage 2; restarted in each round.
        outer_optimizer: the server's; its gradient is the mean of theta_s - theta_s,k.
        shots: examples of a client on which AdaFusion searches.
        search: moves of the search, each with 4 evaluations of the loss.
        mean: of the uploads; uniform by default.
    """

    check_number("rounds", rounds, 0)
    check_number("sync", 1 if sync is None else sync, 1)
    check_number("shots", shots, 1)
    check_number("search", search, 1)
    outer_optimizer = local.accepting(outer_optimizer, "outer_optimizer")

    def init(key):
        base, theta = task.init(key)
        return Server(base, theta, outer_optimizer.init(theta))  # theta is theta_s

    def init_client(server, key):
        return Kept(server.theta.factors, jnp.full(2, 0.5))

    def client(base, theta, k):
        first, federated = k.round == 0, (k.round > 0) & (k.round <= rounds)
        loss, (own, weights) = partial(task.loss, base), k.state
        alone, metrics = local.sgd(
            loss, personal_optimizer, theta, local.only_if(k, first), personal_work
        )
        trained, inner = local.sgd(loss, inner_optimizer, alone, local.only_if(k, federated), work)
        synced = first if sync is None else first | (federated & (k.round % sync == 0))
        own = jax.tree.map(partial(jnp.where, synced), trained.factors, own)

        def fuse(carry, batch, key):
            weights, value = carry
            best, least = compass(
                lambda w: loss(mixture(theta, own, *w), batch, key), weights, search
            )
            return best, value + least  # of one step

        few, fusing = local.Work(shots, steps=1), local.only_if(k, k.round > rounds)
        weights, fused = local.each_step(fuse, (weights, jnp.zeros(())), fusing, few)
        delta = optax.tree.sub(trained, theta)
        return Reply(
            upload=delta,
            state=Kept(own, weights),
            metrics={"loss": metrics["loss"] + inner["loss"] + fused},  # two of them are zero
            sent=trees.nbytes_if(k.round <= rounds, delta),
        )

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        delta = mean(reply.upload, cohort.weight)
        gradient = optax.tree.scale(-1, delta)
        updates, opt = outer_optimizer.update(gradient, server.opt, server.theta)
        # stage 1 averages, stage 2 takes the outer step, stage 3 leaves the server unchanged
        first, federated = cohort.round == 0, cohort.round <= rounds
        theta, opt = jax.tree.map(
            lambda *stages: jnp.select([first, federated], stages[:2], stages[2]),
            (optax.tree.add(server.theta, delta), server.opt),
            (optax.apply_updates(server.theta, updates), opt),
            (server.theta, server.opt),
        )
        server = server._replace(theta=theta, opt=opt)
        return server, reply.state, reply.metrics

    def deploy(server, kept):
        return server.base, mixture(server.theta, kept.own, *kept.weights)

    return Algorithm(init, init_client, run_round, deploy, task)


def compass(
    f: Callable[[jax.Array], jax.Array], w: jax.Array, moves: int
) -> tuple[jax.Array, jax.Array]:
    """(w [d], f(w)) after a compass search for lower f; a move evaluates f 2 d times.

    A move goes to the best of w +- h e_i if f is lower there; otherwise it halves h, at first 1/4.
    """
    directions = jnp.concatenate([jnp.eye(len(w)), -jnp.eye(len(w))])  # [2 d, d]

    def move(_, carry):
        w, value, h = carry
        values = jax.lax.map(lambda e: f(w + h * e), directions)  # [2 d]
        best = jnp.argmin(values)
        lower = values[best] < value
        there = jnp.where(lower, w + h * directions[best], w)
        return there, jnp.minimum(values[best], value), jnp.where(lower, h, h / 2)

    return jax.lax.fori_loop(0, moves, move, (w, f(w), jnp.full_like(w[0], 0.25)))[:2]
