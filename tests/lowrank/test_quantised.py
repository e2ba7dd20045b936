"""Frozen kernels in int8 and int4: their error, their gradients, and who may not change them."""

import os
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiers
from flax import traverse_util

import jaxfed
from jaxfed import combine, local, lowrank, models, pretrained, tasks, trees
from jaxfed.algorithms import fedavg
from jaxfed.cli import describe
from jaxfed.data import federate, sources
from jaxfed.lowrank import quantised, restarts, rules
from jaxfed.simulation import ledger

STORIES = Path(os.environ.get("JAXFED_DATA", "absent")).parent / "models" / "stories260K"
TOKENS = np.arange(24).reshape(4, 6) % 11
EXAMPLES = {"tokens": TOKENS, "scored": np.tile([0, 1, 1, 1, 1, 1], (4, 1))}
KINDS = ("int8", "int4")
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
DECODER = models.Decoder(11, 8, 3, 2, 10, 8, "llama", bias="qkv")
ENCODER = models.Encoder(11, 8, 2, 2, 10, 8, 3)


def weights(model):
    """{path: array} of a model, none of them zero."""
    params = trees.by_path(model.init(jax.random.key(0), TOKENS)["params"])
    keys = jax.random.split(jax.random.key(1), len(params))
    return {
        p: w + 0.3 * jax.random.normal(k, w.shape)
        for k, (p, w) in zip(keys, params.items(), strict=True)
    }


def stored(flat, kind):
    """The weights, with the kernels of layers in that kind."""
    return {
        p: quantised.quantise(w, kind) if p.startswith("layer") and p.endswith("kernel") else w
        for p, w in flat.items()
    }


def nested(flat):
    return traverse_util.unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 5), (2, 172, 3), (3, 7, 2)])
def test_a_weight_is_within_half_a_step_and_its_largest_is_exact(shape, kind):
    w = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    w[..., 0] = 0
    q = quantised.quantise(w, kind)
    half = np.repeat(q.scale, shape[-2] // q.scale.shape[-2], axis=-2) / 2
    error = np.abs(np.asarray(quantised.dequantise(q)) - w)
    assert (error <= half * (1 + 1e-5)).all()
    assert (q.shape, q.size, q.dtype) == (shape, w.size, np.float32)
    assert q.codes.nbytes == (
        w.size if kind == "int8" else w.size // shape[-2] * -(-shape[-2] // 2)
    )
    largest = np.abs(w).argmax(axis=-2)[..., None, :]
    assert (np.take_along_axis(error, largest, axis=-2) < 1e-6).all()


CASES = {
    "decoder": (DECODER, "int4"),
    "remat": (DECODER.clone(remat=True), "int8"),
    "encoder": (ENCODER, "int4"),
    "scanned": (ENCODER.clone(scanned=True, depth=3), "int8"),
}


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_model_and_gradients_are_those_of_the_weights_that_codes_stand_for(name):
    model, kind = CASES[name]
    flat = weights(model)
    base = stored(flat, kind)
    assert any(map(quantised.is_quantised, base.values()))
    found = lowrank.layers(model, TOKENS)
    select = lowrank.Select(factors="query|down", rank=2)
    _, theta = lowrank.split(nested(base), found, select, jax.random.key(2))
    theta = lowrank.fresh(theta, jax.random.key(3), up="random")

    @quickly
    def of(base, theta):
        def loss(theta):
            return jnp.sum(jnp.sin(lowrank.apply(model, base, theta, TOKENS)))

        return lowrank.apply(model, base, theta, TOKENS), jax.grad(loss)(theta)

    ours, theirs = of(base, theta), of(quantised.floats(base), theta)
    for x, y in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-4)


def test_an_output_is_within_half_a_step_times_the_inputs_absolute_values():
    """|x (W - W')|_o <= scale_o / 2 sum_i |x_i|."""
    w, x = (jax.random.normal(jax.random.key(i), (7, 7)) for i in (0, 1))
    q = quantised.quantise(w, "int8")
    bound = jnp.abs(x).sum(1, keepdims=True) * q.scale / 2
    assert (jnp.abs(x @ w - x @ quantised.dequantise(q)) <= bound).all()


@pytest.mark.full
def test_no_float_copy_of_a_kernel_lies_between_the_passes():
    base = stored(weights(DECODER), "int8")
    theta = lowrank.Theta({}, {})

    def loss(table):
        return lowrank.apply(DECODER, {**base, "token/embedding": table}, theta, TOKENS).sum()

    _, back = jax.vjp(loss, base["token/embedding"])
    depth, wide, deep = base["layers/up/kernel"].shape
    shapes = {x.shape for x in jax.tree.leaves(back) if jnp.issubdtype(x.dtype, jnp.floating)}
    assert not {(depth, wide, deep), (depth, deep, wide), (depth, wide, wide)} & shapes


def task_of(kind, **select):
    params = nested(stored(weights(DECODER), kind))
    select = {"factors": "query|value", "rank": 2, **select}
    return tasks.next_token(DECODER, EXAMPLES, params=params, select=lowrank.Select(**select))


WORK, SGD = local.Work(2, steps=1), optax.sgd(0.1)


def merges(task):
    fed = fedavg(task, WORK, client_optimizer=SGD)
    fed = combine.accumulate(fed, every=1, restart=restarts.reinit)
    server = fed.init(jax.random.key(0))
    return restarts.reinit(server.base, server.theta, server.start, jax.random.key(0))


REFUSED = {
    "a merge": (merges, "a merge cannot change"),
    "its residual": (
        lambda task: rules.applied(rules.FEDEX, *_uploads(task), jax.random.key(0)),
        "a merge cannot change",
    ),
    "whole": (lambda task: task_of("int8", full="up"), "training it whole cannot change"),
    "zeros": (
        lambda task: task_of("int8", base="zero", up="random"),
        "a base of zeros cannot change",
    ),
    "principal": (
        lambda task: lowrank.principal(*task.init(jax.random.key(0))),
        "a start from its best factors cannot change",
    ),
}


def _uploads(task):
    base, theta = task.init(jax.random.key(0))
    stack = {p: lowrank.concat(f, f) for p, f in theta.factors.items()}
    return base, theta.factors, stack


@pytest.mark.parametrize("what", tiers.usual(REFUSED, "a merge", "zeros"))
def test_nothing_is_written_to_it_and_the_sentence_says_what_to_do(what):
    change, message = REFUSED[what]
    with pytest.raises(ValueError, match=rf"kernel is stored in int8, which {message}; read the"):
        change(task_of("int8"))


@pytest.mark.full
def test_a_list_of_merges_leaves_it_alone_and_an_experiment_with_one_too_many_is_refused():
    task, make = task_of("int4"), partial(fedavg, work=WORK, client_optimizer=SGD)
    fed = combine.accumulate_list(lambda task: make(task), task, every=2, merges=1)
    server = fed.init(jax.random.key(0))
    theta = lowrank.fresh(server.theta, jax.random.key(1), up="random")
    base, after = combine.listing.append(server.base, theta, server.start, jax.random.key(2))
    batch = {**EXAMPLES, "mask": np.ones(4)}
    inner = server.inner._replace(base=base, theta=after)
    deployed = fed.deploy(server._replace(inner=inner), ())
    model, _ = task.init(jax.random.key(0))
    expected = task.predict(model, theta, batch)
    np.testing.assert_allclose(task.predict(*deployed, batch), expected, rtol=1e-5, atol=1e-5)
    data = federate(sources.Source(EXAMPLES, EXAMPLES), [np.arange(4)])
    jaxfed.Experiment(data, fed, rounds=4, cohort=1)
    with pytest.raises(
        ValueError, match="rounds=5, but the algorithm was made for 4 at most, as by `merges`"
    ):
        jaxfed.Experiment(data, fed, rounds=5, cohort=1)
    with_room = combine.accumulate_list(make, task, every=(1, 5, 3), merges=2)
    assert with_room.rounds == 5
    assert combine.accumulate_list(make, task, every=(1, 5), merges=2).rounds is None
    floats = tasks.next_token(DECODER, EXAMPLES, select=lowrank.Select("query", rank=2))
    assert combine.accumulate_list(make, floats, every=2, merges=1).rounds is None


def test_only_dense_layers_multiply_it():
    cnn = nn.Sequential([nn.Conv(2, (1, 1))])
    kernel = quantised.quantise(np.ones((1, 1, 3, 2)), "int8")
    base = {"layers_0/kernel": kernel, "layers_0/bias": jnp.zeros(2)}
    with pytest.raises(ValueError, match=r"layers_0 is a Conv, and only nn\.Dense multiplies int8"):
        lowrank.apply(cnn, base, lowrank.Theta({}, {}), jnp.ones((1, 2, 2, 3)))


def test_describe_counts_weights_and_says_in_which_bytes_they_are():
    base, theta = jax.eval_shape(task_of("int4").init, jax.random.key(0))
    whole = sum(w.size for w in weights(DECODER).values())
    lines = describe.parameters(base, theta, ledger.Wire(0, 0), trees.size(theta))
    kernels = {p: w for p, w in base.items() if quantised.is_quantised(w)}
    assert len(kernels) == 7
    count, size = sum(w.size for w in kernels.values()), trees.nbytes(kernels)
    assert f"model    {whole:,} parameters" in lines
    assert f"int4     {count:,} of the frozen, in {describe.in_bytes(size)} with" in lines
    assert "factors, rank 2, scale 1, in int4" in describe.weights(base, theta)


@pytest.mark.skipif(not STORIES.is_dir(), reason="set JAXFED_DATA")
@pytest.mark.parametrize(
    ("kind", "far", "loss", "share"), [("int8", 0.4, 0.01, 0.36), ("int4", 8, 0.05, 0.26)]
)
def test_stories_in_few_bits_are_near_the_stories_in_floats(kind, far, loss, share):
    """The largest difference of a logit, of the mean loss, and the share of the bytes."""
    model, params, words = pretrained.decoder_with_tokenizer(STORIES)
    _, narrow, _ = pretrained.decoder_with_tokenizer(STORIES, base=kind)
    text = "Once upon a time, there was a little girl named Lily. She loved to play outside."
    tokens = jnp.array([words.encode(text).ids])

    def of(params):
        logits = lowrank.apply(model, trees.by_path(params), lowrank.Theta({}, {}), tokens)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])
        return logits, losses.mean()

    (logits, mean), (near, other) = quickly(of)(params), quickly(of)(narrow)
    assert jnp.abs(logits - near).max() < far
    assert abs(mean - other) < loss
    assert trees.nbytes(narrow) < share * trees.nbytes(params)
