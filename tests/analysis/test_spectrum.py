"""Spectra against closed forms, against jax.hessian, and of many clients at once."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiers

from jaxfed import lowrank, models, tasks
from jaxfed.analysis import operators, spectrum
from jaxfed.simulation import engine

pytestmark = pytest.mark.usefixtures("x64")
N = 24


def symmetric(eigenvalues, seed=0):
    n = len(eigenvalues)
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return jnp.asarray(q * np.asarray(eigenvalues) @ q.T)


@partial(jax.jit, static_argnames=("depth", "probes"))
def of_matrix(matrix, key, depth, probes):
    """What is measured of a matrix [N, N]; its vectors are trees."""
    like = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(N - 6)}
    _, unravel = jax.flatten_util.ravel_pytree(like)

    def apply(v):
        return unravel(matrix @ jax.flatten_util.ravel_pytree(v)[0])

    return spectrum.measure(apply, like, key, depth=depth, probes=probes)


def measured(eigenvalues, depth, probes=30):
    return of_matrix(symmetric(eigenvalues), jax.random.key(0), depth, probes)


SPECTRA = {
    "one outlier": [5.0, *np.linspace(-0.1, 0.1, N - 1)],
    "negative outlier": [-3.0, 2.0, *np.linspace(0, 0.2, N - 2)],
    "decaying": 0.7 ** np.arange(N),
    "flat": np.linspace(1, 2, N),
    "few values": [2.0] * 4 + [1.0] * 8 + [0.0] * (N - 12),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_all_of_a_known_spectrum_from_the_whole_space(name):
    """With as many steps as dimensions nothing is left to chance."""
    values = np.asarray(SPECTRA[name])
    found, _ = measured(values, depth=100)
    np.testing.assert_allclose(found.squared, np.sum(values**2), rtol=1e-9)
    np.testing.assert_allclose(found.norm, np.abs(values).max(), rtol=1e-9)
    expected = np.sum(values**2) / np.abs(values).max() ** 2
    np.testing.assert_allclose(found.stable_rank, expected, rtol=1e-9)
    if name != "few values":  # a Krylov space sees an eigenvalue once
        np.testing.assert_allclose(np.sort(found.values), np.sort(values), atol=1e-9)


@pytest.mark.parametrize("name", SPECTRA)
def test_a_known_spectrum_within_the_stated_error_from_a_part(name):
    values = np.asarray(SPECTRA[name])
    found, _ = measured(values, depth=8)
    slack = 1e-9
    assert abs(found.squared - np.sum(values**2)) <= 4 * found.squared_error + slack
    assert -slack <= np.abs(values).max() - found.norm <= 4 * found.errors[0] + slack
    exact = np.sum(values**2) / np.abs(values).max() ** 2
    assert abs(found.stable_rank - exact) <= 4 * found.stable_rank_error + slack
    for ritz, error in zip(found.values, found.errors, strict=True):
        assert np.abs(values - ritz).min() <= error + slack


def test_the_squared_norm_is_without_bias_and_its_error_true():
    """Over 60 keys: the mean within its own error, and errors of the size that they state."""
    values = SPECTRA["flat"]
    matrix = symmetric(values)
    keys = jax.random.split(jax.random.key(0), 60)
    found = [of_matrix(matrix, key, 8, 30)[0] for key in keys]
    off = np.asarray([x.squared for x in found]) - np.sum(np.asarray(values) ** 2)
    error = np.asarray([x.squared_error for x in found])
    assert abs(off.mean()) < 3 * off.std() / np.sqrt(60)
    assert 0.7 < off.std() / np.sqrt(np.mean(error**2)) < 1.4


def test_eigenvectors_are_those_of_the_matrix():
    matrix = symmetric(SPECTRA["decaying"])
    largest = jax.jit(partial(spectrum.largest, lambda v: matrix @ v, count=3, depth=20))
    values, errors, vectors = largest(jnp.zeros(N), jax.random.key(0))
    np.testing.assert_allclose(values, [1, 0.7, 0.49], rtol=1e-6)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-10)
    residuals = jnp.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(residuals, errors, atol=1e-9)


def test_zero_has_no_rank_and_no_nan_in_its_norm():
    found, krylov = of_matrix(jnp.zeros((N, N)), jax.random.key(0), 8, 30)
    assert found.norm == found.squared == found.squared_error == 0
    assert jnp.isnan(found.stable_rank)
    assert jnp.isfinite(krylov.vectors).all()


def test_quadrature_gives_the_moments_and_the_density_of_a_known_spectrum():
    values = np.asarray(SPECTRA["flat"])
    matrix = symmetric(values)
    density = jax.jit(partial(spectrum.density, lambda v: matrix @ v, depth=8, starts=40))
    nodes = jax.tree.map(np.asarray, density(jnp.zeros(N), jax.random.key(0)))
    np.testing.assert_allclose(nodes.weights.sum(1), 1, rtol=1e-9)
    for power in (1, 2, 5):
        each = np.sum(nodes.weights * nodes.values**power, axis=1)  # [starts]
        off = each.mean() - np.mean(values**power)
        assert abs(off) < 4 * each.std() / np.sqrt(len(each))
    grid = np.linspace(0, 3, 301)
    smooth = spectrum.smooth(nodes, grid, 0.1)
    np.testing.assert_allclose(np.trapezoid(smooth, grid), 1, rtol=1e-3)
    assert smooth[150] > 0.7 > 0.05 > smooth[20]  # flat between 1 and 2, and nothing at 0.2


def test_wrong_sizes_are_told():
    def call(function, **options):
        function(lambda v: v, jnp.zeros(3), jax.random.key(0), **options)

    with pytest.raises(ValueError, match="depth=0"):
        call(spectrum.lanczos, depth=0)
    with pytest.raises(ValueError, match="probes=1"):
        call(spectrum.measure, depth=2, probes=1)
    with pytest.raises(ValueError, match="count=4"):
        call(spectrum.largest, count=4, depth=2)


# ---------------------------------------------------------------------- networks, by jax.hessian


COUNT = np.array([7, 12, 4])
SELECT = lowrank.Select(factors="dense.*kernel", full="head|bias", rank=2, up="random")


@cache
def network():
    """(task, world, base, theta): an MLP 4-5-3 of three unequal clients, in float64."""
    rng = np.random.default_rng(0)
    examples = {"image": rng.normal(size=(23, 4)), "label": rng.integers(3, size=23)}
    made = tasks.classification(models.MLP((5,), 3), examples, select=SELECT)
    examples, *model = jax.tree.map(jnp.asarray, (examples, *made.init(jax.random.key(1))))
    return made, oracle.World(examples, COUNT), *jax.tree.map(jnp.float64, model)


PARTS = {
    "weights": operators.whole,
    "theta": lambda base, theta: (base, theta),
    "factors": operators.factors,
    "head": lambda *model: operators.only(*operators.whole(*model), lambda p: "head" in p),
}


@cache
def exact(part):
    """The Hessians over this part of the clients' mean losses, and the union's [3 + 1, n, n]."""
    made, world, *model = network()
    base, theta = PARTS[part](*model)
    flat, unravel = jax.flatten_util.ravel_pytree(theta)
    owner = np.repeat(np.arange(3), COUNT)
    masks = jnp.asarray([*(owner == i for i in range(3)), owner >= 0], jnp.float64)

    def loss(x, mask):
        batch = {**world.examples, "mask": mask}
        return made.loss(base, unravel(x), batch, jax.random.key(0))

    return np.asarray(jax.jit(jax.vmap(jax.hessian(loss), (None, 0)))(flat, masks))


def everybody(world):
    return oracle.cohort(world, [()] * 3, range(3), 0)


@pytest.mark.parametrize("part", tiers.usual(["weights", "factors"], "factors"))
def test_every_client_at_once_agrees_with_its_exact_hessian(part):
    """Batches of 5 do not divide 7, 12 and 4 examples; both parts have above 12 dimensions."""
    made, world, *model = network()

    def of(base, theta, k):
        apply = operators.hessian(partial(made.loss, base), theta, k, 5)
        return spectrum.measure(apply, theta, k.key, depth=12, probes=20)[0]

    verb = engine.for_each_client(engine.machine(1))
    found = jax.jit(operators.of_clients(of, verb))(*PARTS[part](*model), everybody(world))
    for i in range(3):
        values = np.linalg.eigvalsh(exact(part)[i])
        mine = jax.tree.map(lambda x, i=i: x[i], found)
        norm, squared = np.abs(values).max(), np.sum(values**2)
        assert abs(mine.norm - norm) <= mine.errors[0] + 1e-9
        assert abs(mine.squared - squared) <= 4 * mine.squared_error + 1e-9
        assert abs(mine.stable_rank - squared / norm**2) <= 4 * mine.stable_rank_error + 1e-9


@pytest.mark.full
def test_the_servers_hessian_is_that_of_the_union_and_the_clients_by_their_examples():
    made, world, *model = network()
    base, theta = operators.whole(*model)
    loss = partial(made.loss, base)
    flat, unravel = jax.flatten_util.ravel_pytree(theta)
    v = unravel(jnp.asarray(np.random.default_rng(1).normal(size=flat.size)))
    union = operators.union(world.examples, jax.random.key(0))
    found = jax.jit(operators.hessian(loss, theta, union, 6))(v)
    matrix = exact("weights")[-1]
    np.testing.assert_allclose(
        np.tensordot(COUNT / 23, exact("weights")[:3], 1), matrix, atol=1e-12
    )
    expected = unravel(matrix @ jax.flatten_util.ravel_pytree(v)[0])
    oracle.assert_close(found, expected, rtol=1e-9, atol=1e-12)

    verb = engine.for_each_client(engine.machine(1))
    of = operators.of_clients(lambda b, t, k: operators.gradient(loss, t, k, 5), verb)
    mine = jax.jit(of)(base, theta, everybody(world))
    total = jax.tree.map(lambda g: jnp.tensordot(COUNT / 23, g, 1), mine)
    of_all = jax.jit(lambda t: operators.gradient(loss, t, union, 6))(theta)
    oracle.assert_close(of_all, total, rtol=1e-9, atol=1e-12)


def test_a_part_is_the_same_model():
    made, world, *model = network()
    batch = {**world.examples, "mask": jnp.ones(COUNT.sum())}
    key = jax.random.key(0)
    expected = made.loss(*model, batch, key)
    for part in PARTS.values():
        np.testing.assert_allclose(made.loss(*part(*model), batch, key), expected, rtol=1e-12)
    kept = operators.only(*model, lambda p: "bias" in p)  # factors that are left out are folded in
    np.testing.assert_allclose(made.loss(*kept, batch, key), expected, rtol=1e-12)
    with pytest.raises(ValueError, match="is chosen"):
        operators.only(*model, lambda p: False)
