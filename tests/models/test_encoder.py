"""The encoder by itself; against other implementations it is checked in test_pretrained."""

import re
from functools import partial

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from jaxfed import lowrank, models, trees
from jaxfed.models.encoder import Layer
from jaxfed.pretrained import layouts

PAD = 3
TEXTS = np.array([[5, 6, 7, 5, 9, 4], [8, 5, PAD, PAD, PAD, PAD], [4, 9, 9, 6, PAD, PAD]])


def tiny(depth=2, **options):
    return models.Encoder(12, 8, depth, 2, 16, 16, 3, **{"types": 2, "pad": PAD, **options})


VARIANTS = {
    "bert": tiny(),
    "roberta": tiny(counted=True, head="dense", types=1),
    "plain": tiny(pad=None, head="linear", types=0, activation="gelu_tanh"),
    "scanned": tiny(depth=3, scanned=True),
}


def drawn(model, tokens=TEXTS):
    """Parameters {path: array}, none of them zero or one throughout."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    rng = np.random.default_rng(0)
    return {
        p: rng.normal(p.endswith("scale"), 0.5, s.shape).astype(s.dtype) for p, s in flat.items()
    }


quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiled in half the time; what runs is tiny."""


@partial(quickly, static_argnames=("model", "train", "method"))
def run(model, flat, *args, **options):
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    return model.apply({"params": params}, *args, **options)


def split(model, select, run=quickly):
    """(base, theta) of the drawn parameters; their shapes with run=shaped."""
    layers = lowrank.layers(model, TEXTS)
    key = jax.random.key(1, impl="rbg")  # compiles fast
    return run(lambda flat: lowrank.split(flat, layers, select, key))(drawn(model))


def shaped(function):
    return partial(jax.eval_shape, function)


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_are_the_head_of_the_first_hidden_state(name):
    """The logits compute the last layer at one position only."""
    model = VARIANTS[name]
    flat = drawn(model)
    x = np.asarray(run(model, flat, TEXTS, method="hidden"))[:, 0]
    if name != "plain":
        hidden = "head_dense" if name == "roberta" else "pooler"
        x = np.tanh(x @ flat[f"{hidden}/kernel"] + flat[f"{hidden}/bias"])
    expected = x @ flat["head/kernel"] + flat["head/bias"]
    np.testing.assert_allclose(run(model, flat, TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_padding_changes_nothing(name):
    model = VARIANTS[name]
    flat = drawn(model)
    wider = np.pad(TEXTS, ((0, 0), (0, 4)), constant_values=PAD)
    np.testing.assert_allclose(
        run(model, flat, wider), run(model, flat, TEXTS), rtol=1e-5, atol=1e-5
    )


def test_without_a_padding_token_every_token_counts():
    model = VARIANTS["plain"]
    flat = drawn(model)
    wider = np.pad(TEXTS, ((0, 0), (0, 4)), constant_values=PAD)
    difference = np.abs(run(model, flat, wider) - run(model, flat, TEXTS))
    assert np.all(np.max(difference, axis=1) > 1e-3)


def test_counted_positions_number_the_real_tokens():
    """From pad + 1; padding, wherever it is, has position `pad` and moves nothing."""
    model = VARIANTS["roberta"]
    flat = drawn(model)
    table = flat["position/embedding"]
    shifted = {**flat, "position/embedding": np.roll(table, 1, axis=0)}
    other = tiny(counted=True, head="dense", types=1, pad=PAD + 1)
    tokens = np.array([[5, 6, 7, 8, 9, 5]])
    np.testing.assert_allclose(run(other, shifted, tokens), run(model, flat, tokens), atol=1e-6)
    apart = np.array([[5, 6, PAD, 7, 8, PAD, 9, 5]])
    np.testing.assert_allclose(run(model, flat, apart), run(model, flat, tokens), atol=1e-5)


@pytest.mark.parametrize(("name", "most"), [("bert", 16), ("roberta", 16 - PAD - 1)])
def test_a_text_longer_than_the_positions_is_an_error(name, most):
    fits = partial(jax.eval_shape, VARIANTS[name].init, jax.random.key(0))
    fits(jnp.zeros((1, most), jnp.int32))
    with pytest.raises(ValueError, match=f"{most + 1} tokens .* {most} positions"):
        fits(jnp.zeros((1, most + 1), jnp.int32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "3 heads do not divide a width of 8"),
        ({"counted": True, "pad": None}, "give `pad`"),
    ],
)
def test_an_encoder_that_cannot_be_is_an_error(options, message):
    model = VARIANTS["bert"].clone(**options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), TEXTS)


def test_types_are_zero_unless_given():
    model = VARIANTS["bert"]
    flat = drawn(model)
    plain = run(model, flat, TEXTS)
    np.testing.assert_allclose(run(model, flat, TEXTS, np.zeros_like(TEXTS)), plain, rtol=1e-5)
    assert np.max(np.abs(run(model, flat, TEXTS, np.ones_like(TEXTS)) - plain)) > 1e-3


@pytest.mark.parametrize("name", ["bert", "scanned"])
def test_dropout_acts_in_training_only(name):
    model = VARIANTS[name].clone(dropout=0.3)
    flat = drawn(model)
    plain = run(model, flat, TEXTS)
    np.testing.assert_allclose(run(VARIANTS[name], flat, TEXTS), plain, rtol=1e-5)
    first, second = (
        run(model, flat, TEXTS, train=True, rngs={"dropout": jax.random.key(i)}) for i in (0, 1)
    )
    assert np.max(np.abs(first - plain)) > 1e-3
    assert np.max(np.abs(first - second)) > 1e-3


@pytest.mark.parametrize("name", tiers.usual(VARIANTS, "bert", "scanned"))
def test_factors_beside_any_dense_layer_are_the_merged_weights(name):
    model = VARIANTS[name]
    select = lowrank.Select(factors="layer.*kernel|token", full="^head", rank=2, up="random")
    base, theta = split(model, select)
    expected = run(model, {**lowrank.merge(base, theta), **theta.full}, TEXTS)
    found = quickly(partial(lowrank.apply, model))(base, theta, TEXTS)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert len(theta.factors) == 2 * 6 + 1


def gradient(model, select, clients=None):
    """The jaxpr of the gradient in theta, as text; of several clients beside one base."""
    base, theta = split(model, select, shaped)
    grad = jax.grad(lambda theta, base: lowrank.apply(model, base, theta, TEXTS).sum())
    if clients is None:
        return str(jax.make_jaxpr(grad)(theta, base))
    theta = jax.tree.map(lambda x: jax.ShapeDtypeStruct((clients, *x.shape), x.dtype), theta)
    return str(jax.make_jaxpr(jax.vmap(grad, (0, None)))(theta, base))


def test_frozen_embeddings_get_no_gradient():
    """A gradient of the tokens' table would be a scatter."""
    low_rank = lowrank.Select(factors="query|value", rank=2)
    assert "scatter" not in gradient(VARIANTS["bert"], low_rank)
    assert "scatter" in gradient(VARIANTS["bert"], lowrank.Select(full="token"))


@pytest.mark.parametrize("name", ["bert", "scanned"])
def test_no_client_has_a_copy_of_a_frozen_weight(name):
    low_rank = lowrank.Select(factors="layer.*kernel", rank=2)
    copy = re.compile(r"\[5,(2,)?(8,8|8,16|16,8|12,8)\]")
    assert not copy.search(gradient(VARIANTS[name], low_rank, clients=5))
    assert copy.search(gradient(VARIANTS[name], lowrank.Select(full="up"), clients=5))


# bfloat16 for what is frozen.


def test_a_narrow_base_is_stored_narrow_and_trained_wide():
    model = tiny(dtype=jnp.bfloat16)
    select = lowrank.Select(factors="query|value", full="^head", rank=2, up="random")
    base, theta = split(model, select, shaped)
    narrow = {p for p, w in base.items() if w.dtype == jnp.bfloat16}
    assert narrow == {
        p for p in base if p.startswith("token") or (p.startswith("layer") and "norm" not in p)
    }
    assert {x.dtype for x in jax.tree.leaves(theta)} == {jnp.dtype(jnp.float32)}
    logits = jax.eval_shape(partial(lowrank.apply, model), base, theta, TEXTS)
    assert logits.dtype == jnp.float32


def test_a_narrow_base_rounds_weights_and_activations_and_no_sums():
    """Against float32 on the same rounded weights; bfloat16 has 8 bits of mantissa."""
    wide, narrow = tiny(), tiny(dtype=jnp.bfloat16)
    flat = drawn(narrow)
    exact = run(wide, jax.tree.map(lambda w: w.astype(jnp.float32), flat), TEXTS)
    error = np.max(np.abs(run(narrow, flat, TEXTS) - exact))
    assert 0 < error < 0.05 * np.max(np.abs(exact))


def test_no_sum_of_a_narrow_base_is_narrow():
    """What adapters and residuals are added to is float32."""
    model = tiny(dtype=jnp.bfloat16)
    text = str(jax.make_jaxpr(partial(run.__wrapped__, model))(drawn(model), TEXTS))
    results = re.findall(r":(\w+)\[[^\]]*\] = dot_general", text)
    assert len(results) == 2 * (6 + 2) + 2  # of layers with attention, and of the head
    assert set(results) == {"f32"}


# What the papers count.


@pytest.mark.parametrize(
    ("width", "depth", "feedforward", "sent", "trained"),
    [(768, 12, 3072, 294_912, 368_640), (1024, 24, 4096, 786_432, 983_040)],
    ids=["roberta-base", "roberta-large"],
)
def test_the_ledger_counts_what_the_paper_does(width, depth, feedforward, sent, trained):
    """Rank 8 on query and value is sent, and rank 2 beside it is trained (arXiv 2503.03920)."""
    model = models.Encoder(
        50265, width, depth, width // 64, feedforward, 514, 2, types=1, pad=1, counted=True
    )
    tokens = jnp.zeros((1, 4), jnp.int32)
    select = lowrank.Select(factors="query|value", rank=8)

    def begun(key):
        params = model.init(key, tokens)["params"]
        _, theta = lowrank.split(params, lowrank.layers(model, tokens), select, key)
        return theta, lowrank.joined(theta, lowrank.beside(theta.factors, 2, key))

    common, both = jax.eval_shape(begun, jax.random.key(0))
    assert trees.size(common) == sent
    assert trees.size(both) == trained


def standardised(x, flat, name):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
    return scaled * flat[f"{name}/scale"] + flat[f"{name}/bias"]


def by_hand(flat, x, real, *, bottleneck):
    """A layer with prefixes and, if asked, adapters, in numpy; activation ReLU, 2 heads of 4."""

    def dense(name, x):
        return x @ flat[f"{name}/kernel"] + flat[f"{name}/bias"]

    def adapted(name, y):
        if not bottleneck:
            return y
        return y + dense(f"{name}_wide", np.maximum(dense(f"{name}_narrow", y), 0))

    out = np.zeros_like(x)
    for i, mask in enumerate(real):
        q = dense("query", x[i])
        k = np.concatenate([flat["prefix_key"], dense("key", x[i])[mask]])
        v = np.concatenate([flat["prefix_value"], dense("value", x[i])[mask]])
        for h in (slice(0, 4), slice(4, 8)):
            score = np.exp(q[:, h] @ k[:, h].T / 2)
            out[i][:, h] = score / score.sum(1, keepdims=True) @ v[:, h]
    y = standardised(x + adapted("adapter_0", dense("out", out)), flat, "norm_0")
    hidden = dense("down", np.maximum(dense("up", y), 0))
    return standardised(y + adapted("adapter_1", hidden), flat, "norm_1")


@pytest.mark.parametrize("adapter", [0, 3])
def test_prefixes_are_more_keys_and_values_and_adapters_follow_each_sublayer(adapter):
    layer = Layer(8, 2, 16, 1e-12, "relu", 0.0, None, adapter=adapter, prefix=2)
    x = np.random.default_rng(1).normal(size=(*TEXTS.shape, 8)).astype(np.float32)
    shapes = jax.eval_shape(partial(layer.init, train=False), jax.random.key(0), x, x, TEXTS != PAD)
    shapes, rng = (
        flax.traverse_util.flatten_dict(shapes["params"], sep="/"),
        np.random.default_rng(2),
    )
    flat = {p: rng.normal(0, 0.5, s.shape).astype(s.dtype) for p, s in shapes.items()}
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    found = quickly(partial(layer.apply, train=False))({"params": params}, x, x, TEXTS != PAD)
    expected = by_hand(flat, x, TEXTS != PAD, bottleneck=adapter > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_new_adapter_changes_nothing():
    """Its wide layer starts at zero."""
    wide = tiny(adapter=4)
    params = quickly(partial(wide.init))(jax.random.key(0), TEXTS)["params"]
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    plain = {p: w for p, w in flat.items() if "adapter" not in p}
    assert len(flat) - len(plain) == 16  # 2 layers, 2 adapters, 2 dense layers, kernel and bias
    np.testing.assert_array_equal(run(wide, flat, TEXTS), run(tiny(), plain, TEXTS))


# Layers in a stack.


SCANNED = {
    "computed again, with bottlenecks and prefixes": {"remat": True, "adapter": 3, "prefix": 2},
    "narrow": {"dtype": jnp.bfloat16, "compute": jnp.bfloat16},
}


@pytest.mark.parametrize("name", tiers.usual(SCANNED, "narrow"))
def test_stacked_layers_compute_what_layers_one_by_one_do(name):
    """The logits and their gradients in every weight."""
    model = tiny(depth=3, **SCANNED[name])
    flat = drawn(model)

    def loss(flat, model):
        params = flax.traverse_util.unflatten_dict(flat, sep="/")
        return jnp.mean(model.apply({"params": params}, TEXTS) ** 2)

    both = quickly(jax.value_and_grad(loss), static_argnums=1)
    value, expected = both(flat, model)
    stacked, found = both(layouts.scanned(flat), model.clone(scanned=True))
    exact = 2e-2 if name == "narrow" else 1e-5
    np.testing.assert_allclose(stacked, value, rtol=exact)
    found = layouts.unrolled(found)
    assert set(found) == set(expected)
    for path, gradient in expected.items():
        size = np.abs(gradient.astype(np.float32)).max()
        np.testing.assert_allclose(found[path], gradient, atol=10 * exact * size + exact)


def test_a_program_of_stacked_layers_does_not_grow_with_them():
    def products(depth):
        model = tiny(depth=depth, scanned=True)
        params = jax.eval_shape(model.init, jax.random.key(0), TEXTS)
        return str(jax.make_jaxpr(model.apply)(params, TEXTS)).count("dot_general")

    assert products(2) == products(9)


def test_one_layer_needs_no_stack():
    flat = drawn(tiny(depth=1))
    stacked = tiny(depth=1, scanned=True)
    np.testing.assert_array_equal(run(stacked, flat, TEXTS), run(tiny(depth=1), flat, TEXTS))
    assert layouts.scanned(flat).keys() == flat.keys()


# bfloat16 for activations, and layers that are computed again.


def loss_and_gradient(model, base, theta, run=quickly):
    def loss(theta, base):
        return jnp.sum(jnp.sin(lowrank.apply(model, base, theta, TEXTS)))

    return run(jax.value_and_grad(loss))(theta, base)


@pytest.fixture(scope="module")
def adapted():
    """A base in float32, and factors of which none is zero."""
    select = lowrank.Select(factors="query|value", full="^head", rank=2, up="random")
    return split(VARIANTS["bert"], select)


def test_layers_that_are_computed_again_have_the_same_gradients(adapted):
    again = tiny(remat=True)
    assert {p: w.shape for p, w in drawn(again).items()} == {
        p: w.shape for p, w in drawn(VARIANTS["bert"]).items()
    }
    found, expected = (loss_and_gradient(m, *adapted) for m in (again, VARIANTS["bert"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)
    text = str(loss_and_gradient(again, *adapted, run=jax.make_jaxpr))
    assert len(re.findall("= (?:remat|checkpoint)", text)) >= again.depth


def test_narrow_activations_round_no_sum_and_no_gradient(adapted):
    narrow = tiny(compute=jnp.bfloat16)
    value, gradient = loss_and_gradient(narrow, *adapted)
    exact, expected = loss_and_gradient(VARIANTS["bert"], *adapted)
    assert value.dtype == jnp.float32
    assert abs(value - exact) < 0.05 * max(1, abs(exact))
    for a, b in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) < 0.1 * np.linalg.norm(b) + 1e-3
    text = str(jax.make_jaxpr(partial(lowrank.apply, narrow))(*adapted, TEXTS))
    assert "bf16[3,6,8]" in text  # activations [B, L, d]
    assert not re.search(r"bf16\S* = (reduce_sum|exp|rsqrt)", text)


def test_activations_that_are_no_floats_are_refused():
    with pytest.raises(ValueError, match=r"compute=.*such as jnp.bfloat16"):
        tiny(compute=jnp.int8)


@pytest.mark.parametrize("remat", [False, True])
def test_a_layer_of_narrow_activations_keeps_its_input_and_two_products(remat):
    """For the gradient in factors: of widths 8, 16 and 8; with remat, the input alone."""
    narrow = {"dtype": jnp.bfloat16, "compute": jnp.bfloat16}
    model = tiny(depth=3, scanned=True, remat=remat, **narrow)
    base, theta = split(model, lowrank.Select(factors="query|value", rank=2), shaped)

    def backward(theta, base):
        return jax.vjp(lambda theta: lowrank.apply(model, base, theta, TEXTS), theta)[1]

    kept = jax.tree.leaves(jax.eval_shape(backward, theta, base))
    kept = [(x.shape[-1], x.dtype) for x in kept if x.shape[:3] == (2, *TEXTS.shape)]
    expected = [8] if remat else [8, 8, 16]
    assert sorted(width for width, _ in kept) == expected
    assert {dtype for _, dtype in kept} == {jnp.dtype(jnp.bfloat16)}
