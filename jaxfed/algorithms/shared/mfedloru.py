"""mFedLoRU: Park and Klabjan, arXiv 2409.12371: FedLoRU for clients of unequal resources.

The server keeps A [m, r] and B [r, n]. Client k trains nested factors of its own rank r_k:

    W + s (A + a A_d A_u) (B + a B_d B_u)     A_d [m, r_k], A_u [r_k, r], B_d [r, r_k], B_u [r_k, n]

    client k of the cohort: starts with A_u = B_u = 0, trains the four and uploads them
    A <- A + a sum_k p_k A_d A_u,   B <- B + a sum_k p_k B_d B_u
    if t mod tau == 0:  W <- W + s A B          (combine.accumulate)

The server's update is linear in the clients' products, so A and B are exact means (A B is not).
THIS SCHEME FOLLOWS A DESCRIPTION: the authors state that updates are nested and that each client
has its own rank, but neither pseudo-code nor code was available. We chose one r_k for A and B, one
a for all clients, and new random down factors A_d and B_d in each round.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, combine, local, lowrank, values
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.tasks.task import Task
from jaxfed.templates import Server, check_number, stateless


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
    """mFedLoRU over the factors; clients keep nothing.

    Weights trained whole are averaged as in FedAvg. A client declares the bytes of its own rank.

    Args:
        task: the model and its loss; its factors are A and B.
        work: local work of a client in each round.
        every: tau, or the rounds after which to merge; see combine.accumulate.
        restart: how A and B continue after a merge, likewise.
        ranks: r_i of each client i of the population; at least 1.
        alpha: the nested products have scale a = alpha / max(ranks).
        client_optimizer: of the local steps; restarted in each round.
        mean: of the recovered changes of A and B; weighted by examples by default.
    """
    values.wholes("ranks", ranks, 1)
    if not len(ranks):
        raise ValueError("ranks is empty; give one rank for each client")
    check_number("alpha", alpha, 0.0, above=True)
    most = max(ranks)

    def client(base, theta, k):
        rank = jnp.asarray(ranks, jnp.int32)[k.id]
        drawn = lowrank.beside(around(theta), most, k.key, alpha=alpha, above="allow")
        start = {p: lowrank.truncate(f, rank) for p, f in drawn.items()}

        def loss(nested, batch, key):
            return task.loss(base, recovered(theta, nested), batch, key)

        nested, metrics = local.sgd(loss, client_optimizer, Theta(theta.full, start), k, work)
        return Reply(nested, (), metrics, sent=lowrank.nbytes(nested, rank))

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        grown = jax.vmap(partial(recovered, server.theta))(reply.upload)  # [K, ...]
        delta = mean(optax.tree.sub(grown, server.theta), cohort.weight)
        theta = optax.tree.add(server.theta, delta)
        return server._replace(theta=theta), reply.state, reply.metrics

    inner = stateless(
        task,
        lambda key: Server(*task.init(key)),
        run_round,
        clients=len(ranks),
        sends_change=False,
    )
    return combine.accumulate(inner, every=every, restart=restart)


def around(theta: Theta) -> dict[str, Factors]:
    """{"path/a": (A, I), "path/b": (I, B)}: A and B as products, for nested factors beside them."""
    beside: dict[str, Factors] = {}
    for p, f in theta.factors.items():
        one = jnp.eye(f.rank, dtype=f.a.dtype)
        one = jnp.broadcast_to(one, (*f.a.shape[: f.stack], f.rank, f.rank))
        for side, (a, b) in {"a": (f.a, one), "b": (one, f.b)}.items():
            beside[f"{p}/{side}"] = Factors(a, b, 1.0, f.stack)
    return beside


def recovered(theta: Theta, nested: Theta) -> Theta:
    """Theta with A + a A_d A_u for A, B + a B_d B_u for B, and the whole weights of `nested`."""
    sides = {f"{p}/{side}": getattr(f, side) for p, f in theta.factors.items() for side in "ab"}
    grown = lowrank.merge(sides, nested)
    return nested._replace(
        factors={
            p: dataclasses.replace(f, a=grown[f"{p}/a"], b=grown[f"{p}/b"])
            for p, f in theta.factors.items()
        }
    )
