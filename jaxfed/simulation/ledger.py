"""The ledger: what goes over the wire, in bytes, per direction, client and round."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from jaxfed import algorithm as contract
from jaxfed.algorithm import Algorithm, Cohort, PyTree
from jaxfed.trees import nbytes


class Wire(NamedTuple):
    """Bytes that one participating client receives and sends in a round."""

    down: int
    up: int


def wire(algorithm: Algorithm, server: PyTree, cohort: Cohort) -> Wire:
    """What a client of one round receives and sends, by the shapes of message and upload.

    Nothing is computed; server and cohort may be shapes. A round of several exchanges adds them up.
    """
    crossed: list[Wire] = []

    def recording(client: Callable, base: PyTree, message: PyTree, cohort: Cohort):
        reply = jax.vmap(client, in_axes=(None, None, contract.axes(cohort)))(base, message, cohort)
        crossed.append(Wire(nbytes(message), nbytes(reply.upload) // cohort.id.shape[0]))
        return reply

    jax.eval_shape(lambda s, c: algorithm.run_round(s, c, recording), server, cohort)
    return Wire(sum(w.down for w in crossed), sum(w.up for w in crossed))


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
