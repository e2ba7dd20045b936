"""Per-FedAvg: Fallah et al., NeurIPS 2020, Algorithm 1: a start that adapts well in one step.

    min_w (1/n) sum_i F_i(w),  F_i(w) = f_i(w - alpha grad f_i(w))

    client i, for each local step, with minibatches D, D', D'':
        w~ <- w - alpha grad f_i(w; D)
        w  <- w - beta (I - alpha grad^2 f_i(w; D'')) grad f_i(w~; D')
    server: w <- mean of the clients' w

The second derivative is one Hessian-vector product; Section 5 of the paper avoids it in two ways.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, hypergrad, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task, without_running
from jaxfed.templates import averaging, check_number

Loss = Callable[[PyTree, dict], jax.Array]  # of theta and a batch
Slope = tuple[jax.Array, PyTree]  # f(w~; D') and the gradient of F at w, exact or not


def first_order(
    loss: Loss, w: PyTree, inner_rate: float, inner: dict, outer: dict, _: dict
) -> Slope:
    """(f(w~; D'), grad f(w~; D')): Per-FedAvg (FO), without the second derivative."""
    adapted = optax.tree.add_scale(w, -inner_rate, jax.grad(loss)(w, inner))
    return jax.value_and_grad(loss)(adapted, outer)


def exact(
    loss: Loss, w: PyTree, inner_rate: float, inner: dict, outer: dict, curved: dict
) -> Slope:
    """(f(w~; D'), (I - alpha grad^2 f(w; D'')) grad f(w~; D'))."""
    value, g = first_order(loss, w, inner_rate, inner, outer, curved)
    product = hypergrad.hvp(lambda w: loss(w, curved), w, g)
    return value, optax.tree.add_scale(g, -inner_rate, product)


def hessian_free(delta: float) -> Callable[..., Slope]:
    """Per-FedAvg (HF): `exact` with a finite difference for the Hessian-vector product.

    (grad f(w + delta g) - grad f(w - delta g)) / (2 delta), with g = grad f(w~; D').
    """

    check_number("delta", delta, 0.0, above=True)

    def gradient(loss, w, inner_rate, inner, outer, curved):
        value, g = first_order(loss, w, inner_rate, inner, outer, curved)
        ahead, behind = (
            jax.grad(loss)(optax.tree.add_scale(w, d, g), curved) for d in (delta, -delta)
        )
        product = optax.tree.scale(1 / (2 * delta), optax.tree.sub(ahead, behind))
        return value, optax.tree.add_scale(g, -inner_rate, product)

    return gradient


def same(batch: dict) -> tuple[dict, dict, dict]:
    """(D, D', D''): the whole batch for each."""
    return batch, batch, batch


def thirds(batch: dict) -> tuple[dict, dict, dict]:
    """(D, D', D''): a third of the batch each, as the paper draws them; triple the batch size."""
    if len(batch["mask"]) % 3:
        raise ValueError(f"a batch of {len(batch['mask'])} has no thirds; use a multiple of three")
    first, second, third = ({n: v[i::3] for n, v in batch.items()} for i in range(3))
    return first, second, third


def perfedavg(
    task: Task,
    work: local.Work,
    *,
    inner_rate: float,
    gradient: Callable[..., Slope],
    minibatches: Callable[[dict], tuple[dict, dict, dict]],
    client_optimizer: optax.GradientTransformation,
    personal_work: local.Work,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.uniform_mean,
) -> Algorithm:
    """Per-FedAvg over theta; each client keeps the change that its personal steps made.

    The personal steps start from the theta that the client received last. The client deploys the
    server's current theta plus that change. The record's loss is f_i(w~; D').

    Args:
        task: the model and its loss f_i.
        work: local work in each round, with rate beta.
        inner_rate: alpha, the learning rate of the inner step and of the personal steps.
        gradient: `exact`, `hessian_free(delta)` or `first_order`.
        minibatches: how a batch is split into D, D' and D''; the paper draws three (`thirds`).
        client_optimizer: takes the meta-gradient; the paper uses optax.sgd(beta).
        personal_work: SGD steps after download; the paper takes one.
        mean: of the uploads; uniform by default, as in the paper.
    """

    check_number("inner_rate", inner_rate, 0.0)
    task = without_running(task, "the meta-gradient is that of weights, which statistics are not")

    def client(base, w, k):
        optimizer = local.accepting(client_optimizer)

        def step(carry, batch, key):
            w, opt, total = carry

            def loss(w, batch):
                return task.loss(base, w, batch, key)

            value, grads = gradient(loss, w, inner_rate, *minibatches(batch))
            updates, opt = optimizer.update(grads, opt, w, round=k.round)
            return optax.apply_updates(w, updates), opt, total + value

        start = (w, optimizer.init(w), jnp.zeros(()))
        trained, _, total = local.each_step(step, start, k, work)
        mine, _ = local.sgd(
            partial(task.loss, base), optax.sgd(inner_rate), w, local.again(k, 1), personal_work
        )
        metrics = {"loss": total / jnp.maximum(work.local_steps(k.count), 1)}
        return Reply(optax.tree.sub(trained, w), optax.tree.sub(mine, w), metrics)

    return averaging(
        task,
        client,
        init_client=lambda server, key: optax.tree.zeros_like(server.theta),
        deploy=lambda server, change: (server.base, optax.tree.add(server.theta, change)),
        mean=mean,
    )
