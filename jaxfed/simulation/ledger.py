"""The ledger: what goes over the wire, in bytes, per direction, client and round."""

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
    """(what a client of one round receives and sends at most, True if it is exactly that).

    By the shapes of messages and uploads: nothing is computed; server and cohort may be shapes. A
    round of several exchanges adds them up. It is not exact where clients declare fewer bytes, or
    where a condition decides which exchange runs.
    """
    clients = cohort.id.shape[0]
    crossed = contract.exchanges(algorithm, server, cohort)
    down = sum(nbytes(each.message) for each in crossed)
    up = sum(nbytes(each.reply.upload) // clients for each in crossed)
    declared = jax.tree.leaves([(each.reply.received, each.reply.sent) for each in crossed])
    return Wire(down, up), not declared and not any(each.conditional for each in crossed)


def mean(rounds: Callable, *arguments: PyTree) -> Wire:
    """What a client receives and sends in the mean over the first round's clients, as declared.

    `rounds` are engine.rounds and `arguments` theirs. Only what the bytes depend on is computed.
    """
    account = jax.device_get(jax.jit(lambda *x: rounds(*x)[2][contract.ACCOUNT][2:])(*arguments))
    return Wire(*(round(float(trees.as_number(count)[0].mean())) for count in account))


def eager(owed: np.ndarray, ids: np.ndarray, merge: int, most: int) -> tuple[int, np.ndarray]:
    """(extra bytes of this round, owed): a merge is broadcast at once to all absent clients.

    `ids` took part; `merge` is the size of the factors merged in this round, or zero. A client
    that takes part pays nothing extra: what it merges comes with the round's message.
    """
    return merge * (len(owed) - len(ids)), owed


def lazy(owed: np.ndarray, ids: np.ndarray, merge: int, most: int) -> tuple[int, np.ndarray]:
    """(extra bytes of this round, owed [N]): a client pays for missed merges when next drawn.

    `owed` is what each of the N clients must still fetch; never more than `most`, the whole base.
    """
    extra = int(owed[ids].sum())
    owed = np.minimum(owed + merge, most)
    owed[ids] = 0
    return extra, owed


MERGES: dict[str, Callable] = {"eager": eager, "lazy": lazy}
