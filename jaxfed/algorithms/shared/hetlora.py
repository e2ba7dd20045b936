"""HETLoRA: Cho et al., EMNLP 2024 (arXiv 2401.06432).

Client k trains factors of its own rank r_k: it gets the first r_k components of the server's,
prunes itself where its last components do not grow, and sends r_k components back, which the server
fills up with zeros and averages, each client by the norm of its product.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, lowrank
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

    Its loss has the term `penalty` ||A[:, t:]||_F ||B[t:]||_F, t = floor(gamma r_k), summed over
    layers. Where the round made this sum smaller, r_k <- max(least, t). First ranks are `ranks`,
    one for each client of the population, or drawn uniformly when a client first takes part.
    Weights trained whole are averaged with the same shares. A client declares the bytes of the
    components that it receives and sends.

    Zeros that fill up shrink the later components in every round: unless local work outgrows that,
    they vanish from all clients.
    """
    if not 1 <= least <= most or not 0 <= gamma <= 1 or penalty < 0:
        raise ValueError(
            f"least={least}, most={most}, gamma={gamma}, penalty={penalty}: use 1 <= least <= most "
            "with gamma in [0, 1] and penalty >= 0"
        )
    if ranks is not None and not least <= min(ranks) <= max(ranks) <= most:
        raise ValueError(f"ranks={ranks} are not all from least={least} to most={most}")

    def init(key):
        server = Server(*task.init(key))
        found = {p: f.rank for p, f in server.theta.factors.items()}
        if set(found.values()) != {most}:
            raise ValueError(f"the server's factors are of rank most={most}; the task has {found}")
        return server

    def first(key, i):
        if ranks is None:
            return jax.random.randint(jax.random.fold_in(key, i), (), least, most + 1, jnp.int32)
        return jnp.asarray(ranks, jnp.int32)[i]

    def client(base, theta, k):
        start, t = _truncate(theta, k.state), jnp.floor(gamma * k.state).astype(jnp.int32)

        def loss(theta, batch, key):
            return task.loss(base, theta, batch, key) + penalty * _tails(theta, t)

        trained, metrics = local.sgd(loss, client_optimizer, start, k, work)
        idle = _tails(trained, t) < _tails(start, t)
        rank = jnp.where(idle, jnp.maximum(t, least), k.state)  # self-pruning
        return Reply(
            upload=_truncate(trained, rank),
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

    def deploy(server, state):  # who was never drawn has no rank yet, and runs all of theta
        return server.base, _truncate(server.theta, jnp.where(state > 0, state, most))

    return Algorithm(
        init,
        lambda server, key: jnp.int32(0),
        run_round,
        deploy,
        task,
        clients=None if ranks is None else len(ranks),
        sends_change=False,
    )


def _truncate(theta: Theta, rank: jax.Array) -> Theta:
    return theta._replace(factors={p: lowrank.truncate(f, rank) for p, f in theta.factors.items()})


def _tails(theta: Theta, t: jax.Array) -> jax.Array:
    """The sum over layers of ||a[:, t:]||_F ||b[t:]||_F; its gradient at zero is zero."""

    def tail(f):
        late = jnp.arange(f.rank) >= t
        rows = f.b.reshape(f.rank, -1) * late[:, None]  # [r, out]
        return optax.safe_norm(f.a * late, 0.0) * optax.safe_norm(rows, 0.0)

    return sum((tail(f) for f in theta.factors.values()), jnp.zeros(()))


def _norm(theta: Theta) -> jax.Array:
    """||s a b||_F over all layers."""
    return jnp.linalg.norm(jnp.stack([lowrank.norm(f) for f in theta.factors.values()]))
