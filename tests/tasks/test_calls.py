"""How models are called: switches, dropout, layouts, and models that no task can train."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxfed import lowrank, models, tasks

RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4)).astype(np.float32)
ROWS = {"image": X, "label": np.array([0, 2, 1, 1, 0, 2], np.int32)}
PAIRS = {"x": X, "y": RNG.normal(size=(6, 3)).astype(np.float32)}
MASK = np.ones(6, np.float32)


class Train(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, *, training):
        return nn.Dense(3)(nn.Dropout(0.5)(x, deterministic=not training))


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x, mask, is_training=False):
        return nn.Dense(3)(nn.Dropout(0.5)(x, not is_training))


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=deterministic)(x))


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        y = nn.MultiHeadDotProductAttention(2, dropout_rate=0.5, deterministic=deterministic)(
            x.reshape(-1, 2, 2)
        )
        return nn.Dense(3)(y.reshape(-1, 4))


@pytest.mark.parametrize("model", [Train, Training, IsTraining, Deterministic, Attention])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_dropout_acts_in_training_and_not_in_evaluation(model, kind):
    if kind == "classification":
        made, rows = tasks.classification(model(), ROWS), ROWS
    else:
        made, rows = tasks.regression(model(), PAIRS), PAIRS
    base, theta = jax.jit(made.init)(jax.random.key(0))
    batch = {**rows, "mask": MASK}
    loss = jax.jit(lambda key: made.loss(base, theta, batch, key))
    one, same, other = (loss(jax.random.key(k)) for k in (1, 1, 2))
    assert one == same != other
    found = jax.jit(made.evaluate)(base, theta, batch)["loss"] / 6
    assert found == jax.jit(made.evaluate)(base, theta, batch)["loss"] / 6 != one


class Body(nn.Module):
    """What a function of x makes of it."""

    body: Callable

    @nn.compact
    def __call__(self, x):
        return self.body(x)


class Silent(nn.Module):
    """Its switch has a name that nobody else uses."""

    @nn.compact
    def __call__(self, x, noisy=False):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not noisy)(x))


class Field(nn.Module):
    """Its switch is a field, so that it is on for ever."""

    train: bool = True

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not self.train)(x))


class OfADict(nn.Module):
    @nn.compact
    def __call__(self, batch):
        return nn.Dense(3)(batch["image"])


class OfTwo(nn.Module):
    @nn.compact
    def __call__(self, x, lengths):
        return nn.Dense(3)(x)


class Noisy(nn.Module):
    """It draws from a key stream of its own."""

    @nn.compact
    def __call__(self, x, train=False):
        noise = jax.random.normal(self.make_rng("noise"), x.shape) if train else 0.0
        return nn.Dense(3)(x + noise)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=False)(x))


def sentences():
    dense = nn.Dense
    return {
        "dropout without a switch": (Silent(), "^Dropout_0: dropout never acts in training; swit"),
        "dropout for ever": (
            Field(),
            "(Dropout_0: dropout also acts|random numbers that it is not)",
        ),
        "a class": (models.MLP, r"model is the class MLP; give one, MLP\(...\)"),
        "a function": (lambda x: x, "model is a function; give a flax.linen.Module"),
        "nnx": (nnx.Linear(4, 3, rngs=nnx.Rngs(0)), "model is a Linear; give a flax.linen.Module"),
        "a tuple": (Body(lambda x: (dense(3)(x), x)), "the model returns a tuple; wrap it"),
        "a dict of outputs": (Body(lambda x: {"y": dense(3)(x)}), "the model returns a dict"),
        "a dict of inputs": (
            OfADict(),
            r"cannot be called with float32 \(1, 4\): .*wrap a model of a",
        ),
        "two inputs": (OfTwo(), "cannot be called with .*'lengths'.* named in `inputs` one by one"),
        "batch normalisation in evaluation": (
            Normed(),
            "changes what it keeps in evaluation too .*'use_running_average=not train'",
        ),
        "a key stream of its own": (Noisy(), 'draws random numbers that it is not .*"dropout"'),
    }


@pytest.mark.parametrize("name", sentences())
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_model_that_cannot_be_trained_is_refused_in_a_sentence(name, kind):
    model, match = sentences()[name]
    make, rows = getattr(tasks, kind), ROWS if kind == "classification" else {**PAIRS, "image": X}
    inputs = ("image",)
    with pytest.raises((ValueError, TypeError), match=match):
        make(model, rows, inputs=inputs)


def test_sown_numbers_are_no_running_statistics():
    def sowing(module, x):
        module.sow("losses", "size", jnp.sum(x))
        return nn.Dense(3)(x)

    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            return sowing(self, x)

    tasks.classification(Sowing(), ROWS)


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), name="conv")(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((8, 8), r"conv convolves examples \(8, 8\) without channels; .* x\[..., None\]"),
        ((3, 8, 8), r"conv convolves images \(3, 8, 8\) that seem to have .*np.moveaxis\(x, 1, -1"),
        ((1, 8, 8), r"conv convolves images \(1, 8, 8\) that seem"),
        ((3, 6, 8), r"conv convolves images \(3, 6, 8\) that seem"),
    ],
)
def test_images_of_another_layout_are_refused(shape, match):
    images = {**ROWS, "image": np.zeros((6, *shape), np.float32)}
    with pytest.raises(ValueError, match=match):
        tasks.classification(Network(), images)
    tasks.classification(models.MLP((), 3), images)  # to which no layout matters


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8, 3), (3, 3, 16), (1, 8, 5), (3, 3, 3)])
def test_images_with_channels_last_are_taken(shape):
    tasks.classification(Network(), {**ROWS, "image": np.zeros((6, *shape), np.float32)})


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image": np.array(list("abcdef"))}, "image is <U1; give numbers"),
        ({"image": np.array([{}] * 6)}, "image is object; give numbers"),
        ({"image": np.array(["2020-01-01"] * 6, "datetime64[D]")}, r"image is datetime64\[D\]"),
        ({"label": np.array(list("abcdef"))}, "label is <U1; give numbers, .* np.unique"),
        ({"label": ROWS["label"] + 1}, "1 to 3, but the model has 3 outputs; subtract 1 from them"),
        ({"label": ROWS["label"] - 1}, "from -1 to 1, .* leave such rows out, or number"),
        ({"label": ROWS["label"] * 450_000_000}, "0 to 900000000, .* as many classes as"),
    ],
)
def test_columns_that_are_no_numbers_and_labels_that_do_not_count_from_0_are_refused(
    changes, match
):
    with pytest.raises(ValueError, match=match):
        tasks.classification(models.MLP((), 3), {**ROWS, **changes})


@pytest.mark.parametrize("dropout", [1.5, 1.0, -0.1, np.nan, True])
def test_dropout_on_the_low_rank_path_is_a_share(dropout):
    with pytest.raises(ValueError, match=r"dropout=.* use a number from 0 to below 1"):
        tasks.classification(models.MLP((), 3), ROWS, dropout=dropout)


class Squared(nn.Dense):
    @nn.compact
    def __call__(self, x):
        return x @ self.param("kernel", nn.initializers.normal(), (4, 3)) ** 2


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_layers_whose_factors_do_not_merge_are_refused_when_the_task_is_made(kind):
    make, rows = getattr(tasks, kind), ROWS if kind == "classification" else PAIRS
    select = lowrank.Select(factors="kernel", rank=2)
    with pytest.raises(ValueError, match="Squared_0/kernel: Squared computes something else"):
        make(Body(lambda x: Squared(3)(x)), rows, select=select)


def test_inputs_are_a_sequence_of_names():
    with pytest.raises(TypeError, match="inputs='image' is one name"):
        tasks.classification(models.MLP((), 3), ROWS, inputs="image")
