"""LoRA-A2: Koo et al., ACL 2025 (arXiv 2410.22815): one side at a time, and its best components.

    rounds 0, 2, ...: clients train B, and A stays;   rounds 1, 3, ...: clients train A
    client k: scores component i of each layer, |A_i| |dB_i| or |dA_i| |B_i|,
              and uploads the change of its best components, over all layers together
    B <- B + sum_k p_k dB_k   or   A <- A + sum_k p_k dA_k

The score is the norm of what the component's change adds to the product, A_i dB_i. As only one side
changes, the mean of the products is the product of the means. We could not read when the paper
scores: here it is after local training of all components, so the choice spares uploads, not work.
The paper's larger learning rate for one side belongs in `client_optimizer`.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local, lowrank, trees, values
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.lowrank.rules import in_turn
from jaxfed.tasks.task import Task
from jaxfed.templates import Server, alone, averaging


def lora_a2(
    task: Task,
    work: local.Work,
    *,
    components: int,
    client_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """LoRA-A2 over the factors; weights trained whole are averaged. Clients keep nothing.

    A client declares the bytes of the components that it sends, of one side each, and 4 for the
    place of each.

    Args:
        task: the model and its loss; the factors' rank is the paper's global one.
        work: local work of a client in each round.
        components: how many a client uploads over all layers (the paper's r_k times the layers).
        client_optimizer: of the local steps; restarted in each round.
        mean: of the uploads; weighted by examples by default.
    """
    values.whole("components", components, 1)
    optimizer = alone(local.accepting(client_optimizer), in_turn)

    def init(key):
        server = Server(*task.init(key))
        held = sum(f.rank * f.layers for f in server.theta.factors.values())
        if components > held:
            raise ValueError(
                f"components={components}; the factors have {held} together; use at most that"
            )
        return server

    def client(base, theta, k):
        trained, metrics = local.sgd(partial(task.loss, base), optimizer, theta, k, work)
        change, b = optax.tree.sub(trained, theta), in_turn(k.round)
        chosen = best(theta, change, components)
        sent = {p: trees.nbytes(w) for p, w in theta.full.items()}
        for p, f in theta.factors.items():
            each = jnp.where(b, f.b.nbytes, f.a.nbytes) // (f.rank * f.layers)
            sent[p] = jnp.sum(chosen[p]) * (4 + each)
        factors = {p: _only(f, chosen[p]) for p, f in change.factors.items()}
        return Reply(change._replace(factors=factors), (), metrics, sent=sent)

    return averaging(task, client, mean=mean, init=init)


def best(theta: Theta, change: Theta, components: int) -> dict[str, jax.Array]:
    """{path: bool [..., r]}: the components of the highest scores, so many over all layers."""
    scores = {p: score(f, change.factors[p]) for p, f in theta.factors.items()}
    flat = jnp.concatenate([one.ravel() for one in scores.values()])
    place = jax.lax.top_k(flat, components)[1]
    chosen, found = jnp.zeros(len(flat), bool).at[place].set(True), {}
    for p, one in scores.items():
        found[p], chosen = chosen[: one.size].reshape(one.shape), chosen[one.size :]
    return found


def score(f: Factors, change: Factors) -> jax.Array:
    """|A_i| |dB_i| + |dA_i| |B_i| of each component [..., r], one of the two being zero."""

    def one(f, change):
        a, da = (jnp.linalg.norm(x.reshape(-1, f.rank), axis=0) for x in (f.a, change.a))
        b, db = (jnp.linalg.norm(x.reshape(f.rank, -1), axis=1) for x in (f.b, change.b))
        return a * db + da * b

    return lowrank.each_layer(one, f, change)


def _only(f: Factors, chosen: jax.Array) -> Factors:
    """f without the components that are not chosen [..., r]."""

    def one(f, chosen):
        rows = chosen.reshape(-1, *[1] * (f.b.ndim - 1))
        return dataclasses.replace(f, a=f.a * chosen, b=f.b * rows)

    return lowrank.each_layer(one, f, chosen)
