"""Ravan: Raje et al., NeurIPS 2025 (arXiv 2506.05568): many heads between fixed factors.

    client k: trains H_i and s_i of every head i in W + s sum_i s_i A_i H_i B_i, from s_i = 1,
              and uploads s_i H_i
    H_i <- sum_k p_k s_i^k H_i^k

A_i and B_i are fixed, so the mean of H_i is the mean of the products, and h heads of rank r reach
rank h r with h r^2 numbers. The paper lets weak clients train some heads only; here all train all.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, combine, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.lowrank import forms
from jaxfed.tasks.task import Task
from jaxfed.templates import averaging


def ravan(
    task: Task,
    work: local.Work,
    *,
    heads: int,
    client_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedAvg over the cores of `heads` heads at each path; clients keep nothing.

    Args:
        task: the model and its loss; its factors tell paths, the rank of a head, and s.
        work: local work of a client in each round.
        heads: h, at each weight; h r is at most the weight's smaller side.
        client_optimizer: of the local steps on cores and scales; restarted in each round.
        mean: of the changes of s_i H_i; weighted by examples by default.
    """
    local.accepting(client_optimizer)

    def make(task):
        def client(base, theta, k):
            ones = {
                p.removesuffix(forms.CORE) + forms.SCALES: jnp.ones(core.shape[:-2], core.dtype)
                for p, core in theta.full.items()
                if p.endswith(forms.CORE)
            }
            start = theta._replace(full={**theta.full, **ones})
            trained, metrics = local.sgd(partial(task.loss, base), client_optimizer, start, k, work)
            return Reply(optax.tree.sub(forms.folded(trained), theta), (), metrics)

        return averaging(task, client, mean=mean)

    return combine.parametrised(make, task, form=forms.heads(heads))
