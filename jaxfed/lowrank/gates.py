"""Two adapters beside one weight, weighed anew for every input.

A layer returns y = x W + w_0(x) s_0 (x a_0) b_0 + w_1(x) s_1 (x a_1) b_1. The weights are given,
one pair for each example, or come from a router, a down factor g [in..., 2] of the layer's own:

    w(x) = softmax(x g),

one pair for each example, token or position that the layer sees.
"""

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed.lowrank.factors import Factors, Theta, concat


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("factors", "gate"),
    meta_fields=("ranks", "routed"),
)
@dataclasses.dataclass(frozen=True)
class Gated:
    """Adapters of these `ranks` as one, and their gate.

    The gate is a router [in..., n] if `routed`, otherwise weights [B, n].
    """

    factors: Factors
    gate: jax.Array
    ranks: tuple[int, ...]
    routed: bool

    @property
    def stack(self) -> int:
        return self.factors.stack

    @property
    def router(self) -> Factors:
        """The gate in the form of factors, of which only the down side counts."""
        return Factors(self.gate, jnp.zeros(len(self.ranks), self.gate.dtype), 1.0)

    def spread(self, weights: jax.Array) -> jax.Array:
        """Weights [..., n] of adapters -> weights [..., r] of their components."""
        return jnp.repeat(weights, np.array(self.ranks), -1, total_repeat_length=sum(self.ranks))


def weighed(theta: Theta, more: Mapping[str, Factors], weights: jax.Array) -> Theta:
    """Theta with a second adapter beside the first, weighed for each example by weights [B, 2]."""
    return _gated(theta, more, dict.fromkeys(more, weights), routed=False)


def routed(theta: Theta, more: Mapping[str, Factors], routers: Mapping[str, jax.Array]) -> Theta:
    """Theta with a second adapter beside the first, weighed by routers {path: [in..., 2]}."""
    return _gated(theta, more, routers, routed=True)


def even_routers(factors: Mapping[str, Factors]) -> dict[str, jax.Array]:
    """Routers of zeros, which weigh both adapters by one half whatever the input."""
    return {p: jnp.zeros((*f.a.shape[:-1], 2), f.a.dtype) for p, f in factors.items()}


def _gated(
    theta: Theta, more: Mapping[str, Factors], gates: Mapping[str, jax.Array], *, routed: bool
) -> Theta:
    factors: dict[str, Any] = dict(theta.factors)
    for p, second in more.items():
        first = theta.factors[p]
        ranks = (first.rank, second.rank)
        factors[p] = Gated(concat(first, second), gates[p], ranks, routed)
    return theta._replace(factors=factors)
