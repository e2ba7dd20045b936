"""Restarts: what a merge makes of the base and the factors."""

import jax

from jaxfed import lowrank
from jaxfed.algorithm import PyTree
from jaxfed.lowrank.factors import Theta


def keep(base: PyTree, theta: Theta, start: Theta, key: jax.Array) -> tuple[PyTree, Theta]:
    """Merge and leave the factors as they are: the product then counts twice.

    The authors' released CIFAR run does this. W <- W + s A B; A, B stay.
    """
    return lowrank.merge(base, theta), theta


def reinit(base: PyTree, theta: Theta, start: Theta, key: jax.Array) -> tuple[PyTree, Theta]:
    """Merge and restart, down factor random and up factor zero: the function is unchanged.

    W <- W + s A B; A random, B = 0, as in ReLoRA.
    """
    return lowrank.merge(base, theta), lowrank.fresh(theta, key)


def residual(base: PyTree, theta: Theta, start: Theta, key: jax.Array) -> tuple[PyTree, Theta]:
    """Merge what was gained since the start and return there: the function is unchanged.

    W <- W + s (A B - A_0 B_0); A, B <- A_0, B_0, the factors that training began with (FRLoRA).
    """
    undone = {
        p: w - lowrank.product(start.factors[p]).astype(w.dtype) if p in start.factors else w
        for p, w in lowrank.merge(base, theta).items()
    }
    return undone, theta._replace(factors=start.factors)
