"""`times` against a plain product: values, derivatives, and the form of its gradients on a CPU."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed.lowrank import products

ROWS = (3, 4)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def plain(x, w, precision=None):
    return jnp.tensordot(x, w, axes=1)


def derivatives(times, x, w, dx, dw):
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(times(x, w))), (0, 1))
    forward = jax.jvp(times, (x, w), (dx, dw))
    twice = jax.jvp(gradient, (x, w), (dx, dw))  # forward over reverse
    back = jax.grad(lambda w: jnp.sum(gradient(x, w)[0] ** 2))(w)  # reverse over reverse
    return forward, twice, back


@pytest.mark.parametrize(("d", "n"), [(7, 2), (2, 7), (5, 5)], ids=["narrow", "wide", "square"])
@pytest.mark.parametrize("clients", [0, 3])
def test_values_and_all_derivatives_are_those_of_a_plain_product(d, n, clients):
    with jax.enable_x64(True):
        many = (clients,) if clients else ()
        arguments = [normal(i, *many, *s) for i, s in enumerate([(*ROWS, d), (d, n)] * 2)]

        def found(times):
            def each(*a):
                return derivatives(times, *a)

            return jax.jit(jax.vmap(each) if clients else each)(*arguments)

        close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12)  # noqa: E731
        jax.tree.map(close, found(products.times), found(plain))


def test_a_shared_weight_has_the_sum_of_the_gradients_of_all_clients():
    with jax.enable_x64(True):
        x, w = normal(0, 5, *ROWS, 7), normal(1, 7, 2)

        def gradient(times):
            mapped = jax.vmap(times, (0, None))
            return jax.grad(lambda w: jnp.sum(mapped(x, w) ** 2))(w)

        np.testing.assert_allclose(gradient(products.times), gradient(plain), atol=1e-12)


def compiled(times, clients):
    """The text of the gradient of a narrow weight [64, 4], 8 x 16 rows."""
    many = (clients,) if clients else ()
    x, w, g = (jnp.zeros((*many, *s)) for s in [(8, 16, 64), (64, 4), (8, 16, 4)])

    def gradient(x, w, g):
        return jax.vjp(lambda w: times(x, w), w)[1](g)[0]

    call = jax.vmap(gradient) if clients else gradient
    return jax.jit(call).lower(x, w, g).compile().as_text()


@pytest.mark.parametrize("clients", [0, 3])
def test_the_gradient_of_a_narrow_weight_has_the_narrow_side_on_the_left(clients):
    """So the product [4, 64] is computed, which is transposed, and not [64, 4]."""

    def shapes(text):
        found = re.findall(r"f32\[([\d,]+)\]\S* dot\(", text)
        return {tuple(map(int, shape.split(",")))[-2:] for shape in found}

    assert shapes(compiled(products.times, clients)) == {(4, 64)}
    assert shapes(compiled(plain, clients)) == {(64, 4)}, "XLA does it: `narrow_left` can go"


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_on_other_platforms_it_is_the_plain_product(platform):
    """With all rows on one axis a TPU's program computes 1.4 times as many FLOPs."""
    x, w = jnp.zeros((8, 16, 64)), jnp.zeros((64, 4))

    def lowered(times, platform):
        gradient = jax.jit(jax.grad(lambda x, w: jnp.sum(times(x, w) ** 2), (0, 1)))
        return gradient.trace(x, w).lower(lowering_platforms=(platform,)).as_text()

    def products_in(text):
        return re.findall(r"dot_general .*(contracting_dims.*)", text)

    there = lowered(products.times, platform)
    assert products_in(there) == products_in(lowered(plain, platform))
    assert "optimization_barrier" not in there
    assert "optimization_barrier" in lowered(products.times, "cpu")
