"""Rules of aggregation: the algebra of stacks and of the best factors."""

import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest

from jaxfed import lowrank
from jaxfed.lowrank import Factors, rules

SCALE, KEY = 0.5, jax.random.key(0)


def clients(inputs, outputs, rank=2, count=4, seed=0):
    """(factors [K, ...], weights [K]) of a kernel [inputs..., outputs...]."""
    rng = np.random.default_rng(seed)
    a = jnp.asarray(rng.normal(size=(count, *inputs, rank)))
    b = jnp.asarray(rng.normal(size=(count, rank, *outputs)))
    weight = rng.random(count)
    return Factors(a, b, SCALE), jnp.asarray(weight / weight.sum())


def mean_product(f, weight):
    each = [lowrank.product(jax.tree.map(lambda x, k=k: x[k], f)) for k in range(len(weight))]
    return sum(w * p for w, p in zip(weight, each, strict=True))


SHAPES = [((6,), (5,)), ((3, 3, 4), (5,)), ((4,), (2, 3))]


@pytest.mark.parametrize("shape", SHAPES)
def test_the_stack_has_the_mean_of_the_products(x64, shape):
    f, weight = clients(*shape)
    stack = rules.stacked(f, weight)
    assert stack.rank == 8
    np.testing.assert_allclose(lowrank.product(stack), mean_product(f, weight), rtol=1e-10)


@pytest.mark.parametrize("rule", [rules.best, rules.best_even])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_best_factors_are_those_of_the_svd(x64, rule, shape):
    """Of kernels with at most 2 r singular values the subspace is exact; here there are 5 or 4."""
    f, weight = clients(*shape, rank=3)
    mean = jax.tree.map(lambda x: x[0], f)
    found = rule("w", rules.stacked(f, weight), mean, KEY)
    matrix = np.asarray(mean_product(f, weight)).reshape(np.prod(shape[0]), -1)
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    best = (u[:, :3] * sigma[:3]) @ vt[:3]
    assert (found.a.shape, found.b.shape) == (mean.a.shape, mean.b.shape)
    np.testing.assert_allclose(lowrank.product(found).reshape(matrix.shape), best, atol=1e-10)
    a, b = found.a.reshape(-1, 3), found.b.reshape(3, -1)
    if rule is rules.best:
        np.testing.assert_allclose(a.T @ a, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(a.T @ a @ b @ b.T, np.diag(sigma[:3] / SCALE) ** 2, atol=1e-8)
    if rule is rules.best_even:
        np.testing.assert_allclose(a.T @ a, b @ b.T, atol=1e-9)


def test_of_many_clients_the_best_factors_come_near_to_the_svd():
    """64 random clients: a slowly falling spectrum, in which 8 passes leave 2 % at most."""
    f, weight = clients((60,), (50,), rank=4, count=64)
    found = rules.truncated(rules.stacked(f, weight), 4, KEY)
    matrix = np.asarray(mean_product(f, weight))
    _, sigma, _ = np.linalg.svd(matrix)
    least = np.sqrt(np.sum(sigma[4:] ** 2))
    assert np.linalg.norm(matrix - lowrank.product(found)) < 1.02 * least


def test_stacked_layers_are_treated_one_by_one(x64):
    """A weight [L, in, out] of L layers has the stack and the best factors of each."""
    f, weight = clients((6,), (5,), count=3)
    g, _ = clients((6,), (5,), count=3, seed=1)
    both = Factors(jnp.stack([f.a, g.a], axis=1), jnp.stack([f.b, g.b], axis=1), SCALE, stack=1)
    stack = rules.stacked(both, weight)
    whole = jnp.stack([mean_product(x, weight) for x in (f, g)])
    np.testing.assert_allclose(lowrank.product(stack), whole, rtol=1e-10)
    found = rules.truncated(stack, 5, KEY)
    np.testing.assert_allclose(lowrank.product(found), whole, atol=1e-10)
    even = rules.best_even("w", stack, jax.tree.map(lambda x: x[0], both), KEY)
    gram = jnp.einsum("lir,lis->lrs", even.a, even.a)
    np.testing.assert_allclose(gram, jnp.einsum("lro,lso->lrs", even.b, even.b), atol=1e-9)


def test_a_rank_above_the_smaller_side_is_filled_up_with_zeros(x64):
    f, weight = clients((6,), (3,), rank=5)
    found = rules.truncated(rules.stacked(f, weight), 5, KEY)
    assert (found.a.shape, found.b.shape) == ((6, 5), (5, 3))
    np.testing.assert_allclose(lowrank.product(found), mean_product(f, weight), atol=1e-10)
    assert not found.a[:, 3:].any()
    assert not found.b[3:].any()


def test_a_component_counts_the_clients_that_have_it(x64):
    """Shares of a fifth, 2 / 5 and 2 / 5 with ranks 1, 2 and 2; nobody has a third component."""
    weight, ranks = jnp.asarray([0.2, 0.4, 0.4]), jnp.asarray([1, 2, 2])
    expected = [[0.2, 0, 0], [0.4, 0.5, 0], [0.4, 0.5, 0]]
    np.testing.assert_allclose(rules.partitioned(weight, ranks, 3), expected, rtol=1e-12)
    f, _ = clients((6,), (5,), count=3)
    stack = rules.stacked(f, rules.partitioned(weight, ranks, 2))
    whole = SCALE * jnp.einsum("kir,kr,kro->io", f.a, jnp.asarray(expected)[:, :2], f.b)
    np.testing.assert_allclose(lowrank.product(stack), whole, rtol=1e-10)


def test_no_decomposition_is_batched_over_layers():
    """On a CPU, batched ones may wait for threads for ever."""
    f = lowrank.Factors(jnp.ones((3, 6, 2)), jnp.ones((3, 2, 5)), 1.0, stack=1)
    traced = jax.make_jaxpr(lambda f: rules.thresholded(f, 0.9))(f)
    found = [e for e in jaxprs.equations(traced.jaxpr) if e.primitive.name in ("qr", "eigh")]
    assert len(found) == 2
    assert all(len(e.invars[0].aval.shape) == 2 for e in found)
