"""Restarts: what a merge makes of the base and the factors.

Under SGD at rate h, one step moves a layer's weight by -h s^2 (A A^T G + G B^T B), where G is the
gradient by the weight. Where both factors are as they were first drawn, A [in, r] uniform within
1 / sqrt(in) and B [r, out] within 1 / sqrt(r), the expectation of A A^T is r / (3 in) times the
identity and that of B^T B a third of it.
"""

import dataclasses

import jax

from jaxfed import lowrank, values
from jaxfed.algorithm import PyTree
from jaxfed.lowrank.factors import Factors, Theta


def keep(base: PyTree, theta: Theta, start: Theta, key: jax.Array) -> tuple[PyTree, Theta]:
    """Merge and leave the factors as they are: the product then counts twice.

    The authors' released CIFAR run does this. W <- W + s A B; A, B stay.
    """
    return lowrank.merge(base, theta), theta


def reinit(
    base: PyTree, theta: Theta, start: Theta, key: jax.Array, *, magnitude: float = 1.0
) -> tuple[PyTree, Theta]:
    """Merge and restart, down factor random and up factor zero: the function is unchanged.

    W <- W + s A B; A random, B = 0, as in ReLoRA. The first steps of SGD on W are 1 + in / r times
    smaller than where both factors are random: 197 times in a layer of 784 inputs at rank 4.
    `magnitude` multiplies the new A, and its square those steps; sqrt(in / r) restores their size.
    Give it by `functools.partial(reinit, magnitude=8.0)`. ValueError unless it is above 0.
    """
    if values.number("magnitude", magnitude) <= 0:
        raise ValueError(f"magnitude={magnitude}; use a number above 0")
    new = lowrank.fresh(theta, key)
    if magnitude != 1.0:
        larger = {p: dataclasses.replace(f, a=f.a * magnitude) for p, f in new.factors.items()}
        new = new._replace(factors=larger)
    return lowrank.merge(base, theta), new


def balanced(base: PyTree, theta: Theta, start: Theta, key: jax.Array) -> tuple[PyTree, Theta]:
    """Merge and restart with both factors random: the function and the size of a step are kept.

    W <- W + s (A B - A' B'); A, B <- A', B', drawn as a training from scratch first draws them. The
    base takes the new product off again. All draw A', B' from one key, so they need not be sent.
    If training began with up="zero", the first merge makes steps 1 + in / r times larger: take a
    lower rate.
    This restart is ours; docs/results/balanced.md derives it.
    """
    new = lowrank.fresh(theta, key, up="random")
    return _moved(base, theta, new.factors), new


def residual(base: PyTree, theta: Theta, start: Theta, key: jax.Array) -> tuple[PyTree, Theta]:
    """Merge what was gained since the start and return there: the function is unchanged.

    W <- W + s (A B - A_0 B_0); A, B <- A_0, B_0, the factors that training began with (FRLoRA).
    """
    return _moved(base, theta, start.factors), theta._replace(factors=start.factors)


def _moved(base: PyTree, theta: Theta, new: dict[str, Factors]) -> PyTree:
    """The base that gives the same function with the factors `new` as now with those of theta."""
    return {
        p: w - lowrank.product(new[p]).astype(w.dtype) if p in new else w
        for p, w in lowrank.merge(base, theta).items()
    }
