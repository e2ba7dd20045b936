"""A dense layer and its low-rank term by one kernel, here interpreted on the CPU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import lowrank
from jaxfed.lowrank import Factors, Theta, fused, gates, quantised
from jaxfed.models.layers import stored_as


def world(rows, inputs, outputs, rank, dtype=jnp.float32):
    """(model, base, what three clients train [3, ...], their inputs [3, rows, inputs])."""
    model = nn.Dense(outputs, dtype=dtype, param_dtype=dtype)
    keys = jax.random.split(jax.random.key(0), 5)
    shapes = (3, rows, inputs), (inputs, outputs), (3, inputs, rank), (3, rank, outputs), (outputs,)
    x, w, a, b, c = map(jax.random.normal, keys, shapes)
    w, a = w / inputs**0.5, a / inputs**0.5
    base = {"kernel": w.astype(dtype), "bias": c.astype(dtype)}
    return model, base, Theta({}, {"kernel": Factors(a, b, 0.7)}), x.astype(dtype)


def everything(model, base, theta, x, dropout=0.0):
    """Of three clients at once: the output, its gradients, and a Hessian-vector product."""

    def one(theta, x, key):
        def loss(theta, x):
            y = lowrank.apply(model, base, theta, x, dropout=dropout, key=key)
            return jnp.sum(jnp.sin(y.astype(jnp.float32))), y

        (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(theta, x)
        along = jax.jvp(lambda t: jax.grad(loss, (0, 1), has_aux=True)(t, x)[0], (theta,), (theta,))
        return y, gradients, along[1]

    return jax.jit(jax.vmap(one))(theta, x, jax.random.split(jax.random.key(9), 3))


def assert_as_products(*arguments, within=1e-5, **options):
    expected = jax.tree.leaves(everything(*arguments, **options))
    with fused.form("interpreted"):
        found = jax.tree.leaves(everything(*arguments, **options))
    for x, y in zip(found, expected, strict=True):
        assert x.dtype == y.dtype
        x, y = (np.asarray(z, np.float32) for z in (x, y))
        np.testing.assert_allclose(x, y, rtol=0, atol=within * max(np.abs(y).max(initial=0), 1))


@pytest.mark.parametrize("sizes", [(20, 37, 50, 3), (130, 70, 17, 8), (5, 16, 130, 0)])
def test_values_and_derivatives_of_any_size_are_those_of_products(sizes):
    assert_as_products(*world(*sizes))


def test_derivatives_around_vmap_are_those_of_products():
    """The gradient of a sum over clients, some of whose inputs they share, and its derivative."""
    model, base, theta, x = world(4, 9, 7, 3)
    f = theta.factors["kernel"]

    def loss(w, a, b, x):
        def one(a, b):
            factors = Factors(a, b, 0.7)
            return lowrank.apply(model, {**base, "kernel": w}, Theta({}, {"kernel": factors}), x)

        return jnp.sum(jnp.sin(jax.vmap(one, (None, 0))(a, b)))

    def derivatives(*at):
        return jax.jvp(jax.grad(loss, (0, 1, 2, 3)), at, at)

    at = base["kernel"], f.a[0], f.b, x[0]
    expected = jax.jit(derivatives)(*at)
    with fused.form("interpreted"):
        found = jax.jit(derivatives)(*at)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-3, 1e-4), found, expected)


def test_dropout_and_gates_pass_through():
    model, base, theta, x = world(6, 9, 7, 3)
    assert_as_products(model, base, theta, x, dropout=0.4)
    f = theta.factors["kernel"]
    router = jax.random.normal(jax.random.key(3), (3, 9, 2))
    gated = Theta({}, {"kernel": gates.Gated(f, router, (1, 2), True)})
    assert_as_products(model, base, gated, x)


@pytest.mark.parametrize("wide", [False, True])
def test_in_bfloat16_they_differ_by_its_rounding(wide):
    """Also in a layer that stores bfloat16 and returns float32."""
    model, base, theta, x = world(20, 37, 50, 3, jnp.bfloat16)
    if wide:
        model, x = nn.Dense(50, **stored_as(jnp.bfloat16)), x.astype(jnp.float32)
    assert_as_products(model, base, theta, x, within=0.03)


class Deep(nn.Module):
    """Two layers, one after the other by nn.scan, each computed again in the gradient."""

    @nn.compact
    def __call__(self, x):
        def body(layer, x, _):
            return jnp.tanh(layer(x)), None

        kept = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 2}
        again = nn.remat(body)
        return nn.scan(again, **kept)(nn.Dense(7, name="dense"), x, None)[0]


def test_a_scan_over_layers_computed_again_has_second_derivatives():
    x = jax.random.normal(jax.random.key(0), (3, 5, 7))
    params = Deep().init(jax.random.key(1), x[0])["params"]
    select = lowrank.Select(factors="kernel", rank=2, up="random")
    found = lowrank.layers(Deep(), x[0])
    base, theta = lowrank.split(params, found, select, jax.random.key(2))
    theta = jax.tree.map(lambda x: jnp.stack([x, 2 * x, 3 * x]), theta)
    assert_as_products(Deep(), base, theta, x)


def test_what_the_kernel_cannot_compute_stays_products():
    """A layer of several axes, one in int8, one at another precision, and a subclass."""

    class Doubled(nn.Dense):
        def __call__(self, x):
            return 2 * super().__call__(x)

    x = jax.random.normal(jax.random.key(0), (2, 4))
    for model in (
        nn.DenseGeneral((3, 2)),
        nn.Dense(3, precision="highest"),
        Doubled(3),
        nn.Dense(3),
    ):
        base = dict(model.init(jax.random.key(1), x)["params"])
        out = base["kernel"].shape[1:]
        if type(model) is nn.Dense and model.precision is None:
            base["kernel"] = quantised.quantise(base["kernel"], "int8")
        theta = Theta({}, {"kernel": Factors(jnp.ones((4, 2)), jnp.ones((2, *out)), 1.0)})
        expected = lowrank.apply(model, base, theta, x)
        with fused.form("kernel"):  # which a CPU would refuse
            np.testing.assert_array_equal(lowrank.apply(model, base, theta, x), expected)
