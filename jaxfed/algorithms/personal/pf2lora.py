"""PF2LoRA: Hao et al., arXiv 2503.03920.

    min_x (1/M) sum_k f_k(x, y_k*(x)),   y_k*(x) in argmin_y f_k(x, y),   W_k = W_0 + B A + D_k C_k

x = (A, B) is common: clients send it and the server averages it. y_k = (C_k, D_k) has a smaller
rank and never leaves its client. A local step updates y by SGD, then x by the hypergradient through
that one SGD step.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, hypergrad, local, lowrank
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.tasks.task import Task, without_running
from jaxfed.templates import check_number


class Server(NamedTuple):
    """The server's state."""

    base: PyTree  # frozen, W_0
    theta: Theta  # common, x
    head: dict[str, jax.Array]  # the start of every client's head; {} if the head is common


class State(NamedTuple):
    """A client's state."""

    y: dict[str, Factors]  # personal, (C_k, D_k)
    head: dict[str, jax.Array]
    opt: PyTree  # the states of both levels' optimizers; () if each round restarts them


def same(batch: dict) -> tuple[dict, ...]:
    """(batch,): one minibatch for both levels, as in the printed formula."""
    return (batch,)


def halves(batch: dict) -> tuple[dict, ...]:
    """(lower, upper): every other example for each level; double the batch size of `work`."""
    if len(batch["mask"]) % 2:
        raise ValueError(f"a batch of {len(batch['mask'])} has no halves; use an even batch_size")
    return {n: v[::2] for n, v in batch.items()}, {n: v[1::2] for n, v in batch.items()}


def pf2lora(
    task: Task,
    work: local.Work,
    *,
    rank: int,
    inner_rate: float | None = None,
    personal_optimizer: optax.GradientTransformation | None = None,
    upper_optimizer: optax.GradientTransformation,
    keep_moments: bool,
    personal_head: bool,
    scale: float = 1.0,
    up: Literal["zero", "random"] = "zero",
    minibatches: Callable[[dict], tuple[dict, ...]] = same,
    gradient: Callable = hypergrad.one_step,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.uniform_mean,
) -> Algorithm:
    """PF2LoRA over the task's factors x; each client keeps its factors y_k of the given `rank`.

    The record's loss is f_k(x, y+), where y+ is y after the lower step.

    Args:
        task: the model and its loss f_k; its factors are x.
        work: local work between two averages; the paper takes 10 steps.
        rank: r~ of the personal factors; the paper uses 2 beside r = 8.
        inner_rate: alpha, SGD's rate on the lower level; the paper: 1e-4 on CoLA, else 1e-3.
        personal_optimizer: instead of `inner_rate`, an optimizer of the lower level, such as AdamW;
            h_k then has no cross term (`hypergrad.lower_level`).
        upper_optimizer: takes the hypergradient h_k; the paper uses AdamW.
        keep_moments: True if clients keep the optimizers' states across averages, False if each
            round restarts them.
        personal_head: True if clients keep all weights trained whole, False if they are averaged.
        scale: s of the personal factors.
        up: how the personal up factors start: at zero, so that the first model is the common one,
            or at random.
        minibatches: how a batch is split over the two levels, `same` or `halves`.
        gradient: `hypergrad.one_step`; for the ablations `hypergrad.alternating`, which omits the
            cross term, or `hypergrad.simultaneous`, which updates both levels at once.
        mean: of the uploads; uniform by default, as in the paper.
    """
    lower = hypergrad.lower_level(inner_rate, gradient, personal_optimizer)
    check_number("rank", rank, 1)
    check_number("scale", scale, 0.0, above=True)
    upper_optimizer = local.accepting(upper_optimizer, "upper_optimizer")

    def init(key):
        base, theta = without_running(task, "a hypergradient is that of weights").init(key)
        if not theta.factors:
            raise ValueError("nothing is common: no factors are trained; select some with a rank")
        common, own = ({}, theta.full) if personal_head else (theta.full, {})
        return Server(base, theta._replace(full=common), own)

    def init_client(server, key):
        y = lowrank.beside(server.theta.factors, rank, key, alpha=scale * rank, up=up)
        x = server.theta._replace(full={**server.theta.full, **server.head})
        return State(y, server.head, moments(x, y) if keep_moments else ())

    def moments(x, y):
        return upper_optimizer.init(x), lower.init(y)

    def client(base, theta, k):
        # The paper does not say which level trains a personal head. Here it is the upper level: at
        # the lower level's rate (1e-4 on CoLA) a new head would hardly change.
        x = theta._replace(full={**theta.full, **k.state.head})

        def step(carry, batch, key):
            x, y, (opt, own), total = carry
            f = [
                lambda x, y, b=b: task.loss(base, lowrank.joined(x, y), b, key)
                for b in minibatches(batch)
            ]
            # line 5: y+; line 6: h_k
            value, h, y, own = lower.step(f[0], x, y, own, upper=f[-1], round=k.round)
            updates, opt = upper_optimizer.update(h, opt, x, round=k.round)
            return optax.apply_updates(x, updates), y, (opt, own), total + value

        opt = k.state.opt if keep_moments else moments(x, k.state.y)
        x, y, opt, total = local.each_step(step, (x, k.state.y, opt, jnp.zeros(())), k, work)
        head = {p: x.full[p] for p in k.state.head}
        return Reply(
            upload=optax.tree.sub(x._replace(full={p: x.full[p] for p in theta.full}), theta),
            state=State(y, head, opt if keep_moments else ()),
            metrics={"loss": total / jnp.maximum(work.local_steps(k.count), 1)},
        )

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        # A and B are averaged separately, after each `work`
        theta = optax.tree.add(server.theta, mean(reply.upload, cohort.weight))
        return server._replace(theta=theta), reply.state, reply.metrics

    def deploy(server, state):
        theta = server.theta._replace(full={**server.theta.full, **state.head})
        return server.base, lowrank.joined(theta, state.y)

    return Algorithm(init, init_client, run_round, deploy, task)
