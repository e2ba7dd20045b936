"""Functions that differ in numbers share one program, and their results are their own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed.data.federated import Size
from jaxfed.simulation import engine, programs

X = np.arange(6, dtype=np.float32) - 2
MACHINE = engine.machine(1)


def shared():
    return programs.Programs(Size(1, 1, 1, 1, 1))


def trained(rate, seed=0, decay=0.7):
    """A function with the rate in a loop that each row leaves at its own time, scan and branch."""

    def one(x):
        def body(carry):
            t, x = carry
            return t + 1, x - rate * jax.nn.relu(x) * decay

        steps, x = jax.lax.while_loop(lambda carry: carry[1] > 4 * rate, body, (0, x))
        x, _ = jax.lax.scan(lambda c, y: (c * (1 - rate) + y, ()), x, jnp.arange(3.0))
        return jax.lax.cond(steps > 2, lambda v: v * rate, lambda v: v + rate, x)

    def function(x):
        noise = jax.random.normal(jax.random.key(seed), x.shape)
        return {"x": jax.vmap(one)(x), "noise": jax.jit(lambda n: n * rate)(noise)}

    return function


@pytest.mark.parametrize(
    ("first", "others"),
    [
        ((0.3,), [(0.1,), (0.25, 5), (0.3, 1, 0.9)]),
        ((0.3, 0, 0.7), [(1.0, 2)]),  # no matter that 1 is a number of many formulas
    ],
)
def test_functions_that_differ_in_numbers_share_a_program(first, others):
    made = shared()
    for settings in (first, *others):
        function = made.compiled(trained(*settings), MACHINE)
        alone = jax.jit(trained(*settings))(X)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), function(X), alone)
    assert [len(same) for same in made.made.values()] == [1]


def test_a_number_that_was_thought_a_formulas_costs_one_more_program():
    made = shared()
    for rate in (1.0, 0.3, 0.1, 1.0):
        function = made.compiled(lambda x, rate=rate: x * rate, MACHINE)
        np.testing.assert_allclose(function(X), X * np.float32(rate))
    assert [len(same) for same in made.made.values()] == [2]


def test_functions_that_differ_in_more_than_numbers_share_nothing():
    made = shared()
    for power in (2, 3):
        function = made.compiled(lambda x, power=power: x**power, MACHINE)
        np.testing.assert_allclose(function(X), X**power)
    assert len(made.made) == 2


def test_arrays_that_a_function_closes_over_are_its_own():
    made = shared()
    for row in (jnp.asarray(X), jnp.asarray(X + 1)):
        function = made.compiled(lambda x, row=row: x + row, MACHINE)
        np.testing.assert_allclose(function(X), X + row)
    assert [len(same) for same in made.made.values()] == [1]


def test_a_shared_program_is_compiled_and_traced_as_a_jitted_one_is():
    function = shared().compiled(lambda x: x * 0.3, MACHINE, donate=(0,))
    assert jax.eval_shape(function, X).shape == X.shape
    compiled = function.lower(X).compile()
    np.testing.assert_allclose(compiled(X), X * np.float32(0.3))
    assert compiled.memory_analysis() is not None
    assert "multiply" in compiled.as_text()  # what a chunk is chosen by
