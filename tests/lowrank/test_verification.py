"""Applied is merged for every selected layer, or the layer is refused by its path."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import lowrank, models, trees
from jaxfed.lowrank import Select

RANDOM = Select(factors=".", rank=2, alpha=3.0, up="random", above="allow")
X = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
IMAGES = np.random.default_rng(0).normal(size=(2, 6, 6, 3)).astype(np.float32)
STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}


class Half(nn.Dense):
    """Half of what a dense layer computes."""

    def __call__(self, x):
        return 0.5 * super().__call__(x)


class Doubled(nn.Dense):
    """A dense layer of its doubled input."""

    @nn.compact
    def __call__(self, x):
        return super().__call__(2 * x)


class Squared(nn.Dense):
    """A layer that squares its weight."""

    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.normal(), (4, 4)) ** 2


class Embedding(nn.Embed):
    """Its table is read by a method of its own."""

    def logits(self, x):
        return x @ self.embedding.T


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return jnp.tanh(nn.Dense(4, name="dense")(x)), None


class Blocks(nn.Module):
    """Three blocks, one after the other."""

    block: type[nn.Module] = Block

    @nn.compact
    def __call__(self, x):
        return nn.scan(self.block, length=3, **STACKED)(name="blocks")(x, None)[0]


class Model(nn.Module):
    """tanh of what a function of x returns, which makes its layers."""

    body: object

    @nn.compact
    def __call__(self, x):
        return jnp.tanh(self.body(x))


def at_axis(axis):
    options = {**STACKED, "variable_axes": {"params": axis}}
    layer = nn.vmap(nn.Dense, in_axes=None, out_axes=1, axis_size=3, **options)
    return Model(lambda x: layer(5, name="dense")(x))


def tied(read):
    def body(x):
        embed = Embedding(7, 4, name="embed")
        return read(embed, embed(jnp.argmax(x, -1)))

    return Model(body)


def by_half(*args, **kwargs):
    return 0.5 * jax.lax.dot_general(*args, **kwargs)


def drawn(model, x):
    """(base, theta), the weights by numpy, as to initialise is slow."""

    def split(key):
        params = model.init(key, x)["params"]
        return lowrank.split(params, lowrank.layers(model, x), RANDOM, key)

    rng, shapes = np.random.default_rng(0), jax.eval_shape(split, jax.random.key(0))
    return jax.tree.map(lambda w: rng.normal(size=w.shape).astype(w.dtype), shapes)


RIGHT = {
    "a subclass that scales": (Model(lambda x: Half(5)(x)), X),
    "a subclass that scales the input": (Model(lambda x: Doubled(5)(x)), X),
    "layers under scan": (Blocks(), X),
    "layers under scan and remat": (Blocks(nn.remat(Block)), X),
    "layers under vmap": (at_axis(0), X),
    "layers under remat": (Model(lambda x: nn.remat(nn.Dense)(5)(x)), X),
    "a product of the models' own": (
        Model(lambda x: nn.Conv(17, (3, 3), conv_general_dilated=models.conv.convolve)(x)),
        IMAGES,
    ),
    "a table that is read by attend": (tied(lambda embed, x: embed.attend(x)), X),
}


@pytest.mark.parametrize("name", RIGHT)
def test_applied_is_merged(name):
    model, x = RIGHT[name]
    base, theta = drawn(model, x)
    assert len(theta.factors) == 1
    lowrank.check(model, base, theta, x)

    @jax.jit
    def outputs(base, theta):
        whole = {"params": lowrank.merged(base, theta)}
        frozen = lowrank.apply(model, base, lowrank.Theta({}, {}), x)
        return lowrank.apply(model, base, theta, x), model.apply(whole, x), frozen

    found, expected, frozen = outputs(base, theta)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected - frozen).max() > 1e-3


REFUSED = {
    "a subclass that squares": (
        Model(lambda x: Squared(4)(x)),
        X,
        "^Squared_0/kernel: Squared computes something else than its weight times",
    ),
    "a product that scales": (
        Model(lambda x: nn.Dense(4, dot_general=by_half)(x)),
        X,
        "^Dense_0/kernel: Dense computes something else",
    ),
    "a table that is transposed": (
        tied(lambda embed, x: x @ embed.embedding.T),
        X,
        "^embed/embedding: the weight is also read outside its layer's call",
    ),
    "a table with a method of its own": (
        tied(lambda embed, x: embed.logits(x)),
        X,
        "^embed/embedding: the weight is also read outside",
    ),
    "layers stacked elsewhere": (at_axis(1), X, r"dense/kernel \(4, 3, 5\) stacks layers of"),
    "weight normalisation": (
        Model(lambda x: nn.WeightNorm(nn.Dense(4))(x)),
        X,
        "slashes divide paths",
    ),
    "a masked convolution": (
        Model(lambda x: nn.Conv(4, (3, 3), mask=jnp.ones((3, 3, 3, 4)))(x)),
        IMAGES,
        "matches none of",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_refused_by_path(name):
    model, x, match = REFUSED[name]
    with pytest.raises(ValueError, match=match):
        lowrank.check(model, *drawn(model, x), x)


def test_shapes_are_enough_to_check_a_large_model_without_its_weights():
    model = models.Encoder(
        vocabulary=50265, width=768, depth=2, heads=12, feedforward=3072, positions=514, classes=2
    )
    tokens = np.zeros((1, 32), np.int32)

    def split(key):
        params = model.init(key, tokens)["params"]
        select = Select(factors="query|value", rank=8)
        return lowrank.split(params, lowrank.layers(model, tokens), select, key)

    lowrank.check(model, *jax.eval_shape(split, jax.random.key(0)), tokens)


# Stacked layers: a pair of factors for each, as if they were apart.


def test_stacked_layers_have_a_pair_of_factors_each():
    params = Blocks().init(jax.random.key(0), X)["params"]
    layers = lowrank.layers(Blocks(), X)
    (f,) = lowrank.split(params, layers, RANDOM, jax.random.key(1))[1].factors.values()
    assert (f.a.shape, f.b.shape, f.rank, f.stack) == ((3, 4, 2), (3, 2, 4), 2, 1)
    assert (f.a[0] != f.a[1]).all()
    np.testing.assert_allclose(np.var(f.a), 1 / 12, rtol=0.6)  # the fan in is one layer's


def test_a_fraction_counts_every_layer_of_a_stack():
    x, model = X, Blocks()
    params = model.init(jax.random.key(0), x)["params"]
    select = Select(factors=".", fraction=0.9, above="allow")
    _, theta = lowrank.split(params, lowrank.layers(model, x), select, jax.random.key(1))
    assert trees.size(theta) == 48 <= 0.9 * trees.size(params) < 72  # 60 parameters


def test_the_algebra_of_a_stack_is_that_of_its_layers():
    _, theta = drawn(Blocks(), X)
    (path,) = theta.factors
    f = theta.factors[path]
    apart = [lowrank.Factors(a, b, f.scale) for a, b in zip(f.a, f.b, strict=True)]
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    close(lowrank.product(f), np.stack([lowrank.product(g) for g in apart]))
    close(lowrank.norm(f), np.linalg.norm([lowrank.norm(g) for g in apart]))
    cut, one = lowrank.truncate(f, 1), [lowrank.truncate(g, 1) for g in apart]
    close(lowrank.product(cut), np.stack([lowrank.product(g) for g in one]))
    both = lowrank.concat(f, cut)
    assert both.rank == 4
    close(lowrank.product(both), lowrank.product(f) + lowrank.product(cut))
    (more,) = lowrank.beside(theta.factors, 3, jax.random.key(2)).values()
    assert (more.a.shape, more.b.shape, more.rank) == ((3, 4, 3), (3, 3, 4), 3)
    assert trees.shapes(lowrank.fresh(theta, jax.random.key(3))) == trees.shapes(theta)


def test_the_layers_of_a_stack_drop_out_apart():
    layer = nn.vmap(nn.Dense, in_axes=None, out_axes=0, axis_size=2, **STACKED)
    model = Model(lambda x: layer(3, name="dense")(x))
    base, theta = drawn(model, X)
    alike = jax.tree.map(lambda x: jnp.broadcast_to(x[0], x.shape), theta)  # both the same factors
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[0], x.shape), base)
    dropped = jax.jit(partial(lowrank.apply, model, same, alike, X, dropout=0.5))
    first, second = dropped(key=jax.random.key(0))
    assert (first != second).any()
    first, second = dropped(key=None)
    np.testing.assert_array_equal(first, second)
