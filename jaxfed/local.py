"""What one client does with its own examples: batches, local steps, local training."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfed import trees, values
from jaxfed.algorithm import Data, PyTree


@dataclasses.dataclass(frozen=True)
class Work:
    """How much a client does in a round: `epochs` over its own examples, or a number of `steps`.

    The last batch of an epoch holds what is left (its missing examples are masked); with
    `drop_remainder` it is left out, as long as one whole batch remains.
    """

    batch_size: int
    epochs: int | None = None
    steps: int | None = None
    shuffle: bool = True
    drop_remainder: bool = False

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"local work needs epochs or steps, one of the two; got epochs={self.epochs} and "
                f"steps={self.steps}"
            )
        for name in ("batch_size", "epochs", "steps"):
            if name == "batch_size" or getattr(self, name) is not None:
                value = values.whole(name, getattr(self, name), 1)
                object.__setattr__(self, name, value)  # numpy's would decide types under jit
        for name in ("shuffle", "drop_remainder"):
            values.kind(name, getattr(self, name), bool | np.bool, "True or False")

    def batches(self, count: jax.Array) -> jax.Array:
        """Batches in one pass over `count` examples."""
        if self.drop_remainder:
            return jnp.maximum(count // self.batch_size, jnp.minimum(count, 1))
        return -(-count // self.batch_size)

    def local_steps(self, count: jax.Array) -> jax.Array:
        """Local steps of a client with `count` examples; none if it has no example."""
        if self.epochs is not None:
            return self.epochs * self.batches(count)
        return jnp.where(count > 0, self.steps or 0, 0)

    @property
    def passes(self) -> int:
        """The most passes over its examples that a client can make."""
        return self.epochs or self.steps or 0


def each_step(
    step: Callable[[PyTree, dict, jax.Array], PyTree], carry: PyTree, k, work: Work
) -> PyTree:
    """The carry after `carry = step(carry, batch, key)` for every local step of client k.

    A batch holds the client's example arrays [B, ...] and `mask` [B], one for a real example. The
    entries that fill up a short batch repeat the client's own examples under a mask of zero. Each
    pass goes through all examples once, in an order that depends on k.key alone.
    """
    values.kind("work", work, Work, "a local.Work, such as local.Work(10, epochs=1)")
    size, batches = work.batch_size, work.batches(k.count)
    order_key, step_key = jax.random.split(k.key)
    order = _orders(order_key, k.data, k.count, work)  # [passes, most]

    def body(t, carry):
        place = (t % batches) * size + jnp.arange(size)  # [B]
        wrapped = place % k.count
        row = wrapped if order is None else order[t // batches, wrapped]
        batch = {**k.data.at(row), "mask": (place < k.count).astype(jnp.float32)}
        return step(carry, batch, jax.random.fold_in(step_key, t))

    return jax.lax.fori_loop(0, work.local_steps(k.count), body, carry)


def _orders(key: jax.Array, data: Data, count: jax.Array, work: Work) -> jax.Array | None:
    """A random order of the client's examples for each pass [passes, most]; None: as they lie."""
    if not work.shuffle:
        return None
    draws = _draws(key, work.passes, data)
    mine = jnp.arange(data.most) < count
    return jnp.argsort(jnp.where(mine, draws, 2.0), axis=1).astype(jnp.int32)


def _draws(key: jax.Array, passes: int, data: Data) -> jax.Array:
    """Uniform draws [passes, most]; those of each pass are the same for any bound `most`."""
    if data.width is None:
        return jax.random.uniform(key, (passes, data.most))
    # An array [passes, width] has its draws in a row, and a longer row begins with the same draws.
    place = jnp.arange(passes)[:, None] * data.width + jnp.arange(data.most)
    return jax.random.uniform(key, (passes * data.most,))[place]


def sgd(
    loss: Callable[[PyTree, dict, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    theta: PyTree,
    k,
    work: Work,
) -> tuple[PyTree, dict]:
    """(theta after client k's local steps, {"loss": their mean loss}).

    theta <- theta + optimizer(grad loss(theta, batch, key)). The optimizer starts anew each round
    and gets the round and the batch's loss, as `optimizer.update(..., round=k.round, value=...)`
    (optax.contrib.reduce_on_plateau wants one). A client without examples
    returns theta as it is and a loss of zero.
    """
    opt = accepting(optimizer).init(theta)
    trained, _, metrics = continued(loss, optimizer, theta, opt, k, work)
    return trained, metrics


def continued(
    loss: Callable[[PyTree, dict, jax.Array], jax.Array],
    optimizer: optax.GradientTransformation,
    theta: PyTree,
    opt: PyTree,
    k,
    work: Work,
) -> tuple[PyTree, PyTree, dict]:
    """(theta, the optimizer's state, {"loss": ...}): `sgd`, but from the state `opt`."""
    optimizer = accepting(optimizer)

    def step(carry, batch, key):
        theta, opt, total = carry
        value, grads = jax.value_and_grad(loss)(theta, batch, key)
        updates, opt = optimizer.update(grads, opt, theta, round=k.round, value=value)
        return optax.apply_updates(theta, updates), opt, total + value

    trained, opt, total = each_step(step, (theta, opt, jnp.zeros(())), k, work)
    return trained, opt, {"loss": total / jnp.maximum(work.local_steps(k.count), 1)}


def accepting(optimizer: Any, name: str = "client_optimizer") -> Any:
    """The optimizer, whose `update` accepts further arguments; TypeError if it is none of optax.

    It sees running statistics (`trees.Running`) as zeros without a gradient, so neither decay nor
    moments nor clipping depends on them; each of them takes its own step.
    """
    wanted = optax.GradientTransformation
    values.kind(name, optimizer, wanted, "one of optax, such as optax.sgd(0.1)")
    inner = optax.with_extra_args_support(optimizer)

    def init(params):
        return inner.init(trees.zero_running(params))

    def update(updates, state, params=None, **extra):
        seen = None if params is None else trees.zero_running(params)
        found, state = inner.update(trees.zero_running(updates), state, seen, **extra)
        return _with_steps(found, updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def _with_steps(updates: PyTree, gradients: PyTree) -> PyTree:
    """The updates, but each running statistic takes the whole step against its gradient."""
    return jax.tree.map(
        lambda u, g: optax.tree.scale(-1, g) if trees.is_running(g) else u,
        updates,
        gradients,
        is_leaf=trees.is_running,
    )


def again(k, purpose: int):
    """Client k with another key, for its second, third, ... training in a round."""
    return k._replace(key=jax.random.fold_in(k.key, purpose))


def only_if(k, active: jax.Array):
    """Client k; or, if not `active`, one without examples, which takes no step."""
    return k._replace(count=jnp.where(active, k.count, 0))


def scale_by_round(schedule: Callable[[jax.Array], jax.Array]) -> optax.GradientTransformation:
    """Multiplies updates by schedule(round): a learning rate that changes from round to round.

    `optax.chain(optax.sgd(0.1), scale_by_round(cosine(1e-2, 400)))` as a client's optimizer.
    """

    values.function("schedule", schedule, "a function of the round, such as cosine(1e-2, 400)")

    def update(updates, state, params=None, **extra):
        scaled = optax.tree.scale(schedule(extra["round"]), updates)
        return optax.tree.cast_like(scaled, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def cosine(least: float, rounds: int) -> Callable[[jax.Array], jax.Array]:
    """t -> least + (1 - least) (1 + cos(pi t / rounds)) / 2, a factor from 1 to `least`."""
    values.number("least", least)
    values.whole("rounds", rounds, 1)
    return lambda t: least + 0.5 * (1 - least) * (1 + jnp.cos(math.pi * t / rounds))
