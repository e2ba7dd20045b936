"""Spectra of symmetric operators from products with vectors alone: Lanczos and Hutchinson.

Stable rank is ||H||_F^2 / ||H||_2^2 = sum_i lambda_i^2 / max_i lambda_i^2. The norm comes from
Lanczos' method, and ||H||_F^2 from the same Krylov space and random probes of its complement. All
functions work under jit and vmap. Each takes `apply`, v -> H v for v like `like`. The Krylov space
needs the memory of `depth` such vectors.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxfed import values
from jaxfed.algorithm import PyTree
from jaxfed.analysis.operators import Operator


class Krylov(NamedTuple):
    """Ritz pairs, the largest magnitude first; k = min(depth, n)."""

    values: jax.Array  # [k]
    errors: jax.Array  # [k] in exact arithmetic, H has an eigenvalue this close to each
    weights: jax.Array  # [k] the start vector's share in each; they sum to one
    vectors: jax.Array  # [k, n] orthonormal; zero beyond an invariant subspace


class Spectrum(NamedTuple):
    """Measurements of H; all fields may have additional leading axes, such as clients [K]."""

    values: jax.Array  # [k] Ritz values, the largest magnitude first
    errors: jax.Array  # [k] H has an eigenvalue this close to each
    squared: jax.Array  # [] ||H||_F^2
    squared_error: jax.Array  # [] its standard error

    @property
    def norm(self) -> jax.Array:
        """||H||_2; Lanczos' method approaches it from below.

        The error is at most `errors[0]` once more than half of the Ritz vector is along the
        eigenvector. It may be larger if several eigenvalues have almost the same size.
        """
        return abs(self.values[..., 0])

    @property
    def stable_rank(self) -> jax.Array:
        """||H||_F^2 / ||H||_2^2; nan for H = 0."""
        return self.squared / self.norm**2

    @property
    def stable_rank_error(self) -> jax.Array:
        """The standard error of the stable rank; the Ritz pair's residual counts as one."""
        of_squared, of_norm = self.squared_error / self.squared, self.errors[..., 0] / self.norm
        return self.stable_rank * (of_squared**2 + 4 * of_norm**2) ** 0.5


class Nodes(NamedTuple):
    """Gauss quadrature of the spectral density, one rule for each start vector; see `smooth`."""

    values: jax.Array  # [starts, k]
    weights: jax.Array  # [starts, k] each rule's weights sum to one


def matfree(module: str) -> Any:
    """A module of matfree's; ImportError, with the remedy, where it is missing."""
    return values.package(f"matfree.{module}", "analysis", "a spectrum")


def lanczos(apply: Operator, like: PyTree, key: jax.Array, *, depth: int) -> Krylov:
    """Ritz pairs of H from the Krylov space of a random vector, with full reorthogonalisation.

    The error of a Ritz value is the norm of the residual of its pair, |beta_k s_k|.
    """
    if depth < 1:
        raise ValueError(f"depth={depth} gives no Krylov space; use at least 1")
    flat, _ = ravel_pytree(like)
    steps = min(depth, flat.size)
    decomp, stochtrace = matfree("decomp"), matfree("stochtrace")
    start = stochtrace.sampler_sphere(flat, num=1)(key)[0]  # [n]
    tridiagonal = decomp.tridiag_sym(steps, materialize=False, custom_vjp=False)
    basis, bands, rest, _ = tridiagonal(_flat(apply, like), start)
    # If the space becomes invariant before the last step, all later values are 0 / 0.
    basis, diagonal, beside, rest = (
        jnp.where(jnp.isfinite(x), x, 0) for x in (basis, *bands, rest)
    )
    small = jnp.diag(diagonal) + jnp.diag(beside, 1) + jnp.diag(beside, -1)  # [k, k]
    values, s = _eigh(small)
    order = jnp.argsort(-jnp.abs(values))
    values, s = values[order], s[:, order]
    return Krylov(values, jnp.linalg.norm(rest) * jnp.abs(s[-1]), s[0] ** 2, s.T @ basis)


@jax.custom_batching.sequential_vmap
def _eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(eigenvalues, eigenvectors); under vmap one matrix after the other, as in lowrank's SVDs."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


def measure(
    apply: Operator, like: PyTree, key: jax.Array, *, depth: int, probes: int
) -> tuple[Spectrum, Krylov]:
    """(the eigenvalues of the largest magnitude and ||H||_F^2, the Ritz pairs behind them).

    With V the Krylov space, P = V V' and z of random signs,

        ||H||_F^2 = ||H V||_F^2 + E ||H (I - P) z||^2

    holds for any V, without bias. The tridiagonal matrix gives the first term exactly. That term
    contains the large eigenvalues, which dominate the variance of Hutchinson's estimator (as in
    Hutch++: Meyer et al., SOSA 2021). The standard error is that of the mean over the probes.
    """
    if probes < 2:
        raise ValueError(f"probes={probes} give no standard error; use at least 2")
    krylov_key, probe_key = jax.random.split(key)
    krylov = lanczos(apply, like, krylov_key, depth=depth)
    flat, _ = ravel_pytree(like)
    stochtrace = matfree("stochtrace")
    sampler, v = stochtrace.sampler_signs(flat, num=1), krylov.vectors
    integrand = stochtrace.monte_carlo_frobeniusnorm_squared()

    def probe(key):
        z = sampler(key)[0]  # [n]
        return integrand(_flat(apply, like), z - (v @ z) @ v)

    rest = jax.lax.map(probe, jax.random.split(probe_key, probes))  # [probes]
    known = jnp.sum(krylov.values**2 + krylov.errors**2)
    error = jnp.std(rest, ddof=1) / jnp.sqrt(probes)
    return Spectrum(krylov.values, krylov.errors, known + jnp.mean(rest), error), krylov


def largest(
    apply: Operator, like: PyTree, key: jax.Array, *, count: int, depth: int
) -> tuple[jax.Array, jax.Array, PyTree]:
    """(eigenvalues [count] of the largest magnitude, their errors, eigenvectors like `like`).

    The vectors have a leading axis [count]. Use a depth of several times `count`.
    """
    _, unravel = ravel_pytree(like)
    if count > depth:
        raise ValueError(f"count={count} is above depth={depth}; use at most that")
    krylov = lanczos(apply, like, key, depth=depth)
    vectors = jax.vmap(unravel)(krylov.vectors[:count])
    return krylov.values[:count], krylov.errors[:count], vectors


def density(apply: Operator, like: PyTree, key: jax.Array, *, depth: int, starts: int) -> Nodes:
    """The spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIMAX 2017).

    A rule is exact for polynomials of degree below 2 depth, under the density weighted by its
    random start vector. The mean over `starts` rules tends to (1/n) sum_i f(lambda_i).
    """

    def rule(key):
        krylov = lanczos(apply, like, key, depth=depth)
        return Nodes(krylov.values, krylov.weights)

    return jax.lax.map(rule, jax.random.split(key, starts))


def smooth(nodes: Nodes, grid: np.ndarray, width: float) -> np.ndarray:
    """The density on `grid` [g]; each node becomes a normal of standard deviation `width`."""
    values, weights = (np.asarray(x, np.float64).reshape(-1) for x in nodes)
    rules = weights.sum()  # each rule's weights sum to one
    spread = np.exp(-(((np.asarray(grid)[:, None] - values) / width) ** 2) / 2)  # [g, nodes]
    return spread @ weights / (rules * width * np.sqrt(2 * np.pi))


def _flat(apply: Operator, like: PyTree) -> Operator:
    """The operator on vectors [n]."""
    _, unravel = ravel_pytree(like)
    return lambda v: ravel_pytree(apply(unravel(v)))[0]
