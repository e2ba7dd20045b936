"""FLoRIST: Ramesh and Dass, MLSys 2026 (arXiv 2506.09199): FLoRA with singular values cut off.

    client k: trains (A, B), from a new A and B = 0, beside W and uploads (A_k, B_k)
    server:   s sum_k p_k A_k B_k = U S V', of the product of the stacked factors
              W <- W + U_p S_p V_p', with the fewest p so that sum_{i <= p} S_i^2 >= tau sum_i S_i^2

Clients receive these p components in place of FLoRA's stack of K r.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, lowrank, trees, values
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.lowrank.rules import stacked, thresholded
from jaxfed.tasks.task import Task
from jaxfed.templates import at_rank, check_ranks, stateless


class Server(NamedTuple):
    """The server's state."""

    base: PyTree  # W and all that is frozen
    theta: Theta  # trained
    kept: dict[str, jax.Array]  # p of the last round at each path [...], for each layer of a stack


def florist(
    task: Task,
    work: local.Work,
    *,
    energy: float,
    client_optimizer: optax.GradientTransformation,
    cohort_size: int,
    ranks: Sequence[int] | None = None,
) -> Algorithm:
    """FLoRIST over the factors; weights trained whole are averaged. Clients keep nothing.

    A client declares the p components that it receives. How many an absent client must receive is
    known in the round alone; for these the ledger counts the most, min(K r, the smaller side).

    Args:
        task: the model and its loss.
        work: local work of a client in each round.
        energy: tau, from 0 to 1; with 1 it is FLoRA.
        client_optimizer: of the local steps; restarted in each round.
        cohort_size: K, the most clients of a round.
        ranks: r_k of each client of the population; None trains all r components.
    """
    values.number("energy", energy, 0.0, 1.0)
    values.whole("cohort_size", cohort_size, 1)
    local.accepting(client_optimizer)
    if ranks is not None:
        values.wholes("ranks", ranks, 1)

    def init(key):
        base, theta = task.init(key)
        check_ranks(theta, ranks)
        kept = {p: jnp.zeros(f.a.shape[: f.stack], jnp.int32) for p, f in theta.factors.items()}
        return Server(base, theta, kept)

    def client(known, theta, k):
        base, kept = known
        start, rank = at_rank(theta, ranks, k.id)
        trained, metrics = local.sgd(partial(task.loss, base), client_optimizer, start, k, work)
        change = {p: jnp.sum(kept[p]) * _component(f) for p, f in theta.factors.items()}
        received = lowrank.nbytes(theta, rank, ""), change
        return Reply(
            optax.tree.sub(trained, theta), (), metrics, received, lowrank.nbytes(theta, rank)
        )

    def run_round(server, cohort, for_each_client):
        if len(cohort.id) > cohort_size:
            raise ValueError(
                f"cohort_size={cohort_size}, but a round has {len(cohort.id)}; give that"
            )
        known = server.base, server.kept
        reply = for_each_client(client, known, server.theta, cohort)
        mean = optax.tree.add(server.theta, aggregate.weighted_mean(reply.upload, cohort.weight))
        trained = jax.tree.map(jnp.add, server.theta.factors, reply.upload.factors)  # [K, ...]
        found = {p: thresholded(stacked(f, cohort.weight), energy) for p, f in trained.items()}
        base = lowrank.merge(server.base, Theta({}, {p: f for p, (f, _) in found.items()}))
        theta = lowrank.fresh(mean, cohort.round_key)
        kept = {p: n for p, (_, n) in found.items()}
        return Server(base, theta, kept), reply.state, reply.metrics

    def most(server, t):
        def at(f):
            held = f.rank * f.layers
            least = min(cohort_size * f.rank, f.a.size // held, f.b.size // held)
            return _component(f) * f.layers * least

        return sum(map(at, server.theta.factors.values())) if t else 0

    return stateless(
        task,
        init,
        run_round,
        broadcast=most,
        clients=None if ranks is None else len(ranks),
    )


def _component(f: Factors) -> int:
    """Bytes of one component of one layer."""
    return trees.nbytes(f) // (f.rank * f.layers)
