"""Compressed uplinks, with or without a memory of what was lost.

A compressor C(x, key) gives what arrives of a tree x and the bytes sent for it. All but `quantised`
contract: ||C(x) - x||^2 <= (1 - delta) ||x||^2. In each round client k, which would upload x, sends

    plain   C(x)
    EF14    C(p) with p = x + e;        e <- p - C(p)     Seide et al. 2014, Karimireddy et al. 2019
    EF21    C(x - g);  g <- g + C(x - g); the server uses g      Richtarik et al. 2021, Algorithm 2

e and g start at zero and stay with the client; of g the server has a copy. With one local step on
smooth functions EF21 converges exactly, where EF14 reaches a neighbourhood and plain compression of
low rank may stop anywhere. Running statistics are sent whole.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import flatten_util

from jaxfed import lowrank, trees, values
from jaxfed.algorithm import Algorithm, PyTree, check_may_change
from jaxfed.lowrank.factors import orthonormal

Compressor: TypeAlias = Callable[[PyTree, jax.Array], tuple[PyTree, PyTree]]


class Kept(NamedTuple):
    """A client's state in `compressed`."""

    inner: PyTree  # what the inner algorithm's client keeps
    memory: PyTree  # e or g; () without feedback


def compressed(
    algorithm: Algorithm, *, compress: Compressor, feedback: Callable | None = None
) -> Algorithm:
    """The algorithm with compressed uploads, whose bytes clients declare.

    `compress` is `svd(rank)`, `power(rank)` (PowerSGD's), `top(density)` or `quantised(bits)`;
    `feedback` is `ef14`, `ef21`, or None for none. The algorithm must have one exchange a round and
    upload a tree of the form of theta; else ValueError.
    """
    values.kind("algorithm", algorithm, Algorithm, "an Algorithm, such as fedavg(...) returns")
    check_may_change(algorithm, "a compressed upload")
    values.function("compress", compress, "a compressor, such as compress.svd(2)")
    if feedback is not None:
        values.function("feedback", feedback, "compress.ef14, compress.ef21 or None")

    compress = with_whole_statistics(compress)

    def init_client(server, key):
        memory = () if feedback is None else optax.tree.zeros_like(server.theta)
        return Kept(algorithm.init_client(server, key), memory)

    def run_round(server, cohort, for_each_client):
        memories, form = [], trees.shapes(server.theta)

        def verb(client, base, message, inner):
            def compressing(base, message, k):
                reply = client(base, message, k._replace(state=k.state.inner))
                check_form(reply.upload, form, "upload")
                key = jax.random.fold_in(k.key, 7)
                if feedback is None:
                    upload, sent = compress(reply.upload, key)
                    memory = ()
                else:
                    upload, memory, sent = feedback(reply.upload, k.state.memory, key, compress)
                return reply._replace(upload=upload, state=Kept(reply.state, memory), sent=sent)

            kept = inner._replace(state=Kept(inner.state, cohort.state.memory))
            reply = for_each_client(compressing, base, message, kept)
            memories.append(reply.state.memory)
            return reply._replace(state=reply.state.inner)

        inner = cohort._replace(state=cohort.state.inner)
        server, states, metrics = algorithm.run_round(server, inner, verb)
        if len(memories) != 1:
            raise ValueError(f"a round has {len(memories)} exchanges; compress one with one")
        return server, Kept(states, memories[0]), metrics

    return algorithm._replace(
        init_client=init_client,
        run_round=run_round,
        deploy=lambda server, state: algorithm.deploy(server, state.inner),
    )


def check_form(tree: PyTree, form: PyTree, verb: str) -> None:
    """Raises ValueError if what clients receive or upload has not the shapes of theta."""
    if trees.shapes(tree) != form:
        raise ValueError(
            f"clients {verb} another tree than theta, so it has no form known before; wrap an "
            "algorithm that sends theta and uploads its change, such as fedavg"
        )


def with_whole_statistics(compress: Compressor) -> Compressor:
    """The compressor that leaves running statistics whole, as no variance may become negative."""

    def apart(tree, key):
        rest, kept = trees.apart(tree)
        made, size = compress(rest, key)
        return trees.together(made, kept), (size, trees.nbytes(kept))

    return apart


# ---------------------------------------------------------------------- memories


def ef14(
    x: PyTree, e: PyTree, key: jax.Array, compress: Compressor
) -> tuple[PyTree, PyTree, PyTree]:
    """(C(x + e), what that lost, bytes): the loss is sent with the next upload."""
    p = optax.tree.add(x, e)
    sent, size = compress(p, key)
    return sent, optax.tree.sub(p, sent), size


def ef21(
    x: PyTree, g: PyTree, key: jax.Array, compress: Compressor
) -> tuple[PyTree, PyTree, PyTree]:
    """(g + C(x - g), the same, bytes): the server knows g and receives a step from it towards x."""
    step, size = compress(optax.tree.sub(x, g), key)
    g = optax.tree.add(g, step)
    return g, g, size


# ---------------------------------------------------------------------- compressors


def svd(rank: int) -> Compressor:
    """Each matrix by its best approximation of that rank; delta = r / min(m, n).

    A leaf [..., n] is a matrix [m, n]. Vectors, and matrices of which r (m + n) numbers are not
    fewer than all, are sent whole. An SVD for each matrix of each client: slow for large ones.
    """
    values.whole("rank", rank, 1)

    def best(matrix, key):
        return lowrank.product(lowrank.from_product(matrix, 1, rank, 1.0))

    return _matrices(best, rank)


def power(rank: int, passes: int = 1) -> Compressor:
    """As `svd`, by subspace iteration from a random start: M -> P P' M, P = orth(M (M' M)^(n-1) Q).

    One pass is PowerSGD's step (Vogels et al. 2019) without its warm start; use it with `ef14`.
    """
    values.whole("rank", rank, 1)
    values.whole("passes", passes, 1)

    def projected(matrix, key):
        q = jax.random.normal(key, (matrix.shape[1], rank), matrix.dtype)
        for _ in range(passes):
            p = orthonormal(matrix @ q)  # [m, r]
            q = matrix.T @ p  # [n, r]
        return p @ q.T

    return _matrices(projected, rank)


def top(density: float) -> Compressor:
    """The largest entries of the whole tree by magnitude, a share `density` of them, and positions.

    delta = density. An entry costs its bytes and 4 for its position.
    """
    values.number("density", density, 0.0, 1.0)
    return lambda tree, key: largest(tree, density)


def largest(tree: PyTree, density: float) -> tuple[PyTree, int]:
    """(the tree with all but its largest entries zero, bytes) as `top` has it."""
    flat, restore = flatten_util.ravel_pytree(tree)
    kept = max(1, int(density * flat.size))
    place = jax.lax.top_k(jnp.abs(flat), kept)[1]
    sparse = jnp.zeros_like(flat).at[place].set(flat[place])
    return restore(sparse), kept * (flat.dtype.itemsize + 4)


def quantised(bits: int) -> Compressor:
    """Each number rounded at random to one of 2^bits - 1 levels; unbiased: E C(x) = x.

    With m = max |x| of a leaf and s = 2^(bits-1) - 1, C(x) = m q / s with q = floor(s x / m + u), u
    uniform: QSGD's rounding (Alistarh et al., NeurIPS 2017) by the largest entry, in q of so many
    bits. Its variance is at most (m / 2 s)^2 an entry. It need not contract, so memories of what
    was lost may grow: use it without feedback. A leaf costs `bits` for each number, and m.
    """
    if values.whole("bits", bits, 2) > 16:
        raise ValueError(f"bits={bits}; use at most 16, or send all bits")
    levels = 2 ** (bits - 1) - 1

    def one(x: jax.Array, key: jax.Array) -> jax.Array:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # a narrow sum would be biased
        most = jnp.max(jnp.abs(wide), initial=0)
        step = jnp.where(most > 0, most, 1) / levels
        drawn = jax.random.uniform(key, wide.shape, wide.dtype)
        q = jnp.clip(jnp.floor(wide / step + drawn), -levels, levels)
        return (q * step).astype(x.dtype)

    def compress(tree, key):
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(key, len(leaves))
        made = [one(x, k) for x, k in zip(leaves, keys, strict=True)]
        sizes = [-(-bits * x.size // 8) + x.dtype.itemsize for x in leaves]
        return jax.tree.unflatten(structure, made), sizes

    return compress


def _matrices(approximate: Callable, rank: int) -> Compressor:
    """The compressor that approximates each matrix [m, n] of a tree, at r (m + n) numbers."""

    def one(x: jax.Array, key: jax.Array) -> tuple[jax.Array, int]:
        n = x.shape[-1] if x.ndim else 1
        numbers = rank * (x.size // n + n)
        if x.ndim < 2 or numbers >= x.size:
            return x, x.nbytes
        return approximate(x.reshape(-1, n), key).reshape(x.shape), numbers * x.dtype.itemsize

    def compress(tree, key):
        leaves, structure = jax.tree.flatten(tree)
        keys = jax.random.split(key, len(leaves))
        made = [one(x, k) for x, k in zip(leaves, keys, strict=True)]
        return jax.tree.unflatten(structure, [x for x, _ in made]), [size for _, size in made]

    return compress
