"""Answers by spans: losses and counts against plain numpy, and what is refused."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import lowrank, models, tasks
from jaxfed.tasks import span

ENCODER = models.Encoder(
    vocabulary=14, width=8, depth=1, heads=2, feedforward=8, positions=16, classes=3
)
MODEL = models.Span(ENCODER)
RNG = np.random.default_rng(0)
EXAMPLES = {
    "tokens": RNG.integers(1, 14, (5, 7)).astype(np.int32),
    "types": np.zeros((5, 7), np.int8),
    "answerable": np.array([[1, 0, 0, 1, 1, 1, 0]] * 5, np.int8),
    "start": np.array([3, 0, 4, 5, 3], np.int32),
    "end": np.array([4, 0, 4, 5, 5], np.int32),
}
MASK = np.array([1, 1, 0, 1, 1], np.float32)
SELECT = lowrank.Select(factors="query|value", full="^head", rank=2, up="random")


def by_hand(logits):
    """(loss, exact, overlap) summed over the examples that the mask counts, span by span."""
    sums = np.zeros(3)
    for i in np.flatnonzero(MASK):
        allowed = np.flatnonzero(EXAMPLES["answerable"][i])
        right = [EXAMPLES["start"][i], EXAMPLES["end"][i]]
        for z, place in zip(logits[i].T, right, strict=True):
            sums[0] += (np.log(np.exp(z[allowed]).sum()) - z[place]) / 2
        spans = [(0, 0)] + [(s, e) for s, e in itertools.product(allowed[1:], repeat=2) if s <= e]
        s, e = max(spans, key=lambda one: logits[i, one[0], 0] + logits[i, one[1], 1])
        sums[1] += [s, e] == right
        common = set(range(s, e + 1)) & set(range(right[0], right[1] + 1))
        sums[2] += 2 * len(common) / (e - s + 1 + right[1] - right[0] + 1)
    return sums


def test_loss_and_counts_are_those_of_a_plain_loop():
    task = tasks.answer_span(MODEL, EXAMPLES, select=SELECT)
    batch = {**EXAMPLES, "mask": MASK}

    @jax.jit
    def found(key):
        base, theta = task.init(key)
        model = base, theta._replace(full={p: 30 * w for p, w in theta.full.items()})
        mean = task.loss(*model, batch, jax.random.key(1))
        return task.predict(*model, batch), task.evaluate(*model, batch), mean

    for seed in range(3):
        logits, sums, mean = found(jax.random.key(seed))
        expected = by_hand(np.asarray(logits, np.float64))
        values = [sums[name] for name in ("loss", "exact", "overlap")]
        np.testing.assert_allclose(values, expected, rtol=1e-4)
        np.testing.assert_allclose(mean, expected[0] / MASK.sum(), rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_likeliest_span_is_the_best_of_all(seed):
    first, last = np.random.default_rng(seed).normal(size=(2, 6))
    spans = [(0, 0), *((i, j) for i in range(1, 6) for j in range(i, 6))]
    best = max(spans, key=lambda one: first[one[0]] + last[one[1]])
    assert tuple(map(int, span.likeliest(jnp.array(first), jnp.array(last)))) == best


def test_paths_are_those_of_the_encoder_without_its_head():
    """So that a checkpoint's weights, and adapters, go by their own names."""
    tokens = EXAMPLES["tokens"]
    ours = lowrank.layers(MODEL, tokens)
    theirs = lowrank.layers(ENCODER, tokens)
    assert set(ours) == {p for p in theirs if p.split("/")[0] not in ("head", "pooler")} | {
        "head_span/kernel"
    }


def changed(**arrays):
    return {**EXAMPLES, **{n: np.asarray(x) for n, x in arrays.items()}}


WRONG = {
    "no ends": ({n: x for n, x in EXAMPLES.items() if n != "end"}, r"have no \['end'\]"),
    "an end outside": (changed(end=[4, 0, 9, 5, 5]), "end is 9 in row 2, where no answer can be"),
    "an end in the question": (changed(start=[1, 0, 4, 5, 3]), "start is 1 in row 0, where no"),
    "ends in the wrong order": (
        changed(start=[5, 0, 4, 5, 3]),
        "the answer in row 0 ends at 4, before its start 5; give its first",
    ),
    "ends of another shape": (changed(start=[0.0] * 5), r"start is float64 \(5,\); give one int"),
    "tokens of another kind": (changed(tokens=np.ones((5, 7))), r"tokens are float64 \(5, 7\)"),
    "another mask": (changed(answerable=np.ones((5, 6))), r"answerable is \(5, 6\) beside tokens"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_examples_are_refused_in_a_sentence(name):
    examples, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        tasks.answer_span(MODEL, examples)


def test_a_model_of_other_outputs_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"makes \(1, 3\) of tokens \(1, 7\); answer_span wants"):
        tasks.answer_span(ENCODER, EXAMPLES)
    with pytest.raises(TypeError, match="encoder is a MLP, which has no method `hidden`; give a"):
        models.Span(models.MLP((4,), classes=2))


def test_a_model_that_keeps_running_statistics_is_refused():
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, tokens, types, train=False):
            x = nn.Dense(2)(tokens[..., None].astype(jnp.float32))
            return nn.BatchNorm(use_running_average=not train)(x)

    with pytest.raises(ValueError, match="running statistics beside its parameters"):
        tasks.answer_span(Normed(), EXAMPLES)
