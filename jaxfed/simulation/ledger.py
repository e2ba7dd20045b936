"""The ledger: bytes on the wire, per direction, client and round."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxfed import algorithm as contract
from jaxfed import trees
from jaxfed.algorithm import Algorithm, Cohort, PyTree
from jaxfed.trees import nbytes


class Wire(NamedTuple):
    """Bytes that one participating client receives and sends in a round."""

    down: int
    up: int


def most(algorithm: Algorithm, server: PyTree, cohort: Cohort) -> tuple[Wire, bool]:
    """(the most bytes that a client receives and sends in a round, True if every client does).

    This follows from the shapes of messages and uploads, summed over the round's exchanges. Nothing
    is computed; server and cohort may be shapes. The bytes are not exact if clients declare fewer,
    or if a condition decides which exchange runs.
    """
    clients = cohort.id.shape[0]
    crossed = contract.exchanges(algorithm, server, cohort)
    down = sum(nbytes(each.message) for each in crossed)
    up = sum(nbytes(each.reply.upload) // clients for each in crossed)
    declared = jax.tree.leaves([(each.reply.received, each.reply.sent) for each in crossed])
    return Wire(down, up), not declared and not any(each.conditional for each in crossed)


def mean(rounds: Callable, *arguments: PyTree) -> Wire:
    """The bytes that a client receives and sends: the mean over the first round's clients.

    `rounds` is the result of engine.rounds, and `arguments` are its arguments. XLA computes only
    the values on which the bytes depend.
    """
    account = jax.device_get(jax.jit(lambda *x: rounds(*x)[2][contract.ACCOUNT][2:])(*arguments))
    return Wire(*(round(float(trees.as_number(count)[0].mean())) for count in account))


def check_merges(algorithm: Algorithm, server: PyTree, rounds: int) -> None:
    """Warns if an algorithm that merges has no merge in so many rounds; shapes will do."""
    merges = algorithm.broadcast is not contract.no_broadcast
    if merges and not any(algorithm.broadcast(server, t) for t in range(rounds)):
        warnings.warn(
            f"no merge is due in {rounds} rounds: the factors are never folded into the base; run "
            "more rounds, or merge more often (`every`)",
            stacklevel=2,
        )


def eager(
    owed: np.ndarray, ids: np.ndarray, merge: int, most: int, room: int | np.ndarray
) -> tuple[int, np.ndarray]:
    """(extra bytes of this round, owed): a merge is broadcast at once to all absent clients.

    `ids` took part; `merge` is the bytes of the factors merged in this round, or zero. Clients that
    take part pay nothing extra, because the round's message contains those factors.
    """
    return merge * (len(owed) - len(ids)), owed


def lazy(
    owed: np.ndarray, ids: np.ndarray, merge: int, most: int, room: int | np.ndarray
) -> tuple[int, np.ndarray]:
    """(extra bytes of this round, owed [N]): a client pays for missed merges when next drawn.

    `owed` is the bytes that each of the N clients must still fetch, at most `most`, the whole base.
    `room` [K] is what the messages of those drawn leave of the whole model, which is all that a
    client fetches in a round at most: messages may repeat what it missed, as FLoRA's do.
    """
    extra = int(np.minimum(owed[ids], room).sum())
    owed = np.minimum(owed + merge, most)
    owed[ids] = 0
    return extra, owed


MERGES: dict[str, Callable] = {"eager": eager, "lazy": lazy}
