"""Differential privacy of clients: McMahan et al., ICLR 2018, DP-FedAvg with a fixed cohort.

    client k: uploads D_k, which is clipped to the norm S:  D_k min(1, S / |D_k|)
    server:   sees sum_k D_k / K + N(0, (z S / K)^2) alone

Two populations are neighbours if one client's data differ. The cohort is K of N clients, uniform
without replacement, and N and K are public. One client then moves the sum by 2 S at most, so the
accountant counts noise of z / 2 times the sensitivity (Wang et al., AISTATS 2019).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfed import aggregate, trees, values
from jaxfed.algorithm import Algorithm, PyTree, check_may_change
from jaxfed.combine.compress import check_form


def private(
    algorithm: Algorithm,
    *,
    clip: float,
    noise: float,
    clients: int,
    cohort_size: int,
    rounds: int,
    delta: float,
) -> Algorithm:
    """The algorithm with clipped uploads, of which the server sees a noisy mean.

    The record has `epsilon`: all rounds so far are (epsilon, delta)-private for every client. This
    holds for what the server keeps. The record's losses are means over clients without noise, and
    what clients keep stays with them. Whatever the algorithm makes of its uploads, each of them is
    replaced by the noisy mean, in which clients count alike.

    Args:
        algorithm: it has one exchange a round and uploads a change of theta; else ValueError.
        clip: S, the most that a client's whole change may have as its Euclidean norm.
        noise: z, the noise of the sum in units of S; above 0.
        clients: N, the size of the population.
        cohort_size: K, the clients of each round.
        rounds: the most rounds of a run; after them epsilon is infinite.
        delta: the probability with which epsilon may fail; below 1 / N.

    The accountant is that of `dp-accounting`, from `pip install 'jaxfed[privacy]'`.
    """
    values.kind("algorithm", algorithm, Algorithm, "an Algorithm, such as fedavg(...) returns")
    check_may_change(algorithm, "noise on an upload")
    for name, number, most in (
        ("clip", clip, math.inf),
        ("noise", noise, math.inf),
        ("delta", delta, 1),
    ):
        if values.number(name, number, 0.0, most) == 0:
            raise ValueError(f"{name}=0; use a number above 0")
    for name, count in (("clients", clients), ("cohort_size", cohort_size), ("rounds", rounds)):
        values.whole(name, count, 1)
    if cohort_size > clients:
        raise ValueError(f"cohort_size={cohort_size} is above clients={clients}; draw at most all")
    if delta >= 1 / clients:
        raise ValueError(f"delta={delta}; use less than 1 / clients = {1 / clients:g}")
    if not algorithm.sends_change:
        raise ValueError("clients do not upload a change of theta that could be clipped")
    spent = epsilons(noise, clients=clients, cohort_size=cohort_size, rounds=rounds, delta=delta)

    def clipped(change):
        norm = optax.tree.norm(change)
        return optax.tree.scale(clip / jnp.maximum(norm, clip), change)

    def init(key):
        server = algorithm.init(key)
        trees.refuse_running(server.theta, "noise would make variances negative")
        return server

    def run_round(server, cohort, for_each_client):
        form, exchanges = trees.shapes(server.theta), []
        if len(cohort.id) != cohort_size:
            raise ValueError(f"cohort_size={cohort_size}, but a round has {len(cohort.id)}")

        def verb(client, base, message, inner):
            def clipping(base, message, k):
                reply = client(base, message, k)
                check_form(reply.upload, form, "upload")
                return reply._replace(upload=clipped(reply.upload))

            reply = for_each_client(clipping, base, message, inner)
            exchanges.append(reply)
            present = (cohort.weight > 0) / cohort_size  # [K]
            key = jax.random.fold_in(cohort.round_key, 17)
            seen = _noisy(reply.upload, present, clip * noise / cohort_size, key)
            return reply._replace(upload=seen)

        server, states, metrics = algorithm.run_round(server, cohort, verb)
        if len(exchanges) != 1:
            raise ValueError(f"a round has {len(exchanges)} exchanges; make one private with one")
        epsilon = jnp.asarray(spent).at[cohort.round].get(mode="fill", fill_value=jnp.inf)
        return server, states, {**metrics, "epsilon": epsilon}

    return algorithm._replace(init=init, run_round=run_round, clients=clients)


def _noisy(uploads: PyTree, share: jax.Array, deviation: float, key: jax.Array) -> PyTree:
    """The sum of share [K] times uploads [K, ...], with noise, in each client's place [K, ...]."""
    mean = aggregate.weighted_mean(uploads, share)
    noised = optax.tree.add_scale(mean, deviation, optax.tree.random_like(key, mean))
    return jax.tree.map(lambda m, x: jnp.broadcast_to(m.astype(x.dtype), x.shape), noised, uploads)


def epsilons(
    noise: float, *, clients: int, cohort_size: int, rounds: int, delta: float
) -> np.ndarray:
    """Epsilon after 1, 2, ..., `rounds` rounds [rounds] of `private`; before a run, on the host.

    ImportError, with the remedy, without dp-accounting.
    """
    try:
        import dp_accounting
        from dp_accounting import rdp
    except ImportError:
        raise ImportError(
            "privacy is accounted for by dp-accounting: pip install 'jaxfed[privacy]'"
        ) from None
    replaced = dp_accounting.NeighboringRelation.REPLACE_ONE
    accountant = rdp.RdpAccountant(neighboring_relation=replaced)
    gaussian = dp_accounting.GaussianDpEvent(noise / 2)
    accountant.compose(
        dp_accounting.SampledWithoutReplacementDpEvent(clients, cohort_size, gaussian)
    )
    each = accountant.rdp
    spent = [
        rdp.compute_epsilon(accountant.orders, each * t, delta)[0] for t in range(1, rounds + 1)
    ]
    return np.asarray(spent, np.float32)
