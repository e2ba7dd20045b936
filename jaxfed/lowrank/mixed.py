"""Ranks of clients whose resources differ: how many clients have which rank.

Shares [n] of ranks in ascending order. Three are those that FlexLoRA's code describes (Bai et al.,
NeurIPS 2024, arXiv 2402.11505); `normal` is ours, as the code leaves its shares open.
"""

from collections.abc import Callable, Sequence

import numpy as np

from jaxfed import values

MOST = 0.85  # of all clients, at one end of a heavy tail


def uniform(levels: int) -> np.ndarray:
    """Shares [levels] that are equal."""
    return np.full(levels, 1 / levels)


def light(levels: int) -> np.ndarray:
    """Shares [levels] of a heavy tail of small clients: 85 % have the lowest rank."""
    return strong(levels)[::-1]


def strong(levels: int) -> np.ndarray:
    """Shares [levels] of a heavy tail of large clients: 85 % have the highest rank."""
    if levels == 1:
        return np.ones(1)
    return np.append(np.full(levels - 1, (1 - MOST) / (levels - 1)), MOST)


def normal(levels: int) -> np.ndarray:
    """Shares [levels] under a normal density whose ends lie two deviations from its middle."""
    density = np.exp(-(np.linspace(-2, 2, levels) ** 2) / 2) if levels > 1 else np.ones(1)
    return density / density.sum()


def client_ranks(
    clients: int,
    levels: Sequence[int],
    share: Callable[[int], np.ndarray],
    *,
    seed: int,
) -> list[int]:
    """A rank of `levels` for each client, as many of each as its share asks for, shuffled.

        client_ranks(100, [8, 30, 100, 200], mixed.light, seed=0)  # 85 clients have rank 8

    Shares are rounded so that the numbers add up to `clients`. The list is the argument `ranks` of
    fedlora, fedhm, hetlora and mfedloru.
    """
    values.whole("clients", clients, 1)
    values.wholes("levels", levels, 1)
    ordered = sorted(set(levels))
    ends = np.rint(clients * np.cumsum(share(len(ordered)))).astype(int)
    ranks = np.repeat(ordered, np.diff(ends, prepend=0))
    return np.random.default_rng(seed).permutation(ranks).tolist()
