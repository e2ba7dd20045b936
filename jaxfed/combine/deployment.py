"""Fine-tuning at deployment around an algorithm: the reference of every personalised comparison."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import local, values
from jaxfed.algorithm import Algorithm, PyTree, Reply


class Tuned(NamedTuple):
    """A client's state."""

    inner: PyTree  # of the inner algorithm
    change: PyTree  # what its own steps changed in the theta that it would have deployed


def fine_tuned(
    algorithm: Algorithm,
    work: local.Work,
    *,
    optimizer: optax.GradientTransformation,
    every: int = 1,
) -> Algorithm:
    """The algorithm, but a client deploys its model after `work` on its own training examples.

    theta_k = local training from the theta that the client would deploy; training, the server and
    the bytes of a round are the inner algorithm's. Around FedLoRA it is HOMLoRA, scored after local
    steps.

    Clients make these steps at the end of each round in which they take part, and keep the change;
    they deploy the current theta plus this change. To save time, give `every`: they then make them
    only in every `every`-th round, such as those that are evaluated. If a merge changes the factors
    (combine.accumulate), the change of a client that was absent since means nothing.
    """
    values.kind("algorithm", algorithm, Algorithm, "an Algorithm, such as fedavg(...) returns")
    values.whole("every", every, 1)
    values.kind("work", work, local.Work, "a local.Work, such as local.Work(10, epochs=1)")
    local.accepting(optimizer, "optimizer")

    def init_client(server, key):
        state = algorithm.init_client(server, key)
        return Tuned(state, optax.tree.zeros_like(algorithm.deploy(server, state)[1]))

    def client(server, message, k):
        base, theta = algorithm.deploy(server, k.state.inner)
        due = (k.round + 1) % every == 0
        mine = local.only_if(local.again(k, 2), due)
        loss = partial(algorithm.task.loss, base)
        trained, _ = local.sgd(loss, optimizer, theta, mine, work)
        change = jax.tree.map(
            partial(jnp.where, due), optax.tree.sub(trained, theta), k.state.change
        )
        return Reply((), Tuned(k.state.inner, change), {})

    def run_round(server, cohort, for_each_client):
        inner = cohort._replace(state=cohort.state.inner)
        server, states, metrics = algorithm.run_round(server, inner, for_each_client)
        # Nothing crosses: what a client deploys, it has received, as with any algorithm.
        own = cohort._replace(state=Tuned(states, cohort.state.change))
        return server, for_each_client(client, server, (), own).state, metrics

    def deploy(server, state):
        base, theta = algorithm.deploy(server, state.inner)
        return base, optax.tree.add(theta, state.change)

    return algorithm._replace(init_client=init_client, run_round=run_round, deploy=deploy)
