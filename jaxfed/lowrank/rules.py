"""Rules: what a server makes of the factors that its clients trained.

Each of K clients uploads A_k [in, r] and B_k [r, out]. Beside each other they are one adapter of
rank K r, the stack, whose product is the mean of the clients' products:

    M = s sum_k p_k A_k B_k = s [p_1 A_1 ... p_K A_K] [B_1; ...; B_K]

The product of the means, s A' B' with A' = sum_k p_k A_k and B' = sum_k p_k B_k, differs from M by
the covariance of the factors over clients (`combine.with_discrepancy` records it). A rule chooses
the next factors A, B from the stack and the means. If it is exact, the base takes the rest,
W <- W + M - s A B, so the model changes by M whatever A and B are.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxfed.lowrank.factors import Factors, Theta, concat, drawn, each_layer, merge, thin_svd

PASSES = 8
"""Power iterations of `best`, each one product with M and one with its transpose."""


class Rule(NamedTuple):
    """How clients train factors and what the server makes of them."""

    factors: Callable[[str, Factors, Factors, jax.Array], Factors]
    """(path, the stack, the means, key) -> the next factors; every client has the key."""

    exact: bool = False
    """True if the base takes what the next factors leave out of the mean of the products."""

    trains_b: Callable[[jax.Array], jax.Array] | None = None
    """round -> True if clients train B in it, False if A; None: they train both."""

    receives: str = "ab"
    """The sides of the next factors that clients cannot compute, so the server sends them."""

    partitioned: bool = False
    """True if M has component j as the mean over the clients of rank j and more alone."""


# ---------------------------------------------------------------------- the next factors


def means(path: str, stack: Factors, mean: Factors, key: jax.Array) -> Factors:
    """A and B averaged separately."""
    return mean


def fresh(path: str, stack: Factors, mean: Factors, key: jax.Array) -> Factors:
    """A random and B zero, as at the start of fine-tuning."""
    return drawn(key, path, mean, mean.rank, mean.scale)


def best(path: str, stack: Factors, mean: Factors, key: jax.Array) -> Factors:
    """The best factors of M of rank r, with A orthonormal: M = U S V', A = U_r, s B = S_r V_r'.

    By subspace iteration on 2 r columns; M itself is never formed. The error of the subspace falls
    by (sigma_{2r+1} / sigma_r)^2 in each of its 8 passes; it is zero if M has rank 2 r at most.
    """
    return truncated(stack, mean.rank, key)


def best_even(path: str, stack: Factors, mean: Factors, key: jax.Array) -> Factors:
    """As `best`, with the root of each singular value on either side: A'A = B B'."""
    f = best(path, stack, mean, key)
    a, b = f.a, f.b
    root = jnp.sqrt(jnp.linalg.norm(b.reshape(*b.shape[: f.stack + 1], -1), axis=-1))  # [..., r]
    over = jnp.where(root > 0, root, 1)
    down = root.reshape(*root.shape[:-1], *[1] * (a.ndim - f.stack - 1), -1)
    up = over.reshape(*over.shape, *[1] * (b.ndim - f.stack - 1))
    return dataclasses.replace(f, a=a * down, b=b / up)


# ---------------------------------------------------------------------- which side is trained


def always(t: jax.Array) -> jax.Array:
    """True in every round."""
    return jnp.bool_(True)


def in_turn(t: jax.Array) -> jax.Array:
    """True in rounds 0, 2, 4, ..."""
    return t % 2 == 0


# ---------------------------------------------------------------------- the methods

SEPARATE = Rule(means)
"""FedLoRA, FedIT, HOMLoRA: A, B <- sum_k p_k A_k, sum_k p_k B_k."""

FEDEX = Rule(means, exact=True)
"""FedEx-LoRA (ACL 2025, arXiv 2410.09432): the means; W <- W + s (sum_k p_k A_k B_k - A B)."""

FLORA = Rule(fresh, exact=True, receives="")
"""FLoRA (NeurIPS 2024, arXiv 2409.05976): W <- W + s sum_k p_k A_k B_k; A random, B = 0."""

FLEXLORA = Rule(best)
"""FlexLoRA (NeurIPS 2024, arXiv 2402.11505): A, s B <- U_r, S_r V_r' of M, as its code splits."""

RAFLORA = Rule(best, partitioned=True)
"""raFLoRA (arXiv 2602.13486): FlexLoRA, but a component's mean is over the clients that have it.

Under FlexLoRA the others count as zeros, so what few clients have shrinks in every round."""

FEDMOMENTUM = Rule(best_even, exact=True)
"""FedMomentum (arXiv 2603.08014): the best factors; W takes the rest. The even split is ours."""

FEDSVD = Rule(best, trains_b=always)
"""FedSVD (NeurIPS 2025, arXiv 2505.12805): B is trained; the mean of the products is kept while A
becomes orthonormal. With a common A it has rank r, so the best factors lose nothing."""

FFA = Rule(means, trains_b=always, receives="b")
"""FFA-LoRA (ICLR 2024, arXiv 2403.12313): A stays as first drawn; B is trained and averaged."""

ROLORA = Rule(means, trains_b=in_turn)
"""RoLoRA (NeurIPS 2025, arXiv 2409.02346): B is trained in rounds 0, 2, ..., A in the others.

Both sides are sent down: a client that missed the last round lacks both."""


def applied(
    rule: Rule,
    base: Mapping[str, jax.Array],
    mean: Mapping[str, Factors],
    stack: Mapping[str, Factors],
    key: jax.Array,
) -> tuple[dict[str, jax.Array], dict[str, Factors]]:
    """(base, factors) that a rule makes of the means and stacks of factors {path: ...}."""
    factors = {p: rule.factors(p, stack[p], f, key) for p, f in mean.items()}
    if not rule.exact:
        return dict(base), factors
    return merge(base, Theta({}, {p: left_out(stack[p], f) for p, f in factors.items()})), factors


# ---------------------------------------------------------------------- stacks


def stacked(f: Factors, weight: jax.Array) -> Factors:
    """The stack of K clients' factors, leaves [K, ...]: one adapter of rank K r for M.

    Weights are [K], or [K, r] with one for each component.
    """
    each = weight.astype(f.b.dtype).reshape(len(weight), *[1] * f.stack, -1)  # [K, ..., r or 1]
    b = f.b * each.reshape(*each.shape, *[1] * (f.b.ndim - each.ndim))
    b = jnp.moveaxis(b, 0, f.stack)  # [K, r, out...]
    a = jnp.moveaxis(f.a, 0, -2)  # [in..., K, r]
    return dataclasses.replace(
        f,
        a=a.reshape(*a.shape[:-2], -1),
        b=b.reshape(*b.shape[: f.stack], -1, *b.shape[f.stack + 2 :]),
    )


def partitioned(weight: jax.Array, ranks: jax.Array, most: int) -> jax.Array:
    """Weights [K, r] for each component: those of the clients that have it, summing to one.

    Zero for a component that none has.
    """
    has = weight[:, None] * (jnp.arange(most) < ranks[:, None])  # [K, r]
    total = jnp.sum(has, axis=0)
    return has / jnp.where(total > 0, total, 1)


def left_out(stack: Factors, f: Factors) -> Factors:
    """The adapter of what f leaves out of the stack's product: M - s a b."""
    return concat(stack, dataclasses.replace(f, b=-f.b))


def truncated(f: Factors, rank: int, key: jax.Array) -> Factors:
    """The best factors of f's product of that rank, with a orthonormal; see `best`."""
    inside, outside = f.a.shape[: f.stack], f.b.shape[f.stack + 1 :]
    a = f.a.reshape(*inside, -1, f.rank)
    b = f.b.reshape(*inside, f.rank, -1)
    width = min(2 * rank, *a.shape[-2:], b.shape[-1])
    begin = jax.random.normal(key, (*inside, b.shape[-1], width), a.dtype)
    top = _top
    for _ in inside:  # the axes of stacked layers
        top = jax.vmap(top)
    basis, rest = top(a, b, begin)  # [..., in, width], [..., width, out]
    spare, ahead = (0, max(rank - width, 0)), [(0, 0)] * f.stack  # ranks above a smaller side
    basis = jnp.pad(basis[..., :rank], [*ahead, (0, 0), spare])
    rest = jnp.pad(rest[..., :rank, :], [*ahead, spare, (0, 0)])
    return dataclasses.replace(
        f,
        a=basis.reshape(*f.a.shape[:-1], rank),
        b=rest.reshape(*inside, rank, *outside),
    )


def thresholded(f: Factors, energy: float) -> tuple[Factors, jax.Array]:
    """(f's product by its first p singular values, p): the fewest with that share of their squares.

    The components after p are zero; a stack of layers has one p [...] for each.
    """

    def one(f):
        a, squares, b = _components(f.a.reshape(-1, f.rank), f.b.reshape(f.rank, -1))
        share = jnp.cumsum(jnp.maximum(squares, 0))
        kept = jnp.minimum(jnp.sum(share < energy * share[-1]) + (share[-1] > 0), len(share))
        kept = kept.astype(jnp.int32)
        first = jnp.arange(len(share)) < kept
        a, b = jnp.where(first, a, 0), jnp.where(first[:, None], b, 0)
        return dataclasses.replace(
            f, a=a.reshape(*f.a.shape[:-1], -1), b=b.reshape(-1, *f.b.shape[1:])
        ), kept

    return each_layer(one, f)


@jax.custom_batching.sequential_vmap
def _components(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(a' [in, l], sigma^2 [l], b' [l, out]): M = a b, by its singular values, largest first.

    l = min(in, rank, out). From the eigenvectors V of an [l, l] Gram matrix, a third of the work of
    an SVD. M = M V V' however sigma^2 is rounded, by about 1e-7 of the largest in float32. M is
    formed where the rank is not its smallest size. One after the other under vmap, as below.
    """
    inputs, rank, outputs = *a.shape, b.shape[1]
    if inputs < min(rank, outputs):
        right, squares, left = _components(b.T, a.T)
        return left.T, squares, right.T
    if rank >= outputs:
        product = a @ b
        squares, v = _turn(product)
        return product @ v, squares, v.T
    basis, inside = jnp.linalg.qr(b.T)  # [out, l], [l, l]
    onto = a @ inside.T  # [in, l]
    squares, v = _turn(onto)
    return onto @ v, squares, (basis @ v).T


def _turn(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sigma^2 [n], v [n, n]) of a matrix [m, n], the largest first."""
    squares, v = jnp.linalg.eigh(matrix.T @ matrix)
    return squares[::-1], v[:, ::-1]


@jax.custom_batching.sequential_vmap
def _top(a: jax.Array, b: jax.Array, begin: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(u, u' a b) for the top left singular vectors u of a b, as many as `begin` has columns.

    One after the other under vmap: on a CPU, batched decompositions may wait for threads for ever.
    """

    rank, sides = a.shape[1], a.shape[0] + b.shape[1]
    pair = (a @ b,) if rank * sides >= a.shape[0] * b.shape[1] else (a, b)  # what is less work

    def onward(_, x):
        for f in reversed(pair):
            x = f @ x
        y = _conditioned(x)  # [in, l]
        for f in pair:
            y = (y.T @ f).T  # on a CPU a third of the time of f.T @ y
        return _conditioned(y)  # [out, l]

    x = jax.lax.fori_loop(0, PASSES, onward, begin)
    u = jnp.linalg.qr(a @ (b @ x))[0]
    inside = (u.T @ a) @ b  # [l, out]
    turn = thin_svd(jnp.linalg.qr(inside.T)[1].T)[0]  # [l, l]
    return u @ turn, turn.T @ inside


def _conditioned(x: jax.Array) -> jax.Array:
    """Nearly orthonormal columns [n, l] with the same span: a shifted Cholesky QR, no LAPACK on n.

    Directions below the rounding of float32's squares keep their span and not their length.
    """
    gram = x.T @ x
    shift = len(gram) * jnp.finfo(x.dtype).eps * jnp.trace(gram) + jnp.finfo(x.dtype).tiny
    root = jnp.linalg.cholesky(gram + shift * jnp.eye(len(gram), dtype=x.dtype))
    return x @ jnp.linalg.inv(root).T
