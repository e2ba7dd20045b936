"""FedPer: Arivazhagan et al., arXiv 1912.00818: a shared body and a personal head.

    client k: (body, head_k) <- local training of both, from the server's body and its own head
    body <- sum_k p_k body_k;  head_k stays on the client

Any part of theta may be personal. A pattern on the paths of the leaves selects it. Paths in a Theta
are, for example, "full/head/kernel", "factors/dense_0/kernel/a" and "factors/dense_0/kernel/b".
"""

import re
from collections.abc import Callable
from functools import partial

import jax
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.data import values
from jaxfed.tasks.task import Task
from jaxfed.templates import averaging


def fedper(
    task: Task,
    work: local.Work,
    *,
    personal: str,
    client_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedAvg over the leaves of theta whose paths do not match `personal`, a regular expression.

    Each client keeps the other leaves; they start at `task.init` of the client's own key. `init`
    raises ValueError if no path matches.
    """
    values.pattern("personal", personal)

    def init(key):
        base, theta = task.init(key)
        shared, _ = divide(theta, personal)
        if not jax.tree.leaves(shared):
            raise ValueError(f"personal={personal!r} matches every path; leave some to share")
        return base, shared

    def init_client(server, key):
        return divide(task.init(key)[1], personal)[1]

    def client(base, shared, k):
        theta = united(shared, k.state)
        trained, metrics = local.sgd(partial(task.loss, base), client_optimizer, theta, k, work)
        new, own = divide(trained, personal)
        return Reply(optax.tree.sub(new, shared), own, metrics)

    def deploy(server, own):
        return server.base, united(server.theta, own)

    return averaging(task, client, init_client=init_client, deploy=deploy, mean=mean, init=init)


def divide(theta: PyTree, personal: str) -> tuple[PyTree, PyTree]:
    """(shared, own): theta without its personal leaves, and the personal leaves alone.

    None replaces a missing leaf, so it is neither sent nor kept. Raises ValueError if no path
    matches.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(theta)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    mine = [re.search(personal, path) is not None for path in paths]
    if not any(mine):
        raise ValueError(f"personal={personal!r} matches none of: {', '.join(paths)}")
    shared = [None if own else leaf for own, (_, leaf) in zip(mine, leaves, strict=True)]
    kept = [leaf if own else None for own, (_, leaf) in zip(mine, leaves, strict=True)]
    return jax.tree.unflatten(structure, shared), jax.tree.unflatten(structure, kept)


def united(shared: PyTree, own: PyTree) -> PyTree:
    """Theta from its two parts."""
    return jax.tree.map(
        lambda x, y: y if x is None else x, shared, own, is_leaf=lambda x: x is None
    )
