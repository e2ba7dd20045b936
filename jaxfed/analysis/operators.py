"""Gradients and Hessian-vector products of losses over many examples, one batch at a time.

A client's loss is the mean over its examples. The loss of all clients together is the mean over
the union: the sum of the clients' losses weighted by their shares of the examples. Functions of one
batch are averaged over batches, so a Hessian over any number of examples needs the memory of one
batch.

A probe measures one choice of parameters, given as a pair (base, theta). `whole` trains all weights
with the factors folded in, `factors` trains the factors alone, and `only` keeps some paths of
either.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfed import hypergrad, local, lowrank
from jaxfed.algorithm import Data, Leaf, PyTree, Reply
from jaxfed.lowrank.factors import Theta

Loss = Callable[[PyTree, dict, jax.Array], jax.Array]
"""(theta, batch, key) -> the mean loss over the batch's real examples."""

Operator = Callable[[PyTree], PyTree]


class Examples(NamedTuple):
    """The examples of one client; a client's slice of a Cohort has the same fields."""

    data: Data
    count: Leaf
    key: Leaf  # of augmentation and dropout, which stay fixed


def union(examples: dict, key: jax.Array) -> Examples:
    """All rows of `examples` [M, ...] as one client's: its loss is the server's loss."""
    rows = len(jax.tree.leaves(examples)[0])
    return Examples(Data(examples, jnp.int32(0), rows), jnp.int32(rows), key)


def mean(
    measure: Callable[[dict, jax.Array], PyTree], like: PyTree, k: Examples, batch_size: int
) -> PyTree:
    """The mean of `measure(batch, key)` over k's examples: a tree like `like`.

    sum_b n_b / n measure(b), where n_b of the n examples are in batch b. `measure` must itself be a
    mean over the batch's real examples. Otherwise (with batch normalisation) the result depends on
    the batches. A batch always gets the same key. A client without examples gets zero.
    """

    def add(total, batch, key):
        share = jnp.sum(batch["mask"]).astype(float) / k.count
        return jax.tree.map(lambda t, x: t + share.astype(t.dtype) * x, total, measure(batch, key))

    zero = jax.tree.map(jnp.zeros_like, like)
    return local.each_step(add, zero, k, local.Work(batch_size, epochs=1, shuffle=False))


def gradient(loss: Loss, theta: PyTree, k: Examples, batch_size: int) -> PyTree:
    """The gradient of k's loss at theta."""
    return mean(partial(jax.grad(loss), theta), theta, k, batch_size)


def hessian(loss: Loss, theta: PyTree, k: Examples, batch_size: int) -> Operator:
    """v -> H v, for v like theta, with H the Hessian of k's loss at theta."""

    def apply(v):
        def product(batch, key):
            return hypergrad.hvp(lambda x: loss(x, batch, key), theta, v)

        return mean(product, theta, k, batch_size)

    return apply


def of_clients(measure: Callable[[PyTree, PyTree, Examples], PyTree], verb: Callable) -> Callable:
    """(base, theta, cohort) -> measure(base, theta, k) for every client k, stacked [K, ...].

    `verb` is a ForEachClient, such as the engine's. Clients share base, theta and the examples.
    """

    def client(base, theta, k):
        return Reply(measure(base, theta, k), (), {})

    return lambda base, theta, cohort: verb(client, base, theta, cohort).upload


# ---------------------------------------------------------------------- which parameters


def whole(base: PyTree, theta: Theta) -> tuple[dict, Theta]:
    """(base, theta) of the same model, with factors folded in and every weight trained whole."""
    return {}, Theta({**lowrank.merge(base, theta), **theta.full}, {})


def factors(base: PyTree, theta: Theta) -> tuple[dict, Theta]:
    """(base, theta) of the same model, with only the factors trained."""
    return {**base, **theta.full}, Theta({}, theta.factors)


def only(base: PyTree, theta: Theta, chosen: Callable[[str], bool]) -> tuple[dict, Theta]:
    """(base, theta) of the same model, with only the paths trained for which chosen(path)."""
    kept, rest = _those(theta, chosen), _those(theta, lambda p: not chosen(p))
    if not any(kept):
        raise ValueError(f"none of {', '.join(sorted({*theta.full, *theta.factors}))} is chosen")
    return {**lowrank.merge(base, rest), **rest.full}, kept


def _those(theta: Theta, chosen: Callable[[str], bool]) -> Theta:
    return Theta(
        {p: w for p, w in theta.full.items() if chosen(p)},
        {p: f for p, f in theta.factors.items() if chosen(p)},
    )
