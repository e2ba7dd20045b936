"""What the clients of a population keep between rounds, and where it lies."""

from collections.abc import Callable
from typing import Any

import jax

from jaxfed.algorithm import PyTree


def on_device(init_client: Callable, server: Any, clients: int, seed: int) -> PyTree:
    """Every client's first state, stacked [N, ...] on the device; () if clients keep nothing."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), clients), clients)
    return jax.jit(jax.vmap(init_client, in_axes=(None, 0)))(server, keys)
