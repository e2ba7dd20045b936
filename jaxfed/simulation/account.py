"""The account of a round: the engine's own notes on each client, beside the metrics."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxfed import algorithm as contract
from jaxfed import trees
from jaxfed.algorithm import (
    ACCOUNT,
    Account,
    Algorithm,
    Client,
    Cohort,
    ForEachClient,
    PyTree,
    Reply,
)


def noted(client: Client, base: PyTree, message: PyTree, k: Cohort) -> Reply:
    """The client's reply, with its Account added to the metrics."""
    reply = client(base, message, k)
    contract.check_names(reply.metrics)
    flags = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves((reply.upload, reply.metrics))]
    account = Account(
        finite=jnp.all(jnp.stack(flags)) if flags else jnp.array(True),
        skipped=jnp.array(False),
        down=trees.byte_count(message, reply.received),
        up=trees.byte_count(reply.upload, reply.sent),
    )
    metrics = {**reply.metrics, ACCOUNT: account}
    return reply._replace(metrics=metrics, received=None, sent=None)


def run_round(algorithm: Algorithm, server: Any, cohort: Cohort, verb: ForEachClient) -> tuple:
    """run_round's results, with the Account of all its exchanges added to the metrics.

    An exchange that run_round calls directly is counted here, whether or not its metrics are
    returned. The values of an exchange inside lax.cond, scan or jit do not exist outside, so
    its account must come back in the metrics. Of a cond, only the branch that runs is counted.
    """
    direct: list[Account] = []
    inside = []
    trace = contract.trace_state()

    def hear(reply, message, cohort):
        if contract.trace_state() == trace:
            direct.append(reply.metrics[ACCOUNT])
        else:
            inside.append(message)
        return reply

    before = server
    server, states, metrics = algorithm.run_round(server, cohort, contract.overheard(verb, hear))
    _warn_of_untrained(before, server, states)
    own = {name: value for name, value in metrics.items() if name != ACCOUNT}
    contract.check_names(own)
    returned = metrics.get(ACCOUNT)
    if inside and (returned is None or any(returned.down is each.down for each in direct)):
        raise TypeError(
            "an exchange inside lax.cond, scan or jit must pass on its reply.metrics, and "
            "run_round must return them, because they hold its count of bytes"
        )
    counted = [*direct, returned] if inside and returned is not None else direct
    return server, states, {**own, ACCOUNT: _total(counted, returned)}


def _warn_of_untrained(before: Any, after: Any, states: PyTree) -> None:
    """Warns of a part of theta that the round hands on untouched, if clients keep nothing either.

    It would stay as it was drawn, though the task's selection says that it is trained.
    """
    if jax.tree.leaves(states) or not hasattr(after, "theta"):
        return
    begin, end = (jax.tree_util.tree_leaves_with_path(s.theta) for s in (before, after))
    same = [path for (path, x), (_, y) in zip(begin, end, strict=False) if x is y]
    if same and len(same) < len(begin):
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path in same]
        warnings.warn(
            f"{', '.join(names[:5])}: selected to be trained, but the algorithm hands "
            f"{'it' if len(names) == 1 else f'these {len(names)}'} on as drawn; train it, or "
            "select less",
            stacklevel=2,
        )


def _total(counted: Sequence[Account], returned: Account | None) -> Account:
    """The Account of all exchanges together; `returned` lists the clients that a guard left out."""
    if not counted:
        raise TypeError("run_round made no exchange: call for_each_client at least once")
    skipped = counted[-1].skipped if returned is None else returned.skipped
    finite = [each.finite | skipped for each in counted]
    return Account(
        finite=jnp.all(jnp.stack(finite), axis=0),
        skipped=skipped,
        down=trees.added([each.down for each in counted]),
        up=trees.added([each.up for each in counted]),
    )
