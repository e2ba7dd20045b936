"""Spectra of symmetric operators from products with vectors alone: Lanczos and Hutchinson.

Stable rank is ||H||_F^2 / ||H||_2^2 = sum_i lambda_i^2 / max_i lambda_i^2. The norm comes from
Lanczos' method, and ||H||_F^2 from the same Krylov space and random probes of what lies outside it.
All of it works under jit and vmap. Each function takes `apply`, v -> H v for v like `like`; the
Krylov space holds `depth` such vectors, which is what it needs of memory.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from matfree import decomp, stochtrace

from jaxfed.algorithm import PyTree
from jaxfed.analysis.operators import Operator


class Krylov(NamedTuple):
    """Ritz pairs, of the largest magnitude first; k = min(depth, n)."""

    values: jax.Array  # [k]
    errors: jax.Array  # [k] an eigenvalue of H lies within this of each, in exact arithmetic
    weights: jax.Array  # [k] the start vector's share in each; they sum to one
    vectors: jax.Array  # [k, n] orthonormal, or zero after an invariant space was found early


class Spectrum(NamedTuple):
    """What was measured of H; leading axes, such as clients [K], may stand before those given."""

    values: jax.Array  # [k] Ritz values, of the largest magnitude first
    errors: jax.Array  # [k] an eigenvalue lies within this of each
    squared: jax.Array  # [] ||H||_F^2
    squared_error: jax.Array  # [] its standard error

    @property
    def norm(self) -> jax.Array:
        """||H||_2, which Lanczos' method approaches from below.

        It is within `errors[0]` once the Ritz vector has turned to the eigenvector by more than
        half; where several eigenvalues of like size compete, it may be off by some more.
        """
        return abs(self.values[..., 0])

    @property
    def stable_rank(self) -> jax.Array:
        """||H||_F^2 / ||H||_2^2; nan for H = 0."""
        return self.squared / self.norm**2

    @property
    def stable_rank_error(self) -> jax.Array:
        """Its standard error: that of ||H||_F^2, and the Ritz pair's residual as if it were one."""
        of_squared, of_norm = self.squared_error / self.squared, self.errors[..., 0] / self.norm
        return self.stable_rank * (of_squared**2 + 4 * of_norm**2) ** 0.5


class Nodes(NamedTuple):
    """Gauss quadrature of the spectral density, one rule a start vector; see `smooth`."""

    values: jax.Array  # [starts, k]
    weights: jax.Array  # [starts, k] they sum to one in each rule


def lanczos(apply: Operator, like: PyTree, key: jax.Array, *, depth: int) -> Krylov:
    """Ritz pairs of H from the Krylov space of a random vector, with full reorthogonalisation.

    The error of a Ritz value is the norm of its pair's residual, |beta_k s_k|.
    """
    if depth < 1:
        raise ValueError(f"depth={depth} is no Krylov space; use at least 1")
    flat, _ = ravel_pytree(like)
    steps = min(depth, flat.size)
    start = stochtrace.sampler_sphere(flat, num=1)(key)[0]  # [n]
    tridiagonal = decomp.tridiag_sym(steps, materialize=False, custom_vjp=False)
    basis, bands, rest, _ = tridiagonal(_flat(apply, like), start)
    # An invariant space that is found before the last step ends in 0 / 0: what follows is void.
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
    """One after the other under vmap, as lowrank's SVDs are."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


def measure(
    apply: Operator, like: PyTree, key: jax.Array, *, depth: int, probes: int
) -> tuple[Spectrum, Krylov]:
    """Eigenvalues of the largest magnitude, ||H||_F^2 and with them the stable rank of H.

    With V the Krylov space, P = V V' and z of random signs,

        ||H||_F^2 = ||H V||_F^2 + E ||H (I - P) z||^2

    holds for any V, without bias. The first term is known from the tridiagonal matrix, and holds
    the large eigenvalues, whose part in Hutchinson's variance is the largest (as in Hutch++: Meyer
    et al., SOSA 2021). The standard error is that of the mean over the probes.
    """
    if probes < 2:
        raise ValueError(f"probes={probes} tell no standard error; use at least 2")
    krylov_key, probe_key = jax.random.split(key)
    found = lanczos(apply, like, krylov_key, depth=depth)
    flat, _ = ravel_pytree(like)
    sampler, v = stochtrace.sampler_signs(flat, num=1), found.vectors
    integrand = stochtrace.monte_carlo_frobeniusnorm_squared()

    def probe(key):
        z = sampler(key)[0]  # [n]
        return integrand(_flat(apply, like), z - (v @ z) @ v)

    rest = jax.lax.map(probe, jax.random.split(probe_key, probes))  # [probes]
    known = jnp.sum(found.values**2 + found.errors**2)
    error = jnp.std(rest, ddof=1) / jnp.sqrt(probes)
    return Spectrum(found.values, found.errors, known + jnp.mean(rest), error), found


def largest(
    apply: Operator, like: PyTree, key: jax.Array, *, count: int, depth: int
) -> tuple[jax.Array, jax.Array, PyTree]:
    """(eigenvalues [count] of the largest magnitude, their errors, eigenvectors like `like`).

    The vectors have a leading axis [count]. Ask for a depth of several times `count`.
    """
    _, unravel = ravel_pytree(like)
    if count > depth:
        raise ValueError(f"count={count} eigenvalues of a Krylov space of depth={depth}; use less")
    found = lanczos(apply, like, key, depth=depth)
    vectors = jax.vmap(unravel)(found.vectors[:count])
    return found.values[:count], found.errors[:count], vectors


def density(apply: Operator, like: PyTree, key: jax.Array, *, depth: int, starts: int) -> Nodes:
    """The spectral density by stochastic Lanczos quadrature (Ubaru, Chen and Saad, SIMAX 2017).

    A rule integrates polynomials of degree below 2 depth against the density as its random start
    vector sees it; the mean over `starts` of them tends to (1/n) sum_i f(lambda_i).
    """

    def rule(key):
        found = lanczos(apply, like, key, depth=depth)
        return Nodes(found.values, found.weights)

    return jax.lax.map(rule, jax.random.split(key, starts))


def smooth(nodes: Nodes, grid: np.ndarray, width: float) -> np.ndarray:
    """The density on `grid` [g], each node spread as a normal of standard deviation `width`."""
    values, weights = (np.asarray(x, np.float64).reshape(-1) for x in nodes)
    rules = weights.sum()  # of each rule one
    spread = np.exp(-(((np.asarray(grid)[:, None] - values) / width) ** 2) / 2)  # [g, nodes]
    return spread @ weights / (rules * width * np.sqrt(2 * np.pi))


def _flat(apply: Operator, like: PyTree) -> Operator:
    """The operator on vectors [n]."""
    _, unravel = ravel_pytree(like)
    return lambda v: ravel_pytree(apply(unravel(v)))[0]
