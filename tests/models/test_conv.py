"""`convolve` against lax.conv_general_dilated: values, derivatives, and structure under vmap."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxprs
import numpy as np
import pytest
import tiers
from jax import lax

from jaxfed.models import conv

LAYOUT = ("NHWC", "HWIO", "NHWC")


def ours(x, kernel, strides=(1, 1), padding="SAME", dilation=(1, 1)):
    return conv.convolve(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=LAYOUT
    )


def xla(x, kernel, strides=(1, 1), padding="SAME", dilation=(1, 1)):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=LAYOUT
    )


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


CASES = {
    "same": ((9, 7), (3, 3), {}),
    "valid": ((10, 11), (3, 3), {"padding": "VALID"}),
    "tile": ((4, 4), (3, 3), {"padding": [(1, 1), (1, 1)]}),
    "smaller than a tile": ((3, 2), (3, 3), {}),
    "uneven padding": ((7, 8), (3, 3), {"padding": [(2, 0), (-1, 3)]}),
    "stride": ((9, 8), (3, 3), {"strides": (2, 2)}),
    "explicit stride": ((8, 8), (3, 3), {"strides": (2, 2), "padding": [(1, 1), (1, 1)]}),
    "1 x 1": ((5, 6), (1, 1), {}),
    "1 x 1 stride": ((5, 6), (1, 1), {"strides": (2, 2), "padding": [(0, 0), (0, 0)]}),
    "5 x 2": ((9, 8), (5, 2), {"strides": (2, 1)}),
    "dilation": ((9, 9), (3, 3), {"dilation": (2, 3)}),
}


def check_derivatives(case, channels, dtype, tolerance):
    size, window, options = CASES[case]
    arguments = normal(0, 2, *size, channels[0]), normal(1, *window, *channels)
    directions = normal(2, *arguments[0].shape), normal(3, *arguments[1].shape)
    arguments, directions = jax.tree.map(lambda a: a.astype(dtype), (arguments, directions))

    @partial(jax.jit, static_argnums=0)
    def derivatives(convolve):
        gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k, **options) / 8)), (0, 1))
        return convolve(*arguments, **options), jax.jvp(gradient, arguments, directions)

    def close(a, b):
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.max(jnp.abs(b))))

    jax.tree.map(close, derivatives(ours), derivatives(xla))


@pytest.mark.parametrize("channels", tiers.usual([(2, 3), (16, 17)], (2, 3)), ids=["few", "many"])
@pytest.mark.parametrize("case", CASES)
def test_value_gradient_and_hessian_vector_product_are_those_of_xla(case, channels):
    with jax.enable_x64(True):
        check_derivatives(case, channels, np.float64, 1e-11)


@pytest.mark.parametrize("case", ["same", "stride"])
def test_single_precision_keeps_four_digits(case):
    check_derivatives(case, (16, 17), np.float32, 1e-4)


@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0), (1, 3)])
@pytest.mark.parametrize("channels", [3, 16])
def test_mapped_in_a_scan_it_is_xla_one_by_one(axes, channels):
    x, kernel = normal(0, 3, 3, 6, 6, channels), normal(1, 3, 3, channels, 3 * 16)
    kernel = kernel.reshape(3, 3, channels, 3, 16)  # clients on axis 3
    x = x if axes[0] is not None else x[0]
    kernel = kernel[..., 0, :] if axes[1] is None else jnp.moveaxis(kernel, 3, axes[1])

    def step(carry, _):
        return carry + jax.vmap(ours, axes)(x, kernel), None

    mapped, _ = jax.jit(lambda: lax.scan(step, jnp.zeros((3, 3, 6, 6, 16)), length=2))()
    for i in range(3):
        one = [a if ax is None else jnp.take(a, i, ax) for a, ax in zip((x, kernel), axes)]  # noqa: B905
        np.testing.assert_allclose(mapped[i], 2 * xla(*one), atol=1e-3)


def test_mapped_twice_and_over_devices():
    x, kernel = normal(0, 1, 2, 3, 2, 5, 5, 16), normal(1, 3, 3, 3, 16, 16)
    inner = jax.vmap(jax.vmap(ours), (0, None))
    y = jax.pmap(inner, in_axes=(0, None))(x, kernel)
    np.testing.assert_allclose(y[0, 1, 2], xla(x[0, 1, 2], kernel[2]), atol=1e-3)


def matrix_products(text):
    return [line for line in text.splitlines() if "dot_general" in line]


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_a_shared_kernel_is_never_copied_for_each_client(strides):
    clients, x, kernel = 7, normal(0, 7, 2, 8, 8, 16), normal(1, 3, 3, 16, 32)

    def loss(x):
        return jnp.sum(jnp.square(jax.vmap(lambda x: ours(x, kernel, strides))(x)))

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(x))
    assert not any(f"[{clients},{size}" in jaxpr for size in ("3,3,16,32", "36,16,32", "144,32"))


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_two_kernels_on_one_input_share_what_is_prepared_of_it(strides):
    x, kernel, down = normal(0, 2, 8, 8, 16), normal(1, 3, 3, 16, 32), normal(2, 3, 3, 16, 16)

    def instructions(function):
        text = jax.jit(function).lower(x).compile().as_text()
        return text.count(" concatenate(")

    alone = instructions(lambda x: ours(x, kernel, strides))
    both = instructions(lambda x: (ours(x, kernel, strides), ours(x, down, strides)))
    assert both - alone <= (4 if strides == (1, 1) else 0)  # Winograd's outputs are stacks too


def test_a_frozen_kernel_costs_no_gradient():
    x, kernel = normal(0, 2, 8, 8, 16), normal(1, 3, 3, 16, 32)
    gradient = jax.grad(lambda x: jnp.sum(ours(x, kernel, (2, 2))))
    forward = len(matrix_products(str(jax.make_jaxpr(lambda x: ours(x, kernel, (2, 2)))(x))))
    assert len(matrix_products(str(jax.make_jaxpr(gradient)(x)))) == 2 * forward


@pytest.mark.parametrize("options", [{"feature_group_count": 2}, {"lhs_dilation": (2, 2)}])
def test_groups_and_dilated_inputs_are_left_to_xla(options):
    groups = options.get("feature_group_count", 1)
    x, kernel = normal(0, 2, 6, 6, 4), normal(1, 3, 3, 4 // groups, 8)
    arguments = x, kernel, (1, 1), [(1, 1), (1, 1)]
    mine = conv.convolve(*arguments, dimension_numbers=LAYOUT, **options)
    theirs = lax.conv_general_dilated(*arguments, dimension_numbers=LAYOUT, **options)
    np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("size", [(11,), (7, 6), (5, 4, 6)])
def test_a_layer_of_flax_takes_it_in_one_two_and_three_dimensions(size):
    x = normal(0, 2, *size, 3)
    layer = partial(nn.Conv, 4, (3,) * len(size), strides=2)
    variables = layer().init(jax.random.key(0), x)
    mine = layer(conv_general_dilated=conv.convolve).apply(variables, x)
    np.testing.assert_allclose(mine, layer().apply(variables, x), atol=1e-5)


@pytest.mark.parametrize("size", [(6, 8), (7, 5)])
def test_pooling_and_its_gradient_are_those_of_flax(size):
    x = normal(0, 2, *size, 3)
    theirs = partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
    for a, b in [(conv.max_pool_2x2, theirs)]:
        np.testing.assert_array_equal(a(x), b(x))
        gradients = [jax.grad(lambda x, f=f: jnp.sum(jnp.sin(f(x))))(x) for f in (a, b)]
        np.testing.assert_allclose(*gradients, atol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("size", [3, 5])
def test_a_precision_reaches_every_product(size):
    """On a CPU Winograd's, on other platforms that of patches; of another size patches on all."""
    x, kernel = jnp.ones((1, 8, 8, 16)), jnp.ones((size, size, 16, 16))
    highest = partial(
        conv.convolve, window_strides=(1, 1), padding="SAME", dimension_numbers=LAYOUT,
        precision=lax.Precision.HIGHEST,
    )  # fmt: skip
    products = [
        eqn.params["precision"]
        for eqn in jaxprs.equations(jax.make_jaxpr(highest)(x, kernel).jaxpr)
        if eqn.primitive.name == "dot_general" and eqn.outvars[0].aval.shape[-1] == 16
    ]
    assert products
    assert all(one == (lax.Precision.HIGHEST,) * 2 for one in products)


@pytest.mark.parametrize("name", conv.LOWERINGS)
@pytest.mark.parametrize("case", ["same", "valid"])
def test_every_lowering_is_that_of_xla(case, name):
    with jax.enable_x64(True), conv.lowering(name):
        check_derivatives(case, (16, 17), np.float64, 1e-11)


def test_a_lowering_replaces_what_is_traced_within_it_alone():
    x, kernel = normal(0, 2, 8, 8, 16), normal(1, 3, 3, 16, 32)
    convolved = jax.jit(ours)

    def text(name):
        with conv.lowering(name):
            return convolved.lower(x, kernel).as_text(debug_info=True)

    default, patches, winograd, library = map(text, (None, *conv.LOWERINGS))
    assert all(conv.SCOPE in t for t in (default, patches, winograd, library))
    assert "stablehlo.convolution" in library
    assert not any("stablehlo.convolution" in t for t in (default, patches, winograd))
    assert "[36, " not in patches
    assert "tensor<36x" in winograd
    assert "tensor<36x" not in patches
    assert convolved.lower(x, kernel).as_text(debug_info=True) == default
