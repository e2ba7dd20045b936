"""FedPer: Arivazhagan et al., arXiv 1912.00818: a shared body and a personal head.

    client k: (body, head_k) <- local training of both, from the server's body and its own head
    body <- sum_k p_k body_k;  head_k stays on the client

Any part of theta may be personal. A pattern on the paths of the leaves selects it. Paths in a Theta
are, for example, "full/head/kernel", "factors/dense_0/kernel/a" and "factors/dense_0/kernel/b".

With the leaves of batch norms, their running statistics among them, it is FedBN (Li et al., ICLR
2021, arXiv 2102.07623, Algorithm 1): clients keep all that belongs to the norms, as in
`personal="norm"` for "full/norm_0/scale", ".../bias", ".../mean" and ".../var".
"""

import re
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import optax

from jaxfed import aggregate, local, trees, values
from jaxfed.algorithm import Algorithm, PyTree, Reply
from jaxfed.tasks.task import Task
from jaxfed.templates import averaging


class Server(NamedTuple):
    """The server's state."""

    base: PyTree  # frozen
    theta: PyTree  # trained, and shared
    own: PyTree  # the start of every client's personal part; () if each client draws its own


class State(NamedTuple):
    """A client's state."""

    own: PyTree  # its personal part of theta
    opt: PyTree  # the optimizer's state; () if each round restarts it


def fedper(
    task: Task,
    work: local.Work,
    *,
    personal: str,
    client_optimizer: optax.GradientTransformation,
    common_start: bool = False,
    keep_moments: bool = False,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedAvg over the leaves of theta whose paths do not match `personal`, a regular expression.

    Each client keeps the other leaves. They start at `task.init` of the client's own key or, with
    `common_start`, where the server's first theta has them: all clients then start alike, as they
    do under FedAvg. With `keep_moments` a client also keeps its optimizer's state. `init` raises
    ValueError if no path matches.
    """
    client_optimizer = local.accepting(client_optimizer)
    values.pattern("personal", personal)
    values.kind("common_start", common_start, bool, "True or False")
    values.kind("keep_moments", keep_moments, bool, "True or False")

    def init(key):
        base, theta = task.init(key)
        shared, own = divide(theta, personal)
        if not jax.tree.leaves(shared):
            raise ValueError(f"personal={personal!r} matches every path; leave some to share")
        return Server(base, shared, own if common_start else ())

    def init_client(server, key):
        own = server.own if common_start else divide(task.init(key)[1], personal)[1]
        opt = client_optimizer.init(united(server.theta, own)) if keep_moments else ()
        return State(own, opt)

    def client(base, shared, k):
        theta = united(shared, k.state.own)
        opt = k.state.opt if keep_moments else client_optimizer.init(theta)
        trained, opt, metrics = local.continued(
            partial(task.loss, base), client_optimizer, theta, opt, k, work
        )
        new, own = divide(trained, personal)
        return Reply(optax.tree.sub(new, shared), State(own, opt if keep_moments else ()), metrics)

    def deploy(server, state):
        return server.base, united(server.theta, state.own)

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
    return trees.together(shared, own)
