"""Two adapters beside one weight: their weights for each input, in every kind of layer."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from jaxfed import lowrank
from jaxfed.lowrank import gates
from jaxfed.templates import mixture


class Tokens(nn.Module):
    """Tokens [B, L] -> [B, L, 3]: an embedding and a dense layer of several axes."""

    @nn.compact
    def __call__(self, x):
        return nn.DenseGeneral(3, name="dense")(nn.Embed(7, 4, name="embed")(x))


def images(model=None):
    model = nn.Conv(3, (3, 3), strides=2, name="conv") if model is None else model
    return nn.Sequential([model])


INPUTS = {
    "tokens": (Tokens(), jnp.arange(10).reshape(2, 5) % 7),
    "images": (images(), jax.random.normal(jax.random.key(9), (2, 6, 6, 2))),
}


def world(name):
    """(model, x, base, theta, a second adapter)."""
    model, x = INPUTS[name]
    params = model.init(jax.random.key(0), x)["params"]
    select = lowrank.Select(factors=".*", rank=2, up="random")
    base, theta = lowrank.split(params, lowrank.layers(model, x), select, jax.random.key(1))
    return model, x, base, theta, lowrank.beside(theta.factors, 1, jax.random.key(2), up="random")


@pytest.mark.parametrize("name", tiers.usual(INPUTS, "images"))
def test_given_weights_are_those_of_each_example(name):
    model, x, base, theta, own = world(name)
    w = jnp.array([[0.3, 0.9], [-0.2, 1.5]])
    found = lowrank.apply(model, base, gates.weighed(theta, own, w), x)
    for i in range(2):
        one = lowrank.apply(model, base, mixture(theta, own, w[i, 0], w[i, 1]), x[i : i + 1])
        np.testing.assert_allclose(found[i : i + 1], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", INPUTS)
def test_routers_of_zeros_weigh_both_by_one_half(name):
    model, x, base, theta, own = world(name)
    found = lowrank.apply(
        model, base, gates.routed(theta, own, gates.even_routers(theta.factors)), x
    )
    np.testing.assert_allclose(
        found, lowrank.apply(model, base, mixture(theta, own, 0.5, 0.5), x), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("side", "w"), [(0, (1.0, 0.0)), (1, (0.0, 1.0))])
def test_a_router_that_is_sure_leaves_one_adapter(side, w):
    """On positive inputs, a column of large numbers wins: the shared adapter alone, or the own."""
    model, x, base, theta, own = world("images")
    sure = {p: r.at[..., side].set(1e4) for p, r in gates.even_routers(theta.factors).items()}
    found = lowrank.apply(model, base, gates.routed(theta, own, sure), jnp.abs(x))
    expected = lowrank.apply(model, base, mixture(theta, own, *w), jnp.abs(x))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_router_weighs_every_token_by_its_own_vector():
    model, x, base, theta, own = world("tokens")
    del theta.factors["embed/embedding"], own["embed/embedding"]
    router = jax.random.normal(jax.random.key(5), (4, 2))
    found = lowrank.apply(model, base, gates.routed(theta, own, {"dense/kernel": router}), x)
    h = base["embed/embedding"][x]  # [B, L, 4]
    w = jax.nn.softmax(h @ router)
    f, g = theta.factors["dense/kernel"], own["dense/kernel"]
    expected = h @ base["dense/kernel"] + base["dense/bias"]
    expected += w[..., :1] * f.scale * (h @ f.a @ f.b) + w[..., 1:] * g.scale * (h @ g.a @ g.b)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Tied(nn.Module):
    """Tokens [B, L] -> logits [B, L, 7] by the table itself."""

    @nn.compact
    def __call__(self, x):
        table = nn.Embed(7, 4, name="embed")
        return table.attend(table(x))


def test_a_router_of_a_tied_table_is_refused_where_it_has_no_input():
    x = INPUTS["tokens"][1]
    params = Tied().init(jax.random.key(0), x)["params"]
    select = lowrank.Select(factors="embed", rank=2)
    base, theta = lowrank.split(params, lowrank.layers(Tied(), x), select, jax.random.key(1))
    own = lowrank.beside(theta.factors, 1, jax.random.key(2))
    mixed = gates.routed(theta, own, gates.even_routers(theta.factors))
    with pytest.raises(ValueError, match="this one calls attend"):
        lowrank.apply(Tied(), base, mixed, x)


def test_features_are_the_input_of_the_last_layer():
    model, x, base, theta, _ = world("tokens")
    f = theta.factors["embed/embedding"]
    expected = base["embed/embedding"][x] + f.scale * f.a[x] @ f.b
    found = lowrank.features(model, base, theta, x)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


class Nothing(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x * self.param("w", nn.initializers.ones, ())


def test_a_model_without_layers_has_no_features():
    with pytest.raises(ValueError, match="no dense layer"):
        lowrank.features(Nothing(), {"w": jnp.ones(())}, lowrank.Theta({}, {}), jnp.ones(2))
