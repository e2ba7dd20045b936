"""Hypergradients against what can be written down, against each other, and over many clients."""

from functools import cache, partial
from itertools import pairwise, permutations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jaxprs import shapes

from jaxfed import hypergrad, lowrank, models, tasks

ALPHA = 0.15
pytestmark = pytest.mark.usefixtures("x64")


class Quadratic(NamedTuple):
    """f(x, y) = 1/2 x'Px + x'Qy + 1/2 y'Ry + c'x + d'y with R positive definite."""

    P: np.ndarray
    Q: np.ndarray
    R: np.ndarray
    c: np.ndarray
    d: np.ndarray

    def __call__(self, x, y):
        return (x @ self.P @ x + y @ self.R @ y) / 2 + x @ self.Q @ y + self.c @ x + self.d @ y

    def by_x(self, x, y):
        return self.P @ x + self.Q @ y + self.c

    def by_y(self, x, y):
        return self.Q.T @ x + self.R @ y + self.d

    def least(self, x):
        """y*(x) = -R^{-1} (Q'x + d)."""
        return -np.linalg.solve(self.R, self.Q.T @ x + self.d)


def quadratic(seed, m=3, n=4):
    rng = np.random.default_rng(seed)
    (p, r), q = (rng.normal(size=(k, k)) for k in (m, n)), rng.normal(size=(m, n))
    R = r @ r.T / n + np.eye(n)
    return Quadratic(p + p.T, q, R, rng.normal(size=m), rng.normal(size=n))


f, other = quadratic(0), quadratic(1)
x, y, w = np.random.default_rng(2).normal(size=3), *np.random.default_rng(3).normal(size=(2, 4))
close = partial(np.testing.assert_allclose, rtol=1e-12)
UPPER = pytest.mark.parametrize("upper", [None, other])


def test_products_with_second_derivatives_are_those_of_the_matrices():
    close(hypergrad.hvp(partial(f, x), y, w), f.R @ w)
    close(hypergrad.mixed(f, x, y, w), f.Q @ w)


@UPPER
def test_one_step_is_the_papers_formula(upper):
    """h = grad_x F(x, y+) - alpha grad_xy f(x, y) grad_y F(x, y+)."""
    above = upper or f
    value, h, stepped = hypergrad.one_step(f, x, y, ALPHA, upper=upper)
    close(stepped, y - ALPHA * f.by_y(x, y))
    close(h, above.by_x(x, stepped) - ALPHA * f.Q @ above.by_y(x, stepped))
    close(value, above(x, stepped))


@UPPER
def test_without_the_cross_term_or_the_step(upper):
    above, stepped = upper or f, y - ALPHA * f.by_y(x, y)
    expected = above(x, stepped), above.by_x(x, stepped), stepped
    jax.tree.map(close, hypergrad.alternating(f, x, y, ALPHA, upper=upper), expected)
    expected = above(x, y), above.by_x(x, y), stepped
    jax.tree.map(close, hypergrad.simultaneous(f, x, y, ALPHA, upper=upper), expected)


@UPPER
def test_unrolled_is_the_closed_form_of_gradient_descent(upper):
    """y_T = y* + M^T (y - y*), M = I - alpha R; dy_T/dx = -(I - M^T) R^{-1} Q'."""
    above, steps = upper or f, 5
    power = np.linalg.matrix_power(np.eye(4) - ALPHA * f.R, steps)
    last = f.least(x) + power @ (y - f.least(x))
    follows = -(np.eye(4) - power) @ np.linalg.solve(f.R, f.Q.T)
    value, h, found = hypergrad.unrolled(f, x, y, ALPHA, steps=steps, upper=upper)
    close(found, last)
    close(h, above.by_x(x, last) + follows.T @ above.by_y(x, last))
    close(value, above(x, last))


SOLVERS = {
    "cg": partial(hypergrad.conjugate_gradients, iterations=4),  # exact: R is 4 x 4
    "neumann": partial(hypergrad.neumann, inner_rate=ALPHA, terms=400),
}


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_implicit_is_the_closed_form_at_the_minimum(solve):
    """dy*/dx = -R^{-1} Q'."""
    least = f.least(x)
    value, h = hypergrad.implicit(f, x, least, solve=solve, upper=other)
    expected = other.by_x(x, least) - f.Q @ np.linalg.solve(f.R, other.by_y(x, least))
    close(h, expected, rtol=1e-10)
    close(value, other(x, least))


@pytest.mark.parametrize("solve", SOLVERS.values(), ids=SOLVERS)
def test_where_both_levels_agree_the_lower_one_has_no_say(solve):
    least = f.least(x)
    close(hypergrad.implicit(f, x, least, solve=solve)[1], f.by_x(x, least), rtol=1e-10)


def test_a_neumann_series_is_its_partial_sum():
    power = np.eye(4) - ALPHA * f.R
    expected = ALPHA * sum(np.linalg.matrix_power(power, i) @ w for i in range(3))
    close(hypergrad.neumann(lambda v: f.R @ v, w, inner_rate=ALPHA, terms=3), expected)


@pytest.mark.full
def test_unrolled_tends_to_implicit_as_its_steps_grow():
    """For an f that is convex in y but not quadratic; halving the gap every few steps."""

    def g(x, y):
        return f(x, y) + jnp.sum(jnp.logaddexp(0.0, 2 * (y + jnp.cos(x).sum())))

    def through(steps):
        return hypergrad.unrolled(g, x, y, ALPHA, steps=steps, upper=other)

    least = through(400)[2]
    np.testing.assert_allclose(jax.grad(g, 1)(x, least), 0, atol=1e-12)
    limits = [hypergrad.implicit(g, x, least, solve=s, upper=other)[1] for s in SOLVERS.values()]
    close(*limits, rtol=1e-8)
    gaps = [np.abs(through(steps)[1] - limits[0]).max() for steps in (5, 10, 20, 40)]
    assert gaps[0] > 1e-2
    assert all(after < before / 2 for before, after in pairwise(gaps))
    assert gaps[-1] < 1e-3


# On a network, with trees for x and y.

ROWS, FEATURES, WIDTH, CLASSES = 4, 5, 7, 8  # and 3, the summed rank: all different
MODEL = models.MLP((WIDTH,), CLASSES)
SELECT = lowrank.Select(factors="kernel", full="bias", rank=2, up="random")


@cache
def network():
    """(f of base, common factors and personal ones; base, x, y)."""
    rng = np.random.default_rng(0)
    examples = {
        "image": rng.normal(size=(ROWS, FEATURES)),
        "label": rng.integers(CLASSES, size=ROWS).astype(np.int32),
    }
    batch = {**examples, "mask": np.ones(ROWS)}
    made = tasks.classification(MODEL, examples, select=SELECT)
    begun = jax.jit(made.init)(jax.random.key(0))
    base, x = jax.tree.map(lambda w: w.astype(float), begun)
    y = lowrank.beside(x.factors, 1, jax.random.key(1))
    y = jax.tree.map(lambda w: w + 0.3 * rng.normal(size=w.shape), y)

    def objective(base, x, y):
        return made.loss(base, lowrank.joined(x, y), batch, jax.random.key(0))

    return objective, base, x, y


def test_one_step_is_the_derivative_through_the_step():
    objective, base, x, y = network()
    g = partial(objective, base)

    def stepped(x):
        after = jax.tree.map(lambda y, d: y - ALPHA * d, y, jax.grad(g, 1)(x, y))
        return g(x, after), after

    (value, after), h = jax.jit(jax.value_and_grad(stepped, has_aux=True))(x)
    found = jax.jit(lambda x, y: hypergrad.one_step(g, x, y, ALPHA))(x, y)
    oracle.assert_close(found, (value, h, after), rtol=1e-12, atol=1e-12)
    without = jax.jit(lambda x, y: hypergrad.alternating(g, x, y, ALPHA)[1])(x, y)
    cross = jax.tree.map(jnp.subtract, without, h)
    assert all(jnp.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(cross))


def test_one_step_is_one_unrolled_step():
    one = hypergrad.one_step(f, x, y, ALPHA, upper=other)
    jax.tree.map(close, one, hypergrad.unrolled(f, x, y, ALPHA, steps=1, upper=other))


def test_mixed_is_the_derivative_of_the_gradient():
    """By a central difference."""
    objective, base, x, y = network()
    g = partial(objective, base)
    v = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), y)
    step = 1e-5
    by_x = jax.jit(lambda s: jax.grad(g)(x, jax.tree.map(lambda y, v: y + s * v, y, v)))
    expected = jax.tree.map(lambda p, m: (p - m) / (2 * step), by_x(step), by_x(-step))
    found = jax.jit(partial(hypergrad.mixed, g))(x, y, v)
    oracle.assert_close(found, expected, rtol=1e-6, atol=1e-9)


# Many clients beside one base.

CLIENTS = 6
GRADIENTS = {
    "one_step": partial(hypergrad.one_step, inner_rate=ALPHA),
    "unrolled": partial(hypergrad.unrolled, inner_rate=ALPHA, steps=2),
    "alternating": partial(hypergrad.alternating, inner_rate=ALPHA),
    "simultaneous": partial(hypergrad.simultaneous, inner_rate=ALPHA),
    "implicit": partial(hypergrad.implicit, solve=SOLVERS["neumann"]),
    "implicit cg": partial(hypergrad.implicit, solve=SOLVERS["cg"]),
}


def over_clients(gradient, by_base=False):
    """The jaxpr of the gradient of all clients, each with its own x and y."""
    objective, base, x, y = network()
    many = jax.tree.map(lambda w: jnp.stack([w] * CLIENTS), (x, y))

    def one(base, x, y):
        found = gradient(partial(objective, base), x, y)
        return (found, jax.grad(objective)(base, x, y)) if by_base else found

    return jax.make_jaxpr(jax.vmap(one, in_axes=(None, 0, 0)))(base, *many).jaxpr


PER_CLIENT = set(permutations((CLIENTS, FEATURES, WIDTH))) | set(
    permutations((CLIENTS, WIDTH, CLASSES))
)


@pytest.mark.parametrize("name", GRADIENTS)
def test_no_client_has_a_copy_of_a_base_weight(name):
    found = set(shapes(over_clients(GRADIENTS[name])))
    assert (CLIENTS, FEATURES, 2) in found  # a client's own factors are there
    assert not found & PER_CLIENT


def test_a_copy_of_a_base_weight_would_be_found():
    assert set(shapes(over_clients(GRADIENTS["one_step"], by_base=True))) & PER_CLIENT
