"""What methods share whose clients keep something: the server that averages, and two adapters.

Clients send the change of theta, the shared part, and the server adds the mean of it. What a client
keeps is its state, which never crosses the wire; each algorithm's file says what it is.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import optax

from jaxfed import lowrank
from jaxfed.algorithm import Algorithm, Client, PyTree
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.tasks.task import Task


class Server(NamedTuple):
    base: PyTree  # frozen
    theta: PyTree  # trained, and shared


def averaging(
    task: Task,
    client: Client,
    *,
    init_client: Callable,
    deploy: Callable,
    mean: Callable[[PyTree, jax.Array], PyTree],
    init: Callable[[jax.Array], tuple[PyTree, PyTree]] | None = None,
) -> Algorithm:
    """FedAvg's server around clients that keep something: theta <- theta + mean_k upload_k.

    `client(base, theta, k)` uploads its change of theta. `init` gives (base, theta) from a key; by
    default it is the task's.
    """
    begin = task.init if init is None else init

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        delta = mean(reply.upload, cohort.weight)
        theta = optax.tree.add(server.theta, delta)
        return server._replace(theta=theta), reply.state, reply.metrics

    return Algorithm(lambda key: Server(*begin(key)), init_client, run_round, deploy, task)


def two_adapters(
    task: Task,
    client: Client,
    *,
    rank: int,
    alpha: float | None,
    mean: Callable[[PyTree, jax.Array], PyTree],
    join: Callable[[Theta, Mapping[str, Factors]], Theta] = lowrank.joined,
) -> Algorithm:
    """`averaging` where each client keeps a second adapter, of its own rank and scale alpha / rank.

    It starts with a random down and a zero up factor, so a client starts as the shared model. The
    client runs join(theta, own).
    """
    if rank < 1:
        raise ValueError(f"rank={rank} leaves clients nothing of their own; use at least 1")

    def init_client(server, key):
        return lowrank.beside(server.theta.factors, rank, key, alpha=alpha)

    def deploy(server, own):
        return server.base, join(server.theta, own)

    return averaging(task, client, init_client=init_client, deploy=deploy, mean=mean)


def mixture(
    theta: Theta, own: Mapping[str, Factors], w: jax.Array | float, w_own: jax.Array | float
) -> Theta:
    """Theta for W + w s A B + w_own s_own C D: both adapters by weight, which may be traced."""

    def weighed(factors, w):
        return {p: dataclasses.replace(f, b=w * f.b) for p, f in factors.items()}

    shared = theta._replace(factors=weighed(theta.factors, w))
    return lowrank.joined(shared, weighed(own, w_own))


def check_weight(a: float) -> None:
    if not 0 <= a <= 1:
        raise ValueError(f"a={a} is no share of the local adapter; use a number from 0 to 1")
