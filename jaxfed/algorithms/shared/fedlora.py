"""Federated LoRA whose aggregation is declared: FedEx-LoRA, FLoRA, FlexLoRA, FFA-LoRA and more.

    client k of the cohort: trains (A, B) beside the frozen W and uploads (A_k, B_k)
    server:  A, B <- rule.factors(the clients' factors)
             W <- W + s sum_k p_k A_k B_k - s A B      if rule.exact

    SEPARATE      A, B <- the means                                        FedIT, HOMLoRA
    FEDEX         A, B <- the means,        exact                          arXiv 2410.09432
    FLORA         A random, B = 0,          exact                          arXiv 2409.05976
    FLEXLORA      A, B <- the best of rank r for the mean product          arXiv 2402.11505
    FEDMOMENTUM   as FLEXLORA,              exact                          arXiv 2603.08014
    FEDSVD        as FLEXLORA,              A is not trained               arXiv 2505.12805
    FFA           A, B <- the means,        A is not trained               arXiv 2403.12313
    ROLORA        A, B <- the means,        B, then A, then B, ...         arXiv 2409.02346
    RAFLORA       as FLEXLORA,              clients of unequal ranks       arXiv 2602.13486

The rules are those of `jaxfed.lowrank.rules`. RAC-LoRA (arXiv 2410.08305) is FFA inside
`combine.accumulate` with `restarts.reinit`: every tau rounds A is drawn again.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, lowrank, trees, values
from jaxfed.algorithm import Algorithm, Reply, no_broadcast
from jaxfed.lowrank.rules import Rule, applied, partitioned, stacked
from jaxfed.tasks.task import Task
from jaxfed.templates import Server, alone, at_rank, check_ranks, stateless


def fedlora(
    task: Task,
    work: local.Work,
    *,
    rule: Rule,
    client_optimizer: optax.GradientTransformation,
    cohort_size: int | None = None,
    ranks: Sequence[int] | None = None,
) -> Algorithm:
    """FedAvg over the weights trained whole, and `rule` over the factors. Clients keep nothing.

    A client declares the bytes of the sides that it receives and sends. If the rule is exact, every
    client must also receive the change of W: K adapters of rank r, or W's own size if that is less.

    Args:
        task: the model and its loss.
        work: local work of a client in each round.
        rule: one of lowrank.rules.
        client_optimizer: of the local steps; restarted in each round. A side that is not trained
            gets no gradient and no update.
        cohort_size: K, the most clients of a round; needed for the bytes of an exact rule.
        ranks: r_i of each client i of the population, which trains the first r_i components
            (FLoRA, FlexLoRA, raFLoRA); None trains all.

    ValueError for an exact rule without `cohort_size`, for more clients in a round, and for a task
    without factors. Around an exact rule combine.skip_nonfinite puts the mean of the other clients'
    factors in the place of a client that it leaves out.
    """
    values.kind("rule", rule, Rule, "one of lowrank.rules, such as rules.FEDEX")
    local.accepting(client_optimizer)
    if rule.exact and cohort_size is None:
        raise ValueError("cohort_size=None, but the rule changes W; give the clients of a round")
    most = values.whole("cohort_size", cohort_size, 1) if rule.exact else 0
    if ranks is not None:
        values.wholes("ranks", ranks, 1)
    optimizer = (
        client_optimizer if rule.trains_b is None else alone(client_optimizer, rule.trains_b)
    )

    def init(key):
        server = Server(*task.init(key))
        check_ranks(server.theta, ranks)
        return server

    def change(base, theta):  # {path: bytes} of the change of W
        stacks = {p: most * trees.nbytes(f) for p, f in theta.factors.items()}
        return {p: min(n, trees.nbytes(base[p])) for p, n in stacks.items()}

    def client(base, theta, k):
        start, rank = at_rank(theta, ranks, k.id)
        trained, metrics = local.sgd(partial(task.loss, base), optimizer, start, k, work)
        merged = jax.tree.map(lambda n: jnp.where(k.round > 0, n, 0), change(base, theta))
        received = lowrank.nbytes(theta, rank, rule.receives), merged
        sent = lowrank.nbytes(theta, rank)
        if rule.trains_b is not None:
            b, a = (lowrank.nbytes(theta, rank, side) for side in "ba")
            sent = jax.tree.map(partial(jnp.where, rule.trains_b(k.round)), b, a)
        return Reply(optax.tree.sub(trained, theta), (), metrics, received, sent)

    def run_round(server, cohort, for_each_client):
        if rule.exact and len(cohort.id) > most:
            raise ValueError(f"cohort_size={most}, but a round has {len(cohort.id)}; give that")
        reply = for_each_client(client, server.base, server.theta, cohort)
        mean = optax.tree.add(server.theta, aggregate.weighted_mean(reply.upload, cohort.weight))
        trained = jax.tree.map(jnp.add, server.theta.factors, reply.upload.factors)  # [K, ...]
        share = cohort.weight
        if rule.partitioned and ranks is not None:
            share = partitioned(share, jnp.asarray(ranks)[cohort.id], max(ranks))
        stack = {p: stacked(f, share) for p, f in trained.items()}
        base, factors = applied(rule, server.base, mean.factors, stack, cohort.round_key)
        return Server(base, mean._replace(factors=factors)), reply.state, reply.metrics

    def merge(server, t):
        return sum(change(*server).values()) if t else 0

    return stateless(
        task,
        init,
        run_round,
        broadcast=merge if rule.exact else no_broadcast,
        clients=None if ranks is None else len(ranks),
    )
