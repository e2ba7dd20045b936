"""What stands in a jaxpr."""

import jax
from jax.extend import core


def equations(jaxpr):
    """Every equation of a jaxpr, and of the jaxprs within."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in jax.tree.leaves(
            eqn.params, is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr)
        ):
            if isinstance(value, core.ClosedJaxpr):
                yield from equations(value.jaxpr)
            elif isinstance(value, core.Jaxpr):
                yield from equations(value)


def shapes(jaxpr):
    """Every shape of every value in a jaxpr, and in the jaxprs within."""
    for eqn in equations(jaxpr):
        yield from (v.aval.shape for v in eqn.outvars)
