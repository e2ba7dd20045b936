"""Clients that are not there: unavailable when they are drawn, or lost before they answer."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from jaxfed import aggregate, trees, values
from jaxfed.algorithm import ACCOUNT, Algorithm

Share: TypeAlias = float | Callable[[jax.Array, jax.Array], jax.Array]
"""A probability, or a function (id, round) -> probability for clients that differ."""


def unreliable(algorithm: Algorithm, *, unavailable: Share = 0.0, lost: Share = 0.0) -> Algorithm:
    """The algorithm, but a drawn client takes part only with a probability.

    A client that is unavailable neither receives nor sends anything. One that is lost receives the
    message, and the server gets no answer. Neither counts in the mean, whose other weights are
    scaled up; both keep their old state, and the record lists them under `skipped`. Bytes that did
    not cross are not counted. If nobody remains, the round changes nothing.

        unreliable(fedavg(...), unavailable=lambda i, t: jnp.where(t % 24 < 8, 0.9, 0.1))
    """
    values.kind("algorithm", algorithm, Algorithm, "an Algorithm, such as fedavg(...) returns")
    for name, share in (("unavailable", unavailable), ("lost", lost)):
        if not callable(share):
            values.number(name, share, 0.0, 1.0)

    def fate(k):
        """(it is there, it answers) of a client."""
        key = jax.random.fold_in(jax.random.fold_in(k.round_key, 13), k.id)
        chance = jax.random.uniform(key, (2,))
        at = [s(k.id, k.round) if callable(s) else s for s in (unavailable, lost)]
        there = chance[0] >= at[0]
        return there, there & (chance[1] >= at[1])

    def run_round(server, cohort, for_each_client):
        answers = jax.vmap(lambda own: fate(cohort._replace(id=own))[1])(cohort.id)  # [K]
        counted = answers & (cohort.weight > 0)
        weight = jnp.where(counted, cohort.weight, 0)
        total = jnp.sum(weight)
        weight = weight / jnp.where(total > 0, total, 1)

        def verb(client, base, message, inner):
            def perhaps(base, message, k):
                reply = client(base, message, k)
                there, answers = fate(k)
                received = _if(there, reply.received, message)
                arrived = jax.tree.map(lambda x: jnp.where(answers, x, 0), reply.upload)
                sent = _if(answers, reply.sent, reply.upload)
                return reply._replace(upload=arrived, received=received, sent=sent)

            return for_each_client(perhaps, base, message, inner)

        after, states, metrics = algorithm.run_round(server, cohort._replace(weight=weight), verb)
        states = aggregate.choose(counted, states, cohort.state)
        after = jax.tree.map(lambda new, old: jnp.where(total > 0, new, old), after, server)
        account = metrics[ACCOUNT]
        account = account._replace(skipped=account.skipped | ~counted)
        own = {
            n: jnp.where(total > 0, m, jnp.nan_to_num(m))
            for n, m in metrics.items()
            if n != ACCOUNT
        }
        return after, states, {**own, ACCOUNT: account}

    return algorithm._replace(run_round=run_round)


def _if(condition: jax.Array, declared, tree):
    """The bytes declared, or those of the tree, and zero where the condition fails."""
    if declared is None:
        return trees.nbytes_if(condition, tree)
    return jax.tree.map(lambda n: jnp.where(condition, n, 0), declared)
