"""mFedLoRU: Park and Klabjan, arXiv 2409.12371: FedLoRU for clients of unequal means.

The server keeps A [m, r] and B [r, n]. Client k trains factors of these factors, of its own rank:

    W + s (A + a A_d A_u) (B + a B_d B_u)     A_d [m, r_k], A_u [r_k, r], B_d [r, r_k], B_u [r_k, n]

    client k of the cohort: A_u = B_u = 0; trains the four, and sends them
    A <- A + a sum_k p_k A_d A_u,   B <- B + a sum_k p_k B_d B_u
    if t mod tau == 0:  W <- W + s A B          (combine.accumulate)

What the server recovers is linear in the clients' products, so A and B are exact means (their
product is not). THIS SCHEME IS FROM A DESCRIPTION: that updates are nested and ranks suit each
client is the authors' word, but neither pseudo-code nor code of theirs could be had. Our own choice
are one r_k for A and B, one a for all clients, and down factors drawn anew in each round.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, combine, local, lowrank
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.tasks.task import Task
from jaxfed.templates import Server


def mfedloru(
    task: Task,
    work: local.Work,
    *,
    every: int | Sequence[int],
    restart: Callable,
    ranks: Sequence[int],
    alpha: float,
    client_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """mFedLoRU where client i of the population has the rank ranks[i], and a = alpha / max(ranks).

    Clients keep nothing. `every` and `restart` are those of `accumulate`. Weights that are trained
    whole are averaged as they are. A client declares the bytes of its rank.
    """
    most = max(ranks)
    if min(ranks) < 1:
        raise ValueError(f"ranks={ranks}: the least is {min(ranks)}; use at least 1")

    def client(base, theta, k):
        rank = jnp.asarray(ranks, jnp.int32)[k.id]
        drawn = lowrank.beside(around(theta), most, k.key, alpha=alpha)
        begun = {p: lowrank.truncate(f, rank) for p, f in drawn.items()}

        def loss(nested, batch, key):
            return task.loss(base, recovered(theta, nested), batch, key)

        nested, metrics = local.sgd(loss, client_optimizer, Theta(theta.full, begun), k, work)
        return Reply(nested, (), metrics, sent=lowrank.nbytes(nested, rank))

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        grown = jax.vmap(partial(recovered, server.theta))(reply.upload)  # [K, ...]
        delta = mean(optax.tree.sub(grown, server.theta), cohort.weight)
        theta = optax.tree.add(server.theta, delta)
        return server._replace(theta=theta), reply.state, reply.metrics

    inner = Algorithm(
        lambda key: Server(*task.init(key)),
        lambda server, key: (),
        run_round,
        lambda server, state: (server.base, server.theta),
        task,
        clients=len(ranks),
        sends_change=False,
    )
    return combine.accumulate(inner, every=every, restart=restart)


def around(theta: Theta) -> dict[str, Factors]:
    """{"path/a": (A, I), "path/b": (I, B)}: what factors of A and of B stand beside."""
    beside: dict[str, Factors] = {}
    for p, f in theta.factors.items():
        one = jnp.eye(f.rank, dtype=f.a.dtype)
        beside |= {f"{p}/a": Factors(f.a, one, 1.0), f"{p}/b": Factors(one, f.b, 1.0)}
    return beside


def recovered(theta: Theta, nested: Theta) -> Theta:
    """Theta with A + a A_d A_u and B + a B_d B_u for A and B, and the whole weights of `nested`."""
    sides = {f"{p}/{side}": getattr(f, side) for p, f in theta.factors.items() for side in "ab"}
    grown = lowrank.merge(sides, nested)
    return nested._replace(
        factors={
            p: dataclasses.replace(f, a=grown[f"{p}/a"], b=grown[f"{p}/b"])
            for p, f in theta.factors.items()
        }
    )
