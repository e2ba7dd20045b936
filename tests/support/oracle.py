"""The loop oracle: that of the library, and a comparison of what it computes."""

import chex

from jaxfed.simulation.loop import (
    Loop,
    World,
    cohort,
    compiled_loop,
    engine_rounds,
    loop,
    on_engine,
    plan,
    rounds,
    start,
)

__all__ = [
    "Loop",
    "World",
    "assert_close",
    "cohort",
    "compiled_loop",
    "engine_rounds",
    "loop",
    "on_engine",
    "plan",
    "rounds",
    "start",
]


def assert_close(found, expected, rtol=1e-6, atol=1e-7):
    """Same structure, shapes and dtypes; numbers equal up to rounding."""
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    chex.assert_trees_all_close(found, expected, rtol=rtol, atol=atol)
