"""HETLoRA: Cho et al., EMNLP 2024 (arXiv 2401.06432).

client k of the cohort:  trains the first r_k components of A and B, with the penalty
                         lambda |A[:, t:]| |B[t:]|, t = floor(gamma r_k), and uploads them;
                         r_k <- max(r_min, t) if that has shrunk
server:                  A <- sum_k q_k A_k,  B <- sum_k q_k B_k, padded with zeros to r_max,
                         q_k proportional to |A_k B_k|
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, lowrank, values
from jaxfed.algorithm import Algorithm, Reply
from jaxfed.lowrank.factors import Theta
from jaxfed.tasks.task import Task
from jaxfed.templates import Server


def hetlora(
    task: Task,
    work: local.Work,
    *,
    least: int,
    most: int,
    gamma: float,
    penalty: float,
    client_optimizer: optax.GradientTransformation,
    ranks: Sequence[int] | None = None,
) -> Algorithm:
    """HETLoRA with ranks from `least` to `most`; each client keeps its r_k.

    A client's loss has the additional term `penalty` ||A[:, t:]||_F ||B[t:]||_F, summed over
    layers, with t = floor(gamma r_k). If a round decreases this sum, r_k <- max(least, t). Weights
    trained whole are averaged with the same shares. A client declares the bytes of the components
    that it receives and sends.

    Zero-padding shrinks the later components in every round. Unless local training outweighs this,
    they decay to zero everywhere.

    Args:
        task: the model and its loss; its factors have rank `most`.
        work: local work of a client in each round; the paper takes 5 steps of batches of 8.
        least: r_min; the paper uses 5.
        most: r_max; the paper uses 50.
        gamma: share of the rank that pruning keeps, from 0 to 1; the paper uses 0.99.
        penalty: lambda, the weight of the additional term; 0 for none.
        client_optimizer: of the local steps; restarted in each round.
        ranks: the first rank of each client of the population; None draws it uniformly when a
            client first takes part, as in the paper.
    """
    for name, rank in (("least", least), ("most", most)):
        values.whole(name, rank, 0)
    for name, number in (("gamma", gamma), ("penalty", penalty)):
        values.number(name, number)
    if not 1 <= least <= most or not 0 <= gamma <= 1 or not penalty >= 0:
        raise ValueError(
            f"least={least}, most={most}, gamma={gamma}, penalty={penalty}: use 1 <= least <= most "
            "with gamma in [0, 1] and penalty >= 0"
        )
    if ranks is not None:
        values.wholes("ranks", ranks, 1)
        if not len(ranks) or not least <= min(ranks) <= max(ranks) <= most:
            raise ValueError(
                f"ranks={ranks} are not all from least={least} to most={most}; give one rank in "
                "that range for each client"
            )

    def init(key):
        server = Server(*task.init(key))
        widths = {p: f.rank for p, f in server.theta.factors.items()}
        if set(widths.values()) != {most}:
            raise ValueError(
                f"the task's factors have ranks {widths}, not most={most}; select them with "
                f"rank={most}"
            )
        return server

    def first(key, i):
        if ranks is None:
            return jax.random.randint(jax.random.fold_in(key, i), (), least, most + 1, jnp.int32)
        return jnp.asarray(ranks, jnp.int32)[i]

    def client(base, theta, k):
        start, t = lowrank.cut(theta, k.state), jnp.floor(gamma * k.state).astype(jnp.int32)

        def loss(theta, batch, key):
            return task.loss(base, theta, batch, key) + penalty * _tails(theta, t)

        trained, metrics = local.sgd(loss, client_optimizer, start, k, work)
        idle = _tails(trained, t) < _tails(start, t)
        rank = jnp.where(idle, jnp.maximum(t, least), k.state)  # self-pruning
        return Reply(
            upload=lowrank.cut(trained, rank),
            state=rank,
            metrics={**metrics, "rank": rank},
            received=lowrank.nbytes(theta, k.state),
            sent=lowrank.nbytes(theta, rank),
        )

    def run_round(server, cohort, for_each_client):
        drawn = jax.vmap(partial(first, cohort.round_key))(cohort.id)
        cohort = cohort._replace(state=jnp.where(cohort.state > 0, cohort.state, drawn))
        reply = for_each_client(client, server.base, server.theta, cohort)
        norm = jax.vmap(_norm)(reply.upload)  # [K]
        theta = aggregate.norm_weighted(reply.upload, norm, cohort.weight)
        return server._replace(theta=theta), reply.state, reply.metrics

    def deploy(server, state):  # a client that was never drawn has no rank: it deploys all of theta
        return server.base, lowrank.cut(server.theta, jnp.where(state > 0, state, most))

    return Algorithm(
        init,
        lambda server, key: jnp.int32(0),
        run_round,
        deploy,
        task,
        clients=None if ranks is None else len(ranks),
        sends_change=False,
    )


def _tails(theta: Theta, t: jax.Array) -> jax.Array:
    """The sum over layers of ||a[:, t:]||_F ||b[t:]||_F; its gradient at zero is zero."""

    def tail(f):
        late = jnp.arange(f.rank) >= t
        rows = f.b.reshape(f.rank, -1) * late[:, None]  # [r, out]
        return optax.safe_norm(f.a * late, 0.0) * optax.safe_norm(rows, 0.0)

    tails = (lowrank.each_layer(tail, f) for f in theta.factors.values())
    return sum(map(jnp.sum, tails), jnp.zeros(()))


def _norm(theta: Theta) -> jax.Array:
    """||s a b||_F over all layers."""
    return jnp.linalg.norm(jnp.stack([lowrank.norm(f) for f in theta.factors.values()]))
