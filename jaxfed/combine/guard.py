"""A guard around an algorithm: clients whose update is not finite are left out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxfed import aggregate
from jaxfed.algorithm import Algorithm, PyTree


def skip_nonfinite(
    algorithm: Algorithm,
    *,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """The algorithm without the clients whose upload or loss is not finite in a round.

    Such a client's upload is replaced by the mean of the others', which leaves that mean as if the
    client had not been drawn; give the `mean` that the algorithm uses. It keeps its old state.
    The metric `skipped` [K] tells which clients; if no upload is finite, all count as zero.
    A server that counts its cohort beside the mean (SCAFFOLD's |S| in c) still counts them.
    """

    def run_round(server, cohort, for_each_client):
        skipped = []

        def guarded(client, base, message, cohort):
            reply = for_each_client(client, base, message, cohort)
            fine = aggregate.finite((reply.upload, reply.metrics))  # [K]
            clean = aggregate.choose(fine, reply.upload, jax.tree.map(jnp.zeros_like, reply.upload))
            weight = cohort.weight * fine
            others = mean(clean, weight / jnp.maximum(jnp.sum(weight), 1e-30))
            skipped.append(~fine)
            metrics = {n: jnp.where(fine, m, 0) for n, m in reply.metrics.items()}
            return reply._replace(
                upload=aggregate.choose(fine, clean, others),
                state=aggregate.choose(fine, reply.state, cohort.state),
                metrics={**metrics, "finite": jnp.ones_like(fine)},
            )

        server, states, metrics = algorithm.run_round(server, cohort, guarded)
        return server, states, {**metrics, "skipped": jnp.any(jnp.stack(skipped), axis=0)}

    return algorithm._replace(run_round=run_round)
