"""Losses over many examples, batch after batch: their gradients, and products with their Hessians.

The loss of a client is the mean over its examples, and so is that of all clients together over the
union: the sum of the clients' losses by their shares of the examples. A function of one batch is
averaged here, so a Hessian of any number of examples needs the memory of a batch.

A probe looks at one choice of parameters, as a pair (base, theta): `whole` are all weights with
the factors folded in, `factors` the factors alone; `only` keeps some paths of either.
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
    """Whose loss: what a probe needs of one client. A slice of a Cohort serves as well."""

    data: Data
    count: Leaf
    key: Leaf  # of augmentation and dropout, which are held fixed


def union(examples: dict, key: jax.Array) -> Examples:
    """All rows of `examples` [M, ...] as those of one client: the server's loss."""
    rows = len(jax.tree.leaves(examples)[0])
    return Examples(Data(examples, jnp.int32(0), rows), jnp.int32(rows), key)


def mean(
    measure: Callable[[dict, jax.Array], PyTree], like: PyTree, k: Examples, batch_size: int
) -> PyTree:
    """The mean of `measure(batch, key)` over k's examples; a tree like `like`.

    sum_b n_b / n measure(b), where n_b of the n examples are in batch b. `measure` must itself be a
    mean over the batch's real examples; where it is not (batch normalisation), the result depends
    on the batches. A batch always has the same key. Zero for a client without examples.
    """

    def add(total, batch, key):
        share = jnp.sum(batch["mask"]).astype(float) / k.count
        return jax.tree.map(lambda t, x: t + share.astype(t.dtype) * x, total, measure(batch, key))

    zero = jax.tree.map(jnp.zeros_like, like)
    return local.each_step(add, zero, k, local.Work(batch_size, epochs=1, shuffle=False))


def gradient(loss: Loss, theta: PyTree, k: Examples, batch_size: int) -> PyTree:
    """grad of k's loss at theta."""
    return mean(partial(jax.grad(loss), theta), theta, k, batch_size)


def hessian(loss: Loss, theta: PyTree, k: Examples, batch_size: int) -> Operator:
    """v -> H v, for v like theta, with H the Hessian of k's loss at theta."""

    def apply(v):
        def product(batch, key):
            return hypergrad.hvp(lambda x: loss(x, batch, key), theta, v)

        return mean(product, theta, k, batch_size)

    return apply


def of_clients(measure: Callable[[PyTree, PyTree, Examples], PyTree], verb: Callable) -> Callable:
    """(base, theta, cohort) -> measure(base, theta, k) of every client k at once, stacked [K, ...].

    `verb` is the engine's, or any of the kind; base and theta are shared, and so are the examples.
    """

    def client(base, theta, k):
        return Reply(measure(base, theta, k), (), {})

    return lambda base, theta, cohort: verb(client, base, theta, cohort).upload


# ---------------------------------------------------------------------- which parameters


def whole(base: PyTree, theta: Theta) -> tuple[dict, Theta]:
    """(base, theta) of the same model with every weight trained whole, and factors folded in."""
    return {}, Theta({**lowrank.merge(base, theta), **theta.full}, {})


def factors(base: PyTree, theta: Theta) -> tuple[dict, Theta]:
    """(base, theta) of the same model with the factors alone trained."""
    return {**base, **theta.full}, Theta({}, theta.factors)


def only(base: PyTree, theta: Theta, chosen: Callable[[str], bool]) -> tuple[dict, Theta]:
    """(base, theta) of the same model with only the paths trained for which `chosen` holds."""
    kept, rest = _those(theta, chosen), _those(theta, lambda p: not chosen(p))
    if not any(kept):
        raise ValueError(f"none of {', '.join(sorted({*theta.full, *theta.factors}))} is chosen")
    return {**lowrank.merge(base, rest), **rest.full}, kept


def _those(theta: Theta, chosen: Callable[[str], bool]) -> Theta:
    return Theta(
        {p: w for p, w in theta.full.items() if chosen(p)},
        {p: f for p, f in theta.factors.items() if chosen(p)},
    )
