"""APFL: Deng, Kamani and Mahdavi, arXiv 2003.13461, Algorithm 1: a mixture of two models.

    client k of the cohort, from the server's w (w_k = w), its own v_k and its share a_k:
        each local step, at m = a_k v_k + (1 - a_k) w_k, all three from the same values:
            w_k <- w_k - eta grad f_k(w_k)
            v_k <- v_k - eta a_k grad f_k(m)               the gradient of f_k(m) by v_k
            a_k <- a_k - eta_a <v_k - w_k, grad f_k(m)>    likewise by a_k; kept in [0, 1]
        uploads w_k - w; v_k and a_k stay
    w <- w + mean_k (w_k - w)

Client k deploys a_k v_k + (1 - a_k) w. The authors' code updates a_k in a round's first step only.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task, without_running
from jaxfed.templates import averaging, check_number


class State(NamedTuple):
    """A client's state."""

    v: PyTree  # its personal theta
    share: jax.Array  # [] a_k


def apfl(
    task: Task,
    work: local.Work,
    *,
    share: float,
    share_rate: float,
    client_optimizer: optax.GradientTransformation,
    personal_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.uniform_mean,
) -> Algorithm:
    """APFL over theta; each client keeps v_k, which starts at the server's theta, and a_k.

    The record's `loss` is the mean of f_k(w_k) over local steps, `personal_loss` that of f_k(m),
    and `share` the client's a_k.

    Args:
        task: the model and its loss f_k.
        work: local work in each round; every step updates w_k, v_k and a_k.
        share: a_k at first, from 0 (the shared model) to 1 (a model of its own).
        share_rate: eta_a, the learning rate of a_k; 0 keeps a_k as it is.
        client_optimizer: of w_k; restarted in each round.
        personal_optimizer: of v_k, likewise; the paper uses SGD for both.
        mean: of the uploads; uniform by default, as in the paper.
    """
    check_number("share", share, 0.0, 1.0)
    check_number("share_rate", share_rate, 0.0)
    task = without_running(task, "a mixture of two models has other statistics than their mixture")
    shared = local.accepting(client_optimizer)
    personal = local.accepting(personal_optimizer, "personal_optimizer")

    def init_client(server, key):
        kind = jnp.result_type(jnp.float32, *jax.tree.leaves(server.theta))
        return State(server.theta, jnp.asarray(share, kind))

    def client(base, w, k):
        loss = partial(task.loss, base)

        def step(carry, batch, key):
            w_k, (v, a), opt, own, totals = carry
            value, g = jax.value_and_grad(loss)(w_k, batch, key)
            mixed, h = jax.value_and_grad(loss)(mix(a, v, w_k), batch, key)
            slope = optax.tree.vdot(optax.tree.sub(v, w_k), h)
            updates, opt = shared.update(g, opt, w_k, round=k.round, value=value)
            own_updates, own = personal.update(
                optax.tree.cast_like(optax.tree.scale(a, h), v), own, v, round=k.round, value=mixed
            )
            a_new = jnp.clip(a - share_rate * slope, 0, 1).astype(a.dtype)
            new = State(optax.apply_updates(v, own_updates), a_new)
            totals = totals[0] + value, totals[1] + mixed
            return optax.apply_updates(w_k, updates), new, opt, own, totals

        zero = jnp.zeros(())
        begin = (w, k.state, shared.init(w), personal.init(k.state.v), (zero, zero))
        w_k, state, _, _, totals = local.each_step(step, begin, k, work)
        losses = (total / jnp.maximum(work.local_steps(k.count), 1) for total in totals)
        metrics = dict(zip(("loss", "personal_loss"), losses, strict=True))
        return Reply(optax.tree.sub(w_k, w), state, {**metrics, "share": state.share})

    def deploy(server, state):
        return server.base, mix(state.share, state.v, server.theta)

    return averaging(task, client, init_client=init_client, deploy=deploy, mean=mean)


def mix(a: jax.Array, v: PyTree, w: PyTree) -> PyTree:
    """a v + (1 - a) w."""
    return jax.tree.map(lambda v, w: (a * v + (1 - a) * w).astype(w.dtype), v, w)
