"""Low-rank factors: the layer rules against merged weights, the algebra, and what is selected."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxprs import shapes

from jaxfed import lowrank, models, trees
from jaxfed.lowrank import Factors, Select, Theta

RANDOM = Select(factors=".*", rank=2, alpha=3.0, up="random", above="allow")


class Tied(nn.Module):
    """An embedding and the same weights as output layer."""

    @nn.compact
    def __call__(self, tokens):
        embed = nn.Embed(11, 5)
        return embed.attend(jnp.tanh(embed(tokens)))


class Inside(nn.Module):
    """One layer, between others that carry no factors."""

    layer: nn.Module

    @nn.compact
    def __call__(self, x):
        return jnp.tanh(self.layer(jnp.sin(x)))


IMAGE, SEQUENCE = (2, 7, 8, 3), (2, 6, 8)

LAYERS = {
    "dense": (lambda: nn.Dense(5), (4, 3)),
    "dense on a sequence": (lambda: nn.Dense(5, use_bias=False), SEQUENCE),
    "dense general": (lambda: nn.DenseGeneral((2, 3)), SEQUENCE),
    "dense general, two axes": (lambda: nn.DenseGeneral(5, axis=(-2, -1)), SEQUENCE),
    "dense general, axes in disorder": (lambda: nn.DenseGeneral((5, 2), axis=(-1, 1)), IMAGE),
    "dense general, another axis": (lambda: nn.DenseGeneral(5, axis=1), IMAGE),
    "attention": (lambda: nn.MultiHeadDotProductAttention(num_heads=2), SEQUENCE),
    "conv 3 x 3": (lambda: nn.Conv(5, (3, 3)), IMAGE),
    "conv 3 x 3, stride 2": (lambda: nn.Conv(5, (3, 3), strides=2, padding=1), IMAGE),
    "conv 1 x 1": (lambda: nn.Conv(5, (1, 1)), IMAGE),
    "conv 1 x 1, stride 2": (lambda: nn.Conv(5, (1, 1), strides=2, padding=0), IMAGE),
    "conv 5 x 2, valid": (lambda: nn.Conv(5, (5, 2), padding="VALID"), IMAGE),
    "conv, dilated": (lambda: nn.Conv(5, (3, 3), kernel_dilation=2), IMAGE),
    "conv, circular": (lambda: nn.Conv(5, (3, 3), padding="CIRCULAR"), IMAGE),
    "conv 1-d": (lambda: nn.Conv(5, (3,)), SEQUENCE),
    "conv 1-d, causal": (lambda: nn.Conv(5, 3, strides=2, padding="CAUSAL"), SEQUENCE),
    "conv 3-d": (lambda: nn.Conv(2, (2, 2, 2)), (1, 3, 4, 3, 2)),
    "conv as the models call it": (
        lambda: nn.Conv(17, (3, 3), conv_general_dilated=models.conv.convolve),
        (2, 6, 6, 16),
    ),
}


def double(tree):
    return jax.tree.map(lambda x: x.astype(float), tree)


def with_factors(model, x, select=RANDOM):
    """(base, theta, parameters before); the weights are drawn here, as to initialise is slow."""
    rng, shapes = np.random.default_rng(0), jax.eval_shape(model.init, jax.random.key(0), x)
    params = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape)), shapes["params"])
    layers = lowrank.layers(model, x)
    return *double(lowrank.split(params, layers, select, jax.random.key(1))), params


def assert_apply_is_merged(model, x):
    base, theta, params = with_factors(model, x)
    found = jax.jit(partial(lowrank.apply, model))(base, theta, x)
    run = jax.jit(lambda params: model.apply({"params": params}, x))
    merged, without = run(lowrank.merged(base, theta)), run(params)
    np.testing.assert_allclose(found, merged, rtol=1e-10, atol=1e-12)
    assert jnp.abs(merged - without).max() > 1e-3
    return theta


@pytest.mark.parametrize("kind", LAYERS)
def test_apply_is_the_model_with_merged_weights(x64, kind):
    layer, shape = LAYERS[kind]
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    theta = assert_apply_is_merged(Inside(layer()), x)
    assert len(theta.factors) == (4 if kind == "attention" else 1)


def test_the_gradient_in_the_factors_is_that_through_merged_weights(x64):
    model = Inside(nn.Conv(5, (3, 3), strides=2))
    x = jnp.asarray(np.random.default_rng(0).normal(size=IMAGE))
    base, theta, _ = with_factors(model, x)

    def through(apply):
        return jax.grad(lambda theta: jnp.sum(jnp.sin(apply(theta))))(theta)

    found = through(lambda theta: lowrank.apply(model, base, theta, x))
    merged = through(lambda t: model.apply({"params": lowrank.merged(base, t)}, x))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-12), found, merged)


def test_an_embedding_and_its_attend_share_their_factors(x64):
    theta = assert_apply_is_merged(Tied(), jnp.array([[1, 4, 10], [0, 4, 4]]))
    assert theta.factors["Embed_0/embedding"].a.shape == (11, 2)


def test_a_model_that_is_one_layer_carries_factors(x64):
    assert_apply_is_merged(nn.Dense(5), jnp.ones((4, 3)))


def test_a_model_that_is_one_convolution_is_refused():
    """Its own low-rank term could not be told from it."""
    with pytest.raises(ValueError, match=r"matches none of"):
        with_factors(nn.Conv(5, (3, 3)), jnp.ones(IMAGE))


def test_a_grouped_convolution_carries_none():
    model = Inside(nn.Conv(6, (3, 3), feature_group_count=3))
    assert lowrank.layers(model, jnp.ones(IMAGE)) == {}


def test_every_layer_of_the_models_carries_factors(x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 4, 3)))
    model = models.ResNet((1, 1), 3, widths=(4, 8), groups=2)
    assert set(assert_apply_is_merged(model, x).factors) == {
        "stem/kernel",
        "head/kernel",
        *(f"layer{i}_0/conv_{n}/kernel" for i in (1, 2) for n in (0, 1)),
        "layer2_0/conv_down/kernel",
    }


def test_trained_weights_take_the_place_of_frozen_ones():
    model, x = models.MLP((4,), 3), jnp.ones((2, 5))
    base, theta, params = with_factors(model, x, Select(full="head"))
    assert sorted(base) == ["dense_0/bias", "dense_0/kernel"]
    assert sorted(theta.full) == ["head/bias", "head/kernel"]
    moved = theta._replace(full=jax.tree.map(lambda w: w + 1, theta.full))
    params["head"] = jax.tree.map(lambda w: w + 1, params["head"])
    np.testing.assert_allclose(
        lowrank.apply(model, base, moved, x), model.apply({"params": params}, x), rtol=1e-6
    )


def test_dropout_falls_on_the_low_rank_path_alone_and_keeps_its_mean():
    model, x = models.MLP((), 3), jnp.ones((1, 5))
    base, theta, params = with_factors(model, x)
    keys = jax.random.split(jax.random.key(0), 4000)
    dropped = partial(lowrank.apply, model, base, theta, x, dropout=0.25)
    outputs = jax.vmap(lambda key: dropped(key=key))(keys)[:, 0]
    outputs = outputs - model.apply({"params": params}, x)
    f = theta.factors["head/kernel"]
    h = (x @ f.a * f.scale / 0.75)[0]  # [2]
    possible = jnp.array([[i, j] for i in (0, 1) for j in (0, 1)]) * h @ f.b  # [4, 3]
    distance = jnp.abs(outputs[:, None] - possible).max(-1).min(-1)
    assert distance.max() < 1e-5
    spread = outputs.std(0) / np.sqrt(len(keys))
    assert (jnp.abs(outputs.mean(0) - 0.75 * possible[3]) < 5 * spread).all()
    np.testing.assert_array_equal(dropped(), lowrank.apply(model, base, theta, x))


# Algebra.

# [in, in, out]; a few only, because JAX compiles anew for each shape
dimensions = st.sampled_from([(1, 1, 1), (4, 1, 2), (2, 3, 5), (1, 2, 6)])
ranks = st.sampled_from([1, 3])
scales = st.floats(0.1, 5.0)
seeds = st.integers(0, 10**6)
algebra = settings(
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # x64 may stay on
)


def random_factors(seed, size, rank, scale=1.0):
    """a [in, in, r] and b [r, out], as numpy arrays."""
    rng = np.random.default_rng(seed)
    return Factors(rng.normal(size=(*size[:2], rank)), rng.normal(size=(rank, size[2])), scale)


def product(f):
    """The definition, in numpy."""
    return f.scale * np.einsum("ijr,ro->ijo", f.a, f.b)


close = partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-8)


@pytest.mark.quick
@pytest.mark.usefixtures("x64")
@algebra
@given(seeds, dimensions, ranks, scales)
def test_product_is_scale_times_a_b(seed, size, rank, scale):
    f = random_factors(seed, size, rank, scale)
    close(lowrank.product(f), product(f))
    assert f.rank == rank


@pytest.mark.quick
@pytest.mark.usefixtures("x64")
@algebra
@given(seeds, dimensions, ranks, scales)
def test_norm_is_that_of_the_product(seed, size, rank, scale):
    f = random_factors(seed, size, rank, scale)
    close(lowrank.norm(f), np.linalg.norm(product(f)))


@pytest.mark.quick
@pytest.mark.usefixtures("x64")
@algebra
@given(seeds, dimensions, ranks, ranks, scales, scales)
def test_concat_adds_products_and_ranks(seed, size, first, second, s, t):
    f = random_factors(seed, size, first, s)
    g = random_factors(seed + 1, size, second, t)
    both = lowrank.concat(f, g)
    assert both.rank == first + second
    close(lowrank.product(both), product(f) + product(g))


@pytest.mark.quick
@pytest.mark.usefixtures("x64")
@algebra
@given(seeds, dimensions, ranks, st.integers(0, 5), scales)
def test_truncate_keeps_the_leading_components(seed, size, rank, kept, scale):
    f = random_factors(seed, size, rank, scale)
    cut = lowrank.truncate(f, kept)
    close(cut.a, np.where(np.arange(rank) < kept, f.a, 0))
    close(cut.b, np.where(np.arange(rank)[:, None] < kept, f.b, 0))
    close(lowrank.product(cut), product(Factors(f.a[..., :kept], f.b[:kept], scale)))
    close(lowrank.truncate(cut, kept + 1).b, cut.b)


@pytest.mark.quick
@pytest.mark.usefixtures("x64")
@algebra
@given(seeds, dimensions, ranks, scales)
def test_merging_adds_the_product_and_leaves_the_rest(seed, size, rank, scale):
    f = random_factors(seed, size, rank, scale)
    base = {"w": np.random.default_rng(seed).normal(size=size), "other": np.ones(3)}
    merged = lowrank.merge(base, Theta({}, {"w": f}))
    close(merged["w"], base["w"] + product(f))
    assert merged["other"] is base["other"]


@pytest.mark.usefixtures("x64")
@algebra
@given(seeds, dimensions, st.sampled_from([1, 2, 6]), scales)
def test_from_product_is_the_best_approximation_of_its_rank(seed, size, rank, scale):
    """Eckart and Young: what is missed is the tail of the singular values, no more."""
    weight = np.random.default_rng(seed).normal(size=size)
    sigma = np.linalg.svd(weight.reshape(-1, size[2]), compute_uv=False)
    f = lowrank.from_product(weight, 2, rank, scale)
    assert (f.a.shape, f.b.shape) == ((*size[:2], rank), (rank, size[2]))
    missed = np.linalg.norm(weight - np.asarray(lowrank.product(f)))
    close(missed, np.sqrt(np.sum(sigma[rank:] ** 2)))
    a = np.reshape(f.a, (-1, f.rank))
    close(a.T @ a, np.asarray(f.b @ f.b.T), atol=1e-7)  # the two sides share the weight equally


@pytest.mark.quick
@pytest.mark.usefixtures("x64")
@algebra
@given(seeds, dimensions, ranks, scales)
def test_from_product_of_a_product_gives_it_back(seed, size, rank, scale):
    weight = product(random_factors(seed, size, rank))
    close(lowrank.product(lowrank.from_product(weight, 2, rank, scale)), weight)


@pytest.mark.parametrize(
    "optimizer",
    [optax.sgd(0.01), optax.sgd(0.01, momentum=0.9), optax.adam(0.01), optax.adamw(0.01)],
    ids=["sgd", "momentum", "adam", "adamw"],
)
def test_truncated_components_stay_zero_under_training(optimizer):
    model, x = models.MLP((6,), 3), jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)))
    base, theta, _ = with_factors(model, x, Select(factors="kernel", rank=3, up="random"))
    cut = partial(jax.tree.map, lambda f: lowrank.truncate(f, 1), is_leaf=_is_factors)
    begun = cut(theta)

    def loss(theta):
        return jnp.mean(lowrank.apply(model, base, theta, x) ** 2)

    @jax.jit
    def step(theta, state):
        updates, state = optimizer.update(jax.grad(loss)(theta), state, theta)
        return optax.apply_updates(theta, updates), state

    trained, state = begun, optimizer.init(begun)
    for _ in range(5):
        trained, state = step(trained, state)
    for p, f in trained.factors.items():
        assert not f.a[..., 1:].any()
        assert not f.b[1:].any()
        assert (f.b[0] != begun.factors[p].b[0]).all()


def _is_factors(x):
    return isinstance(x, Factors)


def test_fresh_factors_have_the_shapes_of_the_old_and_a_product_of_zero():
    model, x = models.MLP((6,), 3), jnp.ones((1, 5))
    _, theta, _ = with_factors(model, x, Select(factors="kernel", full="bias", rank=2, alpha=4.0))
    new = lowrank.fresh(theta, jax.random.key(7))
    assert new.full is theta.full
    assert trees.shapes(new) == trees.shapes(theta)
    for p, f in new.factors.items():
        assert not lowrank.product(f).any()
        assert (f.a != theta.factors[p].a).all()
        assert f.scale == 2.0


# Selection.

MLP, ROW = models.MLP((16,), 4), jnp.ones((1, 8))


def chosen(select, model=MLP, x=ROW, seed=0):
    params = model.init(jax.random.key(0), x)["params"]
    return lowrank.split(params, lowrank.layers(model, x), select, jax.random.key(seed))


def test_every_path_is_in_one_place_and_factors_win_over_full():
    base, theta = chosen(Select(factors="dense_0", full=".*", rank=2))
    assert list(theta.factors) == list(base) == ["dense_0/kernel"]
    assert sorted(theta.full) == ["dense_0/bias", "head/bias", "head/kernel"]


def test_what_is_not_selected_is_frozen():
    base, theta = chosen(Select(factors="head/kernel$", rank=2))
    assert set(base) == {"dense_0/kernel", "dense_0/bias", "head/kernel", "head/bias"}
    assert theta.full == {}


def test_everything_is_everything():
    base, theta = chosen(lowrank.everything)
    assert base == {}
    assert len(theta.full) == 4
    assert theta.factors == {}


def test_ranks_per_path_take_the_first_pattern_that_matches():
    _, theta = chosen(Select(factors="kernel", rank={"head": 1, "kernel": 5}))
    assert {p: f.rank for p, f in theta.factors.items()} == {"dense_0/kernel": 5, "head/kernel": 1}


def test_the_scale_is_alpha_over_rank_and_one_without_alpha():
    _, theta = chosen(Select(factors="kernel", rank={"head": 1, "kernel": 4}, alpha=6.0))
    assert [f.scale for f in theta.factors.values()] == [1.5, 6.0]
    _, theta = chosen(Select(factors="kernel", rank=3))
    assert [f.scale for f in theta.factors.values()] == [1.0, 1.0]


@given(st.floats(0.3, 1.0))
@settings(deadline=None, max_examples=30)
def test_a_fraction_is_the_most_that_fits_in_it(fraction):
    total = 8 * 16 + 16 + 16 * 4 + 4

    def trained(rank):
        return trees.size(chosen(Select(factors="dense", full="bias", rank=rank, above="allow"))[1])

    select = Select(factors="dense", full="bias", fraction=fraction, above="allow")
    rank = chosen(select)[1].factors["dense_0/kernel"].rank
    assert trained(rank) <= fraction * total < trained(rank + 1)


def test_fine_tuning_starts_at_the_model_and_from_scratch_at_the_factors():
    params = MLP.init(jax.random.key(0), ROW)["params"]
    base, theta = chosen(Select(factors="kernel", rank=2))
    np.testing.assert_array_equal(
        lowrank.apply(MLP, base, theta, ROW), MLP.apply({"params": params}, ROW)
    )
    assert all(f.a.all() for f in theta.factors.values())
    base, theta = chosen(Select(factors="kernel", full="bias", rank=2, base="zero", up="random"))
    assert not any(w.any() for w in base.values())
    assert all(f.a.all() and f.b.all() for f in theta.factors.values())


def test_factors_are_uniform_with_the_authors_bound():
    """kaiming_uniform(a=sqrt 5): variance 1 / (3 fan in), for a convolution k k C and then r."""
    model, x = Inside(nn.Conv(64, (3, 3))), jnp.ones((1, 4, 4, 32))
    _, theta = chosen(Select(factors=".*", rank=32, up="random"), model, x)
    (f,) = theta.factors.values()
    for part, fan_in in ((f.a, 3 * 3 * 32), (f.b, 32)):
        assert jnp.abs(part).max() <= 1 / np.sqrt(fan_in)
        np.testing.assert_allclose(jnp.var(part), 1 / (3 * fan_in), rtol=0.1)


def test_factors_of_a_path_depend_on_the_seed_and_the_path_alone():
    _, one = chosen(Select(factors="kernel", rank=2))
    _, same = chosen(Select(factors="dense", rank=2))
    _, other = chosen(Select(factors="kernel", rank=2), seed=1)
    path = "dense_0/kernel"
    np.testing.assert_array_equal(one.factors[path].a, same.factors[path].a)
    assert (one.factors[path].a != other.factors[path].a).all()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("select", "match"),
    [
        ({"factors": "conv", "rank": 2}, r"'conv' matches none of: dense_0/kernel, head/kernel"),
        ({"full": "norm"}, r"'norm' matches none of: dense_0/kernel, dense_0/bias, head/kernel"),
        ({"factors": "kernel", "rank": 5}, r"head/kernel \(5 > 4\)"),
        ({"factors": "kernel", "rank": {"head": 1}}, r"no rank is given for dense_0/kernel"),
        ({"factors": "kernel", "fraction": 0.01}, r"use at least 0\.2075"),
    ],
)
def test_a_selection_that_does_not_fit_says_what_would(select, match):
    with pytest.raises(ValueError, match=match):
        chosen(Select(**select))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "nothing is trained"),
        ({"factors": "kernel"}, "a rank or a fraction"),
        ({"factors": "kernel", "rank": 1, "fraction": 0.5}, "a rank or a fraction"),
        ({"factors": "kernel", "fraction": 1.5}, r"fraction=1\.5"),
        ({"factors": "kernel", "rank": 1, "base": "zero"}, "no gradient leaves"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        Select(**options)


# The counts of the authors' ResNets: convolutions of the four stages in factors, the rest in full.


def counted(model, select):
    """(parameters of the model, parameters trained), from shapes alone."""
    x = jnp.zeros((1, 32, 32, 3))

    def split(key):
        params = model.init(key, x)["params"]
        return lowrank.split(params, lowrank.layers(model, x), select, key)

    base, theta = jax.eval_shape(split, jax.random.key(0))
    return trees.size(base) + trees.size(theta.full), trees.size(theta)


def loru(**options):
    return Select(
        factors="^layer.*conv",
        full="stem|norm|head",
        alpha=64.0,
        base="zero",
        up="random",
        above="allow",
        **options,
    )


@pytest.mark.parametrize(
    ("model", "rank", "whole", "share"),
    [
        (models.resnet18(100), 128, "11.220", "41.3%"),
        (models.resnet18(100), 64, "11.220", "20.9%"),
        (models.resnet10(10), 128, "4.903", "43.4%"),
    ],
)
def test_resnets_train_the_share_that_the_paper_states(model, rank, whole, share):
    total, trained = counted(model, loru(rank=rank))
    assert (f"{total / 1e6:.3f}", f"{trained / total:.1%}") == (whole, share)


def test_resnet18_of_rank_128_sends_what_the_authors_code_sends():
    _, trained = counted(models.resnet18(100), loru(rank=128))
    assert trained == 4_633_764
    assert counted(models.resnet18(100), loru(fraction=0.413))[1] == 4_633_764


def _adapters(rng, stack=()):
    """Two of unequal ranks at a dense and a 3 x 3 weight."""
    for rank, scale in ((2, 0.5), (3, -2.0)):
        yield {
            path: Factors(
                jnp.asarray(rng.normal(size=(*stack, *inputs, rank))),
                jnp.asarray(rng.normal(size=(*stack, rank, *outputs))),
                scale,
                len(stack),
            )
            for path, inputs, outputs in (("dense", (7,), (5,)), ("conv", (3, 3, 2), (4,)))
        }


@pytest.mark.parametrize("stack", [(), (2,)])
def test_the_cosine_of_two_adapters_is_that_of_their_products(x64, stack):
    first, second = _adapters(np.random.default_rng(0), stack)
    p, q = (
        np.concatenate([np.ravel(lowrank.product(f)) for f in factors.values()])
        for factors in (first, second)
    )
    expected = p @ q / np.linalg.norm(p) / np.linalg.norm(q)
    np.testing.assert_allclose(lowrank.cosine(first, second), expected, rtol=1e-12)
    dense = lowrank.product(first["dense"]), lowrank.product(second["dense"])
    found = lowrank.inner(first["dense"], second["dense"])
    np.testing.assert_allclose(found, np.sum(dense[0] * dense[1]), rtol=1e-12)


def test_adapters_that_cancel_have_cosine_minus_one_and_one_that_is_zero_has_zero(x64):
    first, _ = _adapters(np.random.default_rng(1))
    against, none = ({p: replace(f, b=c * f.b) for p, f in first.items()} for c in (-3.0, 0.0))
    np.testing.assert_allclose(lowrank.cosine(first, against), -1, rtol=1e-12)
    assert lowrank.cosine(first, none) == 0


def test_a_cosine_forms_no_product():
    first, second = _adapters(np.random.default_rng(0))
    within = set(shapes(jax.make_jaxpr(lowrank.cosine)(first, second).jaxpr))
    assert not within & {(7, 5), (5, 7), (18, 4), (3, 3, 2, 4), (4, 18)}
    assert {(2, 3), (2, 2), (3, 3)} <= within


def test_principal_factors_are_the_svd_and_leave_the_model_as_it_is(x64):
    rng = np.random.default_rng(0)
    f = Factors(*(jnp.asarray(rng.normal(size=s)) for s in ((3, 2, 2), (2, 5))), 0.5)
    base = {"w": jnp.asarray(rng.normal(size=(3, 2, 5)))}
    rest, theta = lowrank.principal(base, Theta({}, {"w": f}))
    np.testing.assert_allclose(lowrank.merge(rest, theta)["w"], base["w"], rtol=1e-10)
    sigma = np.linalg.svd(base["w"].reshape(6, 5), compute_uv=False)
    left = np.linalg.svd(rest["w"].reshape(6, 5), compute_uv=False)
    np.testing.assert_allclose(left[:3], sigma[2:], rtol=1e-8)
    a, b = theta.factors["w"].a.reshape(6, 2), theta.factors["w"].b
    np.testing.assert_allclose(a.T @ a, b @ b.T, atol=1e-10)
