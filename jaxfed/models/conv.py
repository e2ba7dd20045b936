"""Convolution as a layer calls it."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
import os

B4 = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    float,
)
G4 = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
A4 = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], float
)
B2 = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], float)
G2 = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
A2 = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], float)
WINO = os.environ.get("WINO", "4")
KIND = os.environ.get("KIND", "mix")


def _winograd(x, kernel, pads, precision):
    B, G, A = (B4, G4, A4) if WINO == "4" else (B2, G2, A2)
    m = A.shape[0]
    n = m + 2
    b, h, w, c = x.shape
    o = kernel.shape[-1]
    oh = h + sum(pads[0]) - 2
    ow = w + sum(pads[1]) - 2
    th, tw = -(-oh // m), -(-ow // m)
    x = jnp.pad(
        x,
        [
            (0, 0),
            (pads[0][0], (th + 1) * m - h - pads[0][0]),
            (pads[1][0], (tw + 1) * m - w - pads[1][0]),
            (0, 0),
        ],
    )
    x = x.reshape(b, th + 1, m, tw + 1, m, c)
    x = jnp.concatenate([x[:, :-1], x[:, 1:, :2]], 2)
    x = jnp.concatenate([x[:, :, :, :-1], x[:, :, :, 1:, :2]], 4)
    x = x.transpose(2, 4, 0, 1, 3, 5).reshape(n * n, -1)
    k = lambda M: jnp.asarray(np.kron(M, M), x.dtype)
    v = (k(B) @ x).reshape(n * n, b * th * tw, c)
    u = (k(G) @ kernel.reshape(9, -1)).reshape(n * n, c, o)
    y = (
        (k(A) @ (v @ u).reshape(n * n, -1))
        .reshape(m, m, b, th, tw, o)
        .transpose(2, 3, 0, 4, 1, 5)
        .reshape(b, th * m, tw * m, o)
    )
    return y[:, :oh, :ow]


def _patches(x, kernel, strides, pads, dil, precision):
    n = len(strides)
    size = kernel.shape[:n]
    x = jnp.pad(x, [(0, 0), *pads, (0, 0)])
    out = [(x.shape[1 + i] - (size[i] - 1) * dil[i] - 1) // strides[i] + 1 for i in range(n)]

    def tap(idx):
        start = [0] + [i * d for i, d in zip(idx, dil)] + [0]
        stop = (
            [x.shape[0]]
            + [i * d + (o - 1) * s + 1 for i, d, o, s in zip(idx, dil, out, strides)]
            + [x.shape[-1]]
        )
        return lax.slice(x, start, stop, [1, *strides, 1])

    p = jnp.concatenate([tap(i) for i in np.ndindex(*size)], -1)
    return p @ kernel.reshape(-1, kernel.shape[-1])


def convolve(
    x,
    kernel,
    strides,
    padding,
    lhs_dilation=None,
    rhs_dilation=None,
    dimension_numbers=None,
    feature_group_count=1,
    precision=None,
):
    if KIND == "lax":
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            precision=precision,
        )
    n = len(strides)
    size = kernel.shape[:n]
    dil = rhs_dilation or (1,) * n
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(
            x.shape[1:-1], [(s - 1) * d + 1 for s, d in zip(size, dil)], strides, padding
        )
    c, o = kernel.shape[-2:]
    if (
        KIND == "mix"
        and size == (3, 3)
        and tuple(strides) == (1, 1)
        and tuple(dil) == (1, 1)
        and 12 / o + 5.3 / c < 1
    ):
        return _winograd(x, kernel, padding, precision)
    return _patches(x, kernel, strides, padding, dil, precision)


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """Maximum over 2 x 2 windows of stride 2: [B, H, W, C] -> [B, H // 2, W // 2, C].

    As a reshape, because the gradient of XLA's pooling is a slow loop on the CPU.
    """
    b, h, w, c = x.shape
    x = x[:, : h // 2 * 2, : w // 2 * 2]
    return jnp.max(x.reshape(b, h // 2, 2, w // 2, 2, c), (2, 4))
