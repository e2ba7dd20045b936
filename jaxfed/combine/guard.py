"""A guard around an algorithm, which leaves out clients whose update is not finite."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxfed import aggregate, values
from jaxfed.algorithm import ACCOUNT, Algorithm, PyTree, Reply, check_may_change, overheard


def skip_nonfinite(
    algorithm: Algorithm,
    *,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """The algorithm, but each round leaves out clients whose upload or loss is not finite.

    The mean of the other clients' uploads replaces such an upload, so the mean is the same as if
    the client had not been drawn. `mean` must be the one that the algorithm uses. The client keeps
    its old state, and the record lists it under `skipped`. If no upload is finite, all are replaced
    by zero. A server that counts its cohort outside the mean (SCAFFOLD's |S| in the update of c)
    still counts these clients.
    """

    values.kind("algorithm", algorithm, Algorithm, "an Algorithm, such as fedavg(...) returns")
    check_may_change(algorithm, "another client's upload in the place of one that is not finite")

    def run_round(server, cohort, for_each_client):
        skipped = []

        def guard(reply: Reply, message, cohort) -> Reply:
            account = reply.metrics[ACCOUNT]
            metrics = {name: m for name, m in reply.metrics.items() if name != ACCOUNT}
            fine = account.finite  # [K]
            clean = aggregate.choose(fine, reply.upload, jax.tree.map(jnp.zeros_like, reply.upload))
            weight = cohort.weight * fine
            others = mean(clean, weight / jnp.maximum(jnp.sum(weight), 1e-30))
            skipped.append(~fine)
            metrics = {name: jnp.where(fine, m, 0) for name, m in metrics.items()}
            return reply._replace(
                upload=aggregate.choose(fine, clean, others),
                state=aggregate.choose(fine, reply.state, cohort.state),
                metrics={**metrics, ACCOUNT: account},
            )

        guarded = overheard(for_each_client, guard)
        server, states, metrics = algorithm.run_round(server, cohort, guarded)
        account = metrics[ACCOUNT]._replace(skipped=jnp.any(jnp.stack(skipped), axis=0))
        return server, states, {**metrics, ACCOUNT: account}

    return algorithm._replace(run_round=run_round)
