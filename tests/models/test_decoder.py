"""The decoder by itself; test_decoders of pretrained checks it against transformers."""

import re
from functools import partial

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import lowrank, models

TEXTS = np.array([[5, 6, 7, 5, 9, 4], [8, 5, 2, 1, 3, 10]])
VARIANTS = {
    "gpt2": models.Decoder(12, 8, 2, 2, 16, 16, "gpt2", bias="all", activation="gelu_tanh"),
    "llama": models.Decoder(12, 8, 2, 4, 10, 16, "llama", groups=2, tied=False, window=4),
}
each_kind = pytest.mark.parametrize("kind", VARIANTS)
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def drawn(model):
    """Parameters {path: array}, none of them zero or one throughout."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), TEXTS)["params"]
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    rng = np.random.default_rng(0)
    return {
        p: rng.normal(p.endswith("scale"), 0.5, s.shape).astype(s.dtype) for p, s in flat.items()
    }


@partial(quickly, static_argnames=("model", "method"))
def run(model, flat, *args, method="__call__"):
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    return model.apply({"params": params}, *args, method=method)


@each_kind
def test_a_token_sees_itself_and_what_came_before_it(kind):
    model = VARIANTS[kind]
    flat, other = drawn(model), TEXTS.copy()
    other[:, 3] = 11
    one, two = run(model, flat, TEXTS), run(model, flat, other)
    np.testing.assert_allclose(one[:, :3], two[:, :3], atol=1e-5)
    assert np.abs(one - two)[:, 3:].max(axis=(1, 2)).min() > 1e-3


@each_kind
def test_texts_packed_into_a_row_are_texts_apart(kind):
    """With padding before, between and after them."""
    model = VARIANTS[kind]
    flat = drawn(model)
    row = np.array([[0, 5, 6, 7, 8, 5, 0, 9, 4, 0]])
    segments = np.array([[0, 1, 1, 1, 2, 2, 0, 3, 3, 0]])
    packed = run(model, flat, row, segments)[0]
    for number, text in ((1, [5, 6, 7]), (2, [8, 5]), (3, [9, 4])):
        alone = run(model, flat, np.array([text + [0] * (4 - len(text))]))[0, : len(text)]
        np.testing.assert_allclose(packed[segments[0] == number], alone, atol=1e-4)


@each_kind
def test_token_by_token_with_a_cache_is_all_at_once(kind):
    model = VARIANTS[kind]
    flat = drawn(model)
    expected = run(model, flat, TEXTS)
    cache, ones = model.cache(2, 6), np.ones((2, 6), np.int32)
    places = np.tile(np.arange(6), (2, 1))
    for begin, end in ((0, 3), (3, 4), (4, 5), (5, 6)):
        part = (x[:, begin:end] for x in (TEXTS, places, ones))
        read = np.full(2, end - begin - 1)
        found, cache = run(model, flat, *part, cache, begin, read, method="extend")
        np.testing.assert_allclose(found, expected[:, end - 1], atol=1e-4)


def adapted(model):
    """(base, theta): factors beside every layer and the table that may be the head."""
    select = lowrank.Select(factors="layers.*kernel|token", full="norm", rank=2, up="random")
    key = jax.random.key(1, impl="rbg")
    layers = lowrank.layers(model, TEXTS)
    return quickly(lambda flat: lowrank.split(flat, layers, select, key))(drawn(model))


@each_kind
def test_factors_beside_stacked_layers_are_the_merged_weights(kind):
    model = VARIANTS[kind]
    base, theta = adapted(model)
    assert len(theta.factors) == {"gpt2": 6, "llama": 7}[kind] + 1
    expected = run(model, {**lowrank.merge(base, theta), **theta.full}, TEXTS)
    found = quickly(partial(lowrank.apply, model))(base, theta, TEXTS)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_layers_computed_again_have_the_same_gradient():
    model = VARIANTS["llama"]
    base, theta = adapted(model)

    def loss(theta, model):
        return jnp.mean(lowrank.apply(model, base, theta, TEXTS) ** 2)

    plain, again = (
        quickly(jax.grad(loss), static_argnums=1)(theta, m)
        for m in (model, model.clone(remat=True))
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), plain, again)


def test_no_client_has_a_copy_of_a_frozen_weight():
    model = VARIANTS["llama"]
    select = lowrank.Select(factors="query|value", rank=2)

    def shapes(key):
        params = model.init(key, TEXTS)["params"]
        return lowrank.split(params, lowrank.layers(model, TEXTS), select, key)

    base, theta = jax.eval_shape(shapes, jax.random.key(0))
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((5, *x.shape), x.dtype), theta)
    one = TEXTS[:1]  # of 6 tokens, where no weight has a side of 6
    grad = jax.grad(lambda theta, base: lowrank.apply(model, base, theta, one).sum())
    text = str(jax.make_jaxpr(jax.vmap(grad, (0, None)))(many, base))
    assert not re.search(r"\[5,(2,)?(8,8|8,4|8,10|10,8|12,8|8,12)\]", text)


def test_a_narrow_base_is_stored_narrow_and_summed_wide():
    """bfloat16 has 8 bits of mantissa; attention's result is the one sum that it rounds."""
    for model in VARIANTS.values():
        narrow = model.clone(dtype=jnp.bfloat16)
        flat = drawn(narrow)
        wide = {p for p, w in flat.items() if w.dtype == jnp.float32}
        assert wide == {p for p in flat if "norm" in p or "position" in p}
        exact = run(model, {p: w.astype(np.float32) for p, w in flat.items()}, TEXTS)
        found = run(narrow, flat, TEXTS)
        assert found.dtype == jnp.float32
        assert 0 < np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


@pytest.mark.full
def test_narrow_activations_round_no_sum_and_no_gradient():
    for model in VARIANTS.values():
        base, theta = adapted(model)
        narrow = model.clone(compute=jnp.bfloat16)

        def loss(theta, base, model):
            return jnp.mean(jnp.sin(lowrank.apply(model, base, theta, TEXTS)))

        (value, found), (exact, expected) = (
            quickly(jax.value_and_grad(loss), static_argnums=2)(theta, base, m)
            for m in (narrow, model)
        )
        assert value.dtype == jnp.float32
        assert 0 < abs(value - exact) < 2e-3
        for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
            assert a.dtype == jnp.float32
            assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b) + 1e-4
        text = str(jax.make_jaxpr(partial(lowrank.apply, narrow))(base, theta, TEXTS))
        assert "bf16[2,6,8]" in text  # activations [B, L, d]
        assert not re.search(r"bf16\S* = (reduce_sum|exp|rsqrt)", text)


WRONG = {
    "activations": ({"compute": jnp.int8}, "compute=.*such as jnp.bfloat16"),
    "heads": ({"heads": 3}, "3 heads do not divide a width of 8"),
    "groups": ({"groups": 3}, "3 groups do not divide 4 heads"),
    "an odd head": ({"head_width": 3}, "heads of width 3 cannot be turned in pairs"),
    "a kind": ({"kind": "t5"}, "kind='t5'; use one of"),
    "a window": ({"window": 0}, "window=0; use at least 1"),
    "positions": ({"positions": 5}, "texts of 6 tokens do not fit the model's 5 positions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_decoder_that_cannot_be_is_an_error(name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(VARIANTS["llama"].clone(**options).init, jax.random.key(0), TEXTS)
