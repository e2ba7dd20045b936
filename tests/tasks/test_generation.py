"""Generation: token by token that of transformers, and of each client by itself."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import lowrank, models, pretrained, tasks
from jaxfed.tasks import generation

KEY = jax.random.key(0)
NONE = lowrank.Theta({}, {})
PROMPTS = np.array([[4, 9, 7, 22, 5], [0, 0, 13, 6, 28], [0, 0, 0, 0, 8]])  # padded on the left
REAL = PROMPTS > 0
MOST = 9
quickly = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module", params=["gpt2", "mistral"])
def both(request):
    """(our model, base, theirs) of a small checkpoint."""
    pytest.importorskip("transformers")
    import tiny_decoders

    folder, theirs = tiny_decoders.small(request.param)
    model, params = pretrained.read_decoder(folder)
    base, _ = lowrank.split(params, {}, lowrank.everything, KEY)
    return model, {**base, **_.full}, theirs


def theirs_of(model, end, **options):
    import torch

    given = {"attention_mask": torch.tensor(REAL).long(), "max_new_tokens": MOST}
    ids = {"eos_token_id": end, "pad_token_id": 0, "do_sample": False}
    found = model.generate(torch.tensor(PROMPTS), **given, **ids, **options).numpy()
    found = found[:, PROMPTS.shape[1] :]
    over = np.cumsum(found == end, axis=1) - (found == end) > 0
    found = np.where(over, 0, found)  # theirs fills with `end` where 0 is the padding token
    return np.pad(found, ((0, 0), (0, MOST - found.shape[1])))


def test_the_greedy_text_is_that_of_transformers(both):
    """Also of prompts padded on the right, and after the end of a text."""
    model, base, theirs = both
    plain = theirs_of(theirs, None)
    end = int(plain[0, 3])
    expected = theirs_of(theirs, end)
    assert (expected[0] == 0).sum() >= MOST - 4
    run = partial(tasks.generate, model, most=MOST, choose=tasks.greedy, key=KEY, end=end)
    found = quickly(run)(base, NONE, PROMPTS, real=REAL)
    np.testing.assert_array_equal(found, expected)
    turned = np.array([np.concatenate([row[row > 0], row[row == 0]]) for row in PROMPTS])
    np.testing.assert_array_equal(quickly(run)(base, NONE, turned, real=turned > 0), expected)


@pytest.mark.full
@pytest.mark.parametrize(("beams", "penalty"), [(3, 1.0), (4, -0.5)])
def test_the_text_of_a_beam_search_is_that_of_transformers(both, beams, penalty):
    model, base, theirs = both
    end = int(theirs_of(theirs, None, num_beams=beams)[1, 4])
    expected = theirs_of(theirs, end, num_beams=beams, length_penalty=penalty)
    run = partial(tasks.beam_search, model, most=MOST, beams=beams, length_penalty=penalty, end=end)
    np.testing.assert_array_equal(quickly(run)(base, NONE, PROMPTS, real=REAL), expected)


def test_a_beam_search_without_repeats_is_that_of_transformers(both):
    """Also of prompts padded on the right."""
    model, base, theirs = both
    expected = theirs_of(theirs, None, num_beams=2, no_repeat_ngram_size=2)
    assert (expected != theirs_of(theirs, None, num_beams=2)).any()
    run = quickly(partial(tasks.beam_search, model, most=MOST, beams=2, no_repeat=2))
    np.testing.assert_array_equal(run(base, NONE, PROMPTS, real=REAL), expected)
    turned = np.array([np.concatenate([row[row > 0], row[row == 0]]) for row in PROMPTS])
    np.testing.assert_array_equal(run(base, NONE, turned, real=turned > 0), expected)


def test_no_token_in_a_row_is_refused():
    with pytest.raises(ValueError, match="no_repeat=0; use at least 1"):
        tasks.beam_search(MODEL, {}, NONE, PROMPTS, most=2, beams=2, no_repeat=0)


@pytest.mark.parametrize("n", [1, 2, 3, 20])
def test_what_would_repeat_is_what_a_plain_search_finds(n):
    text = np.random.default_rng(n).integers(0, 4, 12)
    search = jax.jit(partial(generation.repeating, n=n, vocabulary=5))
    for first, last in ((0, 12), (0, 7), (4, 10), (6, 7), (5, 5)):
        seen = text[first:last].tolist()
        grams = [seen[i : i + n] for i in range(len(seen) - n + 1)]
        tail = seen[len(seen) - n + 1 :] if n > 1 else []
        expected = [[*tail, token] in grams for token in range(5)]
        np.testing.assert_array_equal(search(text, first, last), expected)


def test_what_may_be_drawn_is_what_transformers_draws_from():
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    logits = np.random.default_rng(0).normal(0, 2, (4, 30)).astype(np.float32)
    for k, p in ((5, None), (None, 0.7), (8, 0.4), (None, 1.0)):
        expected = torch.tensor(logits)
        if k is not None:
            expected = transformers.TopKLogitsWarper(k)(None, expected)
        if p is not None:
            expected = transformers.TopPLogitsWarper(p)(None, expected)
        np.testing.assert_allclose(generation.kept(logits, k, p), expected.numpy(), rtol=1e-6)


def test_draws_follow_the_cut_probabilities():
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    choose = tasks.sampled(temperature=0.5, top_k=3, top_p=0.9)
    draws = jax.vmap(lambda key: choose(logits, key))(jax.random.split(KEY, 4000))
    share = np.array([0.25, 0.09]) / 0.34  # squares; two of them have 0.9 of the three
    np.testing.assert_allclose(np.bincount(draws, minlength=4)[:2] / 4000, share, atol=0.03)
    assert set(np.unique(draws)) == {0, 1}
    assert choose(jnp.zeros((3, 4)), KEY).shape == (3,)


MODEL = models.Decoder(30, 8, 2, 2, 8, 16, "llama", groups=1, tied=False)


def test_clients_at_once_write_what_each_writes_alone():
    """Adapters [K, ...] over one base; no client has a copy of one of its weights."""
    select = lowrank.Select(factors="query|value|head", rank=2, up="random")

    def begun(key):
        params = MODEL.init(key, PROMPTS)["params"]
        return lowrank.split(params, lowrank.layers(MODEL, PROMPTS), select, key)

    base, theta = jax.jit(begun)(KEY)
    thetas = jax.vmap(lambda key: lowrank.fresh(theta, key, up="random"))(jax.random.split(KEY, 3))
    prompts = np.stack([PROMPTS, PROMPTS + 1, PROMPTS[::-1]])
    run = partial(tasks.generate, MODEL, most=4, choose=tasks.sampled(temperature=0.7), key=KEY)
    many = jax.vmap(run, in_axes=(None, 0, 0))
    found = quickly(many)(base, thetas, prompts)
    alone = quickly(run)
    for k in range(3):
        one = jax.tree.map(lambda x, k=k: x[k], thetas)
        np.testing.assert_array_equal(found[k], alone(base, one, prompts[k]))
    text = str(jax.make_jaxpr(many)(base, thetas, prompts))
    assert "[3,2,8,8]" not in text.replace("[3,2,8,2]", "")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"most": 0}, ValueError, "most=0; use at least 1"),
        ({"most": 13}, ValueError, "texts of 17 tokens do not fit the model's 16 positions"),
        ({"prompt": np.zeros(5, int)}, ValueError, r"the prompt is int64 \(5,\); give integers"),
        ({"prompt": np.zeros((1, 5))}, ValueError, r"the prompt is float64 \(1, 5\); give"),
    ],
)
def test_what_cannot_be_generated_is_refused(change, error, message):
    shapes = jax.eval_shape(MODEL.init, KEY, PROMPTS)["params"]
    base = lowrank.split(shapes, {}, lowrank.everything, KEY)[1].full
    given = {"prompt": PROMPTS, "most": 2} | change
    prompt = given.pop("prompt")
    run = partial(tasks.generate, MODEL, choose=tasks.greedy, key=KEY, **given)
    with pytest.raises(error, match=message):
        jax.eval_shape(lambda base: run(base, NONE, prompt), base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature=0; use a number above 0, or tasks.greedy"),
        ({"top_k": 0}, "top_k=0; use at least 1"),
        ({"top_p": 1.5}, "top_p=1.5; use a share above 0"),
    ],
)
def test_wrong_ways_to_draw_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.sampled(**options)
