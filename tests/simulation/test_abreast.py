"""Trials in groups: what a vmap over all of them computes, in place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed.simulation import abreast


@pytest.mark.quick
@pytest.mark.parametrize(
    ("trials", "most", "size"), [(15, 10, 5), (15, None, 15), (7, 6, 1), (6, 4, 3), (4, 9, 4)]
)
def test_groups_are_equal_and_as_large_as_may_be(trials, most, size):
    assert abreast.group(trials, most) == size


@pytest.mark.quick
@pytest.mark.parametrize("most", [1, 2, 3, 6])
def test_groups_of_trials_compute_what_all_at_once_do(most):
    """Of the changing leaves, the second is shared by all; the last argument is, too."""

    def function(rate, weight, clock, x):
        return [weight * rate + x.sum(), clock + 1, (weight @ x).sum()]

    axes, changing = (0, 0, None, None), slice(1, 3)
    rate, weight = np.arange(6.0), np.arange(24.0).reshape(6, 4)
    given = tuple(map(jnp.asarray, (rate, weight, 3, np.arange(4.0))))
    wanted = jax.vmap(function, axes, [0, None, 0])(*given)
    many = abreast.in_groups(function, axes, (0, None, 0), changing, most)
    found = jax.jit(many)(*given)
    assert [x.shape for x in found] == [(6, 4), (), (6,)]
    for mine, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(mine, theirs)


def test_a_group_is_written_where_it_was():
    """So that trials need no second copy of what changes, as the compiled program says."""

    def function(weight, x):
        return [weight + x]

    many = abreast.in_groups(function, (0, None), (0,), slice(0, 1), 2)
    weight = jnp.zeros((6, 1000))
    program = jax.jit(many, donate_argnums=0).lower(weight, 1.0).compile()
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes == weight.nbytes
    assert memory.temp_size_in_bytes < weight.nbytes
