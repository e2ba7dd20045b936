"""What stands in a jaxpr."""

import jax
from jax.extend import core


def shapes(jaxpr):
    """Every shape of every value in a jaxpr, and in the jaxprs within."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in eqn.outvars)
        for value in jax.tree.leaves(
            eqn.params, is_leaf=lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr)
        ):
            if isinstance(value, core.ClosedJaxpr):
                yield from shapes(value.jaxpr)
            elif isinstance(value, core.Jaxpr):
                yield from shapes(value)
