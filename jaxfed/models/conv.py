"""Convolution and pooling for layers, in a form that clients can share, chosen for each platform.

XLA's own convolution does not suit clients as an array axis. On the CPU, it leaves its fast path
inside scan and while, and also under vmap over kernels: a local step of FEMNIST's second layer took
36 times as much CPU time as here, and 48 times as much under vmap over four clients. On a GPU or a
TPU, vmap over kernels makes it a convolution in groups, one for each client, which is the slow path
of NVIDIA's library. So a convolution is

* Winograd's F(4 x 4, 3 x 3) on the CPU for 3 x 3 kernels of stride 1: a quarter of the
  multiplications. With gradients it took about half the CPU time of patches (14 instead of 33 ms
  for FEMNIST's second layer, 75 instead of 140 ms for a ResNet's first with a frozen kernel). In
  float32 its error is up to 1e-5 of the largest output; that of patches is 1e-6. GPUs and TPUs
  multiply float32 in fewer digits, which its transforms would lose;
* patches [positions, k k C] times the kernel [k k C, O] in all other cases.

The platform is the one that the program is compiled for, which need not be here. That is the
default; `with lowering(name)` replaces it, on every platform, by one of LOWERINGS. A run measures
whether another one is faster.

Both use only operations whose transposes are as cheap as they are. So plain autodiff gives fast
gradients and Hessian-vector products, and skips inputs that are not differentiated. Under vmap over
clients with a shared kernel, each remains one product over all clients' examples. Two kernels on
the same x share its patches or its transform, because XLA removes the second copy.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfed.lowrank import products

Padding = Sequence[tuple[int, int]]

LOWERINGS = ("patches", "winograd", "xla")
"""Patches times the kernel; Winograd where the default has it on a CPU, and patches; XLA's own."""

lowering = jax.make_user_context(None)
"""`with lowering("patches"): ...` lowers the convolutions so that are traced within; None: above.

JAX compiles a function again for each of them.
"""

SCOPE = "any_lowering"  # names what a lowering would change, in the text of a lowered program

# Lavin & Gray 2016: for one row, output = A ((G kernel) * (B tile)), with interpolation points
# 0, 1, -1, 2, -2 and infinity. A tile has 6 inputs and gives 4 outputs; tiles start every 4.
_TILE, _HALO, _TAPS = 4, 2, 3
_B = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_G = np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_A = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]])

# Below this many channels, in or out, Winograd's transforms cost more than they save.
_ENOUGH_CHANNELS = 16


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Padding,
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: lax.PrecisionLike = None,
) -> jax.Array:
    """The result of `lax.conv_general_dilated`, for `nn.Conv(conv_general_dilated=convolve)`.

    x [B, H, W, C], kernel [kh, kw, C, O] -> [B, H', W', O], in any number of spatial dimensions.
    XLA computes groups, dilated inputs and other layouts, on every platform.
    """
    n = len(window_strides)
    channels_last = lax.ConvDimensionNumbers(
        (0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n)), (0, n + 1, *range(1, n + 1))
    )
    layout = lax.conv_dimension_numbers(x.shape, kernel.shape, dimension_numbers)
    dilated = lhs_dilation is not None and max(lhs_dilation) > 1
    ours = layout == channels_last and feature_group_count == 1 and not dilated
    library = partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        precision=precision,
    )
    if not ours:
        return library(x, kernel)
    with jax.named_scope(SCOPE):
        if lowering.value == "xla":
            return library(x, kernel)
        return _ours(x, kernel, window_strides, padding, rhs_dilation, precision)


def alternatives(platform: str) -> tuple[str, ...]:
    """The lowerings that may be faster than the default on a platform.

    Not XLA's on a CPU, where a round of it may last for minutes.
    """
    return ("patches",) if platform == "cpu" else ("winograd", "xla")


def _ours(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: str | Padding,
    rhs_dilation: Sequence[int] | None,
    precision: lax.PrecisionLike,
) -> jax.Array:
    """One of the forms in this file, as the lowering or else the platform has it."""
    n = len(window_strides)
    dilation = tuple(rhs_dilation or (1,) * n)
    if isinstance(padding, str):
        window = [(k - 1) * d + 1 for k, d in zip(kernel.shape, dilation, strict=False)]
        padding = lax.padtype_to_pads(x.shape[1:-1], window, window_strides, padding)
    if (
        kernel.shape[:-2] == (_TAPS, _TAPS)
        and max(*window_strides, *dilation) == 1
        and min(kernel.shape[-2:]) >= _ENOUGH_CHANNELS
        and x.dtype in (jnp.float32, jnp.float64)  # narrower types would lose too many digits
        and lowering.value != "patches"
    ):
        if lowering.value == "winograd":
            return _winograd(x, kernel, padding, precision or lax.Precision.HIGHEST)
        return lax.platform_dependent(
            x,
            kernel,
            cpu=partial(_winograd, padding=padding, precision=precision),
            default=partial(
                _product, strides=(1, 1), padding=padding, dilation=(1, 1), precision=precision
            ),
        )
    return _product(x, kernel, window_strides, padding, dilation, precision)


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2 x 2 windows of stride 2: [B, H, W, C] -> [B, H // 2, W // 2, C].

    It is a reshape, because the gradient of XLA's pooling is a slow loop on the CPU. If several
    entries of a window attain the maximum, they share its gradient.
    """
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return jnp.max(x.reshape(b, h // 2, 2, w // 2, 2, c), (2, 4))


def _product(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
    precision: lax.PrecisionLike,
) -> jax.Array:
    """Patches times the kernel as a matrix: [B, H, W, C] -> [B, H', W', O]."""
    patches = _patches(x, kernel, strides, padding, dilation)
    return products.times(patches, kernel.reshape(-1, kernel.shape[-1]), precision)


def _patches(
    x: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: Padding,
    dilation: Sequence[int],
) -> jax.Array:
    """The inputs under the kernel at each position: [B, H, W, C] -> [B, H', W', kh kw C]."""
    x = _pad(x, padding)
    size = kernel.shape[:-2]
    last = [(k - 1) * d for k, d in zip(size, dilation, strict=True)]  # offset of the last tap

    def tap(index: tuple[int, ...]) -> jax.Array:
        offset = [i * d for i, d in zip(index, dilation, strict=True)]
        stop = [n - e + o for n, e, o in zip(x.shape[1:-1], last, offset, strict=True)]
        return lax.slice(x, (0, *offset, 0), (len(x), *stop, x.shape[-1]), (1, *strides, 1))

    return jnp.concatenate([tap(index) for index in np.ndindex(*size)], axis=-1)


def _winograd(
    x: jax.Array, kernel: jax.Array, padding: Padding, precision: lax.PrecisionLike
) -> jax.Array:
    """3 x 3 convolution of stride 1 in tiles of 4 x 4 outputs: [B, H, W, C] -> [B, H', W', O].

    Each tile and the kernel are transformed to 6 x 6 points. Each of the 36 points is a matrix
    product over channels. The products are transformed back.
    """
    (b, *size, c), o = x.shape, kernel.shape[-1]
    h, w = (n + low + high - _HALO for n, (low, high) in zip(size, padding, strict=True))
    th, tw = -(-h // _TILE), -(-w // _TILE)  # tiles of a column, of a row
    grid = (th * _TILE + _HALO, tw * _TILE + _HALO)
    x = _pad(x, [(low, g - n - low) for g, n, (low, _) in zip(grid, size, padding, strict=True)])

    x = _combined(_B, _tiles(x, 2), 0)  # [6, B, 4 th + 2, tw, C], points of the rows
    x = _combined(_B, _tiles(x, 2), 0)  # [6, 6, B, th, tw, C], of the columns before them

    points = (_TILE + _HALO) ** 2
    g = jnp.asarray(np.kron(_G, _G), kernel.dtype)  # [36, 9]
    kernel = jnp.matmul(g, kernel.reshape(_TAPS**2, c * o), precision=precision)
    kernel = products.narrow_left(kernel.reshape(points, c, o))
    y = jnp.matmul(x.reshape(points, -1, c), kernel, precision=precision)  # [36, B th tw, O]

    y = y.reshape(_TILE + _HALO, _TILE + _HALO, b, th, tw, o)
    y = _combined(_A, _unstacked(y, 0), 3)  # [6, B, th, 4, tw, O]
    y = _combined(_A, _unstacked(y, 0), 4)  # [B, th, 4, tw, 4, O]
    return y.reshape(b, th * _TILE, tw * _TILE, o)[:, :h, :w]


def _tiles(x: jax.Array, axis: int) -> list[jax.Array]:
    """Overlapping tiles along `axis`: [..., 4 n + 2, ...] -> their six entries, each [..., n, ...].

    The last two entries of a tile are the first two of the next one. Only split and concat are
    used: the transpose of each is the other. That of a slice is a sum of padded arrays, which is
    twice as slow.
    """
    body, tail = jnp.split(x, [x.shape[axis] - _HALO], axis)
    entries = _unstacked(body.reshape(*x.shape[:axis], -1, _TILE, *x.shape[axis + 1 :]), axis + 1)
    shared = [
        jnp.concatenate([jnp.split(entry, [1], axis)[1], last], axis)
        for entry, last in zip(entries, jnp.split(tail, _HALO, axis), strict=False)
    ]
    return entries + shared


def _unstacked(x: jax.Array, axis: int) -> list[jax.Array]:
    """The arrays of which x is the stack along `axis`."""
    return [jnp.squeeze(part, axis) for part in jnp.split(x, x.shape[axis], axis)]


def _combined(matrix: np.ndarray, parts: Sequence[jax.Array], axis: int) -> jax.Array:
    """matrix [m, n] times n arrays -> their m sums, stacked along `axis`.

    The matrix is small and mostly simple numbers, so this is faster than a matrix product, whose
    transpose would also have to move the points to the last axis and back.
    """
    return jnp.stack(
        [sum(float(m) * x for m, x in zip(row, parts, strict=True) if m) for row in matrix], axis
    )


def _pad(x: jax.Array, padding: Padding) -> jax.Array:
    """Zeros around the spatial dimensions; negative padding crops."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *((*p, 0) for p in padding), (0, 0, 0)])
