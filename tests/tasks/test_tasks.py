"""Classification: its loss, its counts, and what the host can know before training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn import metrics

from jaxfed import lowrank, models, tasks

RNG = np.random.default_rng(0)
EXAMPLES = {
    "image": RNG.normal(size=(6, 4)).astype(np.float32),
    "label": np.array([0, 2, 1, 1, 0, 2], np.int32),
}
MODEL = models.MLP((5,), 3)
MASK = np.array([1, 1, 0, 1, 0, 1], np.float32)


def begun(made):
    return made.init(jax.random.key(0))


def logits(made, x=EXAMPLES["image"]):
    base, theta = begun(made)
    return np.asarray(MODEL.apply({"params": lowrank.merged(base, theta)}, x), np.float64)


def cross_entropy(z, label):
    return np.log(np.exp(z).sum(-1)) - z[np.arange(len(z)), label]


def test_the_loss_is_the_mean_over_real_examples():
    made = tasks.classification(MODEL, EXAMPLES)
    losses = cross_entropy(logits(made), EXAMPLES["label"])
    found = made.loss(*begun(made), {**EXAMPLES, "mask": MASK}, jax.random.key(1))
    np.testing.assert_allclose(found, losses[MASK > 0].mean(), rtol=1e-5)


def test_an_evaluation_sums_over_real_examples():
    made = tasks.classification(MODEL, EXAMPLES)
    z, real = logits(made), MASK > 0
    found = made.evaluate(*begun(made), {**EXAMPLES, "mask": MASK})
    losses = cross_entropy(z, EXAMPLES["label"])
    np.testing.assert_allclose(found["loss"], losses[real].sum(), rtol=1e-5)
    assert found["accuracy"] == (z.argmax(-1) == EXAMPLES["label"])[real].sum()


def test_an_empty_batch_costs_nothing_and_teaches_nothing():
    made = tasks.classification(MODEL, EXAMPLES)
    base, theta = begun(made)
    batch = {**EXAMPLES, "mask": np.zeros(6, np.float32)}
    value, grads = jax.value_and_grad(made.loss, 1)(base, theta, batch, jax.random.key(1))
    assert value == 0
    assert not any(g.any() for g in jax.tree.leaves(grads))


def test_masked_examples_do_not_reach_the_gradient():
    made = tasks.classification(MODEL, EXAMPLES)
    base, theta = begun(made)
    other = EXAMPLES["image"] + 100 * (1 - MASK[:, None])
    batches = ({**EXAMPLES, "mask": MASK}, {**EXAMPLES, "image": other, "mask": MASK})
    one, two = (jax.grad(made.loss, 1)(base, theta, b, jax.random.key(1)) for b in batches)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one, two)


def test_augmentation_comes_before_preprocessing_and_in_training_only():
    """x -> 2 (x + 1) in training, 2 x at test, with a model that is linear in x."""
    images = {**EXAMPLES, "image": (EXAMPLES["image"] * 10).astype(np.int32)}
    made = tasks.classification(
        MODEL,
        images,
        preprocess=lambda x, key: 2.0 * x,
        augment=lambda x, key: x + 1,
    )
    batch = {**images, "mask": np.ones(6, np.float32)}
    for scale, found in (
        (2.0 * (images["image"] + 1), made.loss(*begun(made), batch, jax.random.key(0)) * 6),
        (2.0 * images["image"], made.evaluate(*begun(made), batch)["loss"]),
    ):
        np.testing.assert_allclose(
            found, cross_entropy(logits(made, scale), images["label"]).sum(), rtol=1e-4
        )


def test_augmentation_and_dropout_are_random_in_the_key_and_absent_at_test():
    def noise(x, key):
        return x + jax.random.normal(key, x.shape)

    select = lowrank.Select(factors="kernel", rank=2, up="random")
    for options in ({"augment": noise}, {"dropout": 0.5, "select": select}):
        made = tasks.classification(MODEL, EXAMPLES, **options)
        batch = {**EXAMPLES, "mask": MASK}
        one, same, other = (made.loss(*begun(made), batch, jax.random.key(s)) for s in (1, 1, 2))
        assert one == same
        assert one != other
        plain = tasks.classification(MODEL, EXAMPLES, select=options.get("select", select))
        if "select" in options:
            at_test = (t.evaluate(*begun(t), batch)["loss"] for t in (made, plain))
            assert next(at_test) == next(at_test)


class Told(nn.Module):
    """Its first logit is 5 in training and -5 at test; it fails without a mask."""

    @nn.compact
    def __call__(self, x, *, train=False, mask=None):
        bias = self.param("bias", nn.initializers.zeros, (3,))
        assert mask is not None or self.is_initializing()
        return jnp.where(train, 5.0, -5.0) * jnp.eye(3)[0] * jnp.ones((len(x), 1)) + bias


def test_a_model_is_told_whether_it_trains_and_which_examples_are_real():
    made = tasks.classification(Told(), EXAMPLES)
    batch = {**EXAMPLES, "label": np.zeros(6, np.int32), "mask": MASK}
    training = made.loss(*begun(made), batch, jax.random.key(0))
    testing = made.evaluate(*begun(made), batch)["loss"] / MASK.sum()
    expected = [cross_entropy(np.array([[z, 0.0, 0.0]]), [0])[0] for z in (5.0, -5.0)]
    np.testing.assert_allclose([training, testing], expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("examples", "match"),
    [
        ({"image": EXAMPLES["image"]}, r"no \['label'\]; they have \['image'\]"),
        ({**EXAMPLES, "label": EXAMPLES["label"] + 1}, "labels run from 1 to 3, but the model has"),
        ({**EXAMPLES, "label": EXAMPLES["label"] - 1}, "labels run from -1 to 1"),
        ({**EXAMPLES, "label": EXAMPLES["image"]}, r"integer labels \[n\]; got logits \(1, 3\)"),
        ({**EXAMPLES, "label": EXAMPLES["label"] * 1.0}, "labels .* of float64"),
    ],
)
def test_examples_that_do_not_fit_are_refused(examples, match):
    with pytest.raises(ValueError, match=match):
        tasks.classification(MODEL, examples)


def test_a_selection_is_checked_when_the_task_is_made():
    with pytest.raises(ValueError, match="'conv' matches none of"):
        tasks.classification(MODEL, EXAMPLES, select=lowrank.Select(factors="conv", rank=1))


def test_other_names_for_input_and_label():
    renamed = {"x": EXAMPLES["image"], "y": EXAMPLES["label"]}
    made = tasks.classification(MODEL, renamed, inputs=("x",), label="y")
    found = made.evaluate(*begun(made), {**renamed, "mask": MASK})
    plain = tasks.classification(MODEL, EXAMPLES)
    assert found == plain.evaluate(*begun(plain), {**EXAMPLES, "mask": MASK})


class Sum(nn.Module):
    """Logits of a dense layer on the sum of two inputs."""

    @nn.compact
    def __call__(self, x, y):
        return nn.Dense(3, name="head")(x + y)


def test_a_model_of_several_inputs_gets_them_in_order():
    """Its loss is that of the model of their sum; what is augmented is the first."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 6, 4)).astype(np.float32)
    both = {"x": x, "y": y, "label": EXAMPLES["label"]}
    made = tasks.classification(Sum(), both, inputs=("x", "y"), augment=lambda x, key: 10 * x)
    plain = tasks.classification(models.MLP((), 3), {**both, "image": x + y})
    assert jax.tree.structure(begun(made)) == jax.tree.structure(begun(plain))
    mask = {"mask": MASK}
    found = made.evaluate(*begun(made), both | mask)["loss"]
    expected = plain.evaluate(*begun(plain), {**both, "image": x + y} | mask)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    found = made.loss(*begun(made), both | mask, jax.random.key(0)) * MASK.sum()
    expected = plain.evaluate(*begun(plain), {**both, "image": 10 * x + y} | mask)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


GIVEN = {"dense_0": {"kernel": np.full((4, 5), 2.0, np.float32)}}
KERNEL = "dense_0/kernel"


@pytest.mark.parametrize("init", [lambda made: made.init, lambda made: jax.jit(made.init)])
def test_a_model_starts_at_the_weights_given_and_draws_the_others(init):
    made = tasks.classification(MODEL, EXAMPLES, params=GIVEN, select=lowrank.Select(full="head"))
    (base, theta), (other, drawn) = (init(made)(jax.random.key(s)) for s in (0, 1))
    np.testing.assert_array_equal(base[KERNEL], GIVEN["dense_0"]["kernel"])
    np.testing.assert_array_equal(other[KERNEL], GIVEN["dense_0"]["kernel"])
    assert (theta.full["head/kernel"] != drawn.full["head/kernel"]).all()
    assert set(base) | set(theta.full) == {KERNEL, "dense_0/bias", "head/kernel", "head/bias"}


def test_the_weights_given_outlive_a_run_that_donates_its_own():
    given = jax.tree.map(jnp.asarray, GIVEN)
    base, _ = begun(
        tasks.classification(MODEL, EXAMPLES, params=given, select=lowrank.Select(full="head"))
    )
    base[KERNEL].delete()
    np.testing.assert_array_equal(given["dense_0"]["kernel"], GIVEN["dense_0"]["kernel"])


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"dense": GIVEN["dense_0"]}, r"params have \['dense/kernel'\]; the model has"),
        (
            {"dense_0": {"kernel": np.zeros((5, 4))}},
            r"dense_0/kernel \(5, 4\); the model has \(4, 5\)",
        ),
    ],
)
def test_weights_that_are_not_the_models_are_refused(params, match):
    with pytest.raises(ValueError, match=match):
        tasks.classification(MODEL, EXAMPLES, params=params)


@pytest.mark.parametrize("classes", [2, 3])
def test_measures_agree_with_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    truth, noise = rng.integers(classes, size=(2, 40))
    said = np.where(rng.random(40) < 0.6, truth, noise)
    confusion = metrics.confusion_matrix(truth, said)
    expected = metrics.matthews_corrcoef(truth, said)
    np.testing.assert_allclose(tasks.matthews(confusion), expected, rtol=1e-12)
    if classes == 2:
        np.testing.assert_allclose(tasks.f1(confusion), metrics.f1_score(truth, said), rtol=1e-12)


def test_measures_of_one_label_are_zero_and_several_matrices_are_measured_at_once():
    one_label, never_said, perfect = [[0, 0], [3, 5]], [[4, 0], [2, 0]], [[4, 0], [0, 2]]
    confusion = np.array([one_label, never_said, perfect])
    assert tasks.matthews(confusion).tolist() == [0, 0, 1]
    np.testing.assert_allclose(tasks.f1(confusion), [10 / 13, 0, 1])
    assert tasks.f1(np.array([[4, 0], [0, 0]])) == 0


def test_an_evaluation_counts_what_was_taken_for_what():
    """Summed over batches, and over clients' examples apart, it says what the examples say."""
    made = tasks.classification(MODEL, EXAMPLES, measures=(tasks.matthews,))
    sums = made.evaluate(*begun(made), {**EXAMPLES, "mask": MASK})
    said, real = logits(made).argmax(-1), MASK > 0
    expected = metrics.confusion_matrix(EXAMPLES["label"][real], said[real], labels=range(3))
    np.testing.assert_array_equal(sums["confusion"], expected)
    found = made.summary(sums, MASK.sum())
    assert set(found) == {"loss", "accuracy", "matthews"}
    np.testing.assert_allclose(found["accuracy"], (said == EXAMPLES["label"])[real].mean())
    np.testing.assert_allclose(
        found["matthews"], metrics.matthews_corrcoef(EXAMPLES["label"][real], said[real])
    )
    twice = jax.tree.map(lambda s: np.stack([s, 2 * s]), sums)  # of two clients
    both = made.summary(twice, MASK.sum() * np.array([1, 2]))
    for name, value in found.items():
        np.testing.assert_allclose(both[name], [value, value], rtol=1e-6)


def test_a_measure_of_fewer_classes_is_refused():
    with pytest.raises(ValueError, match=r"f1 is of two classes; .* \(3, 3\)"):
        tasks.classification(MODEL, EXAMPLES, measures=(tasks.f1,))


PAIRS = {"x": RNG.normal(size=(6, 4)).astype(np.float32), "y": RNG.normal(size=(6, 3))}
LINEAR = models.Linear(3)


def test_regression_is_least_squares_over_real_examples():
    select = lowrank.Select(factors="kernel", rank=2, up="random")
    made = tasks.regression(LINEAR, PAIRS, select=select)
    base, theta = begun(made)
    kernel = lowrank.merged(base, theta)["dense"]["kernel"]
    squares = ((PAIRS["x"] @ np.asarray(kernel) - PAIRS["y"]) ** 2).sum(1)[MASK > 0] / 2
    batch = {**PAIRS, "mask": MASK}
    found = made.loss(base, theta, batch, jax.random.key(1))
    np.testing.assert_allclose(found, squares.mean(), rtol=1e-5)
    np.testing.assert_allclose(made.evaluate(base, theta, batch)["loss"], squares.sum(), rtol=1e-5)


def test_a_linear_model_starts_at_zero():
    base, theta = begun(tasks.regression(LINEAR, PAIRS))
    assert not theta.full["dense/kernel"].any()
    assert base == {}


@pytest.mark.parametrize(
    ("pairs", "match"),
    [
        ({"x": PAIRS["x"]}, r"no \['y'\]; they have \['x'\]"),
        ({**PAIRS, "y": PAIRS["y"][:, 0]}, r"got \(6, 3\) and targets \(6,\)"),
        ({**PAIRS, "y": PAIRS["y"][:, :2]}, r"got \(6, 3\) and targets \(6, 2\)"),
    ],
)
def test_targets_that_do_not_fit_are_refused(pairs, match):
    with pytest.raises(ValueError, match=match):
        tasks.regression(LINEAR, pairs)


def test_predictions_with_a_key_are_those_of_the_loss():
    """Augmented and dropped out as by the loss of the same key; without a key, as evaluated."""
    examples = {
        "image": np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32),
        "label": np.arange(4) % 3,
    }
    task = tasks.classification(
        models.MLP((), 3),
        examples,
        select=lowrank.Select(factors="kernel", rank=2, up="random"),
        augment=lambda x, key: x + jax.random.normal(key, x.shape),
        dropout=0.5,
    )
    base, theta = task.init(jax.random.key(0))
    batch = {**examples, "mask": jnp.ones(4)}
    seen = [task.predict(base, theta, batch, jax.random.key(i)) for i in (1, 1, 2)]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert np.any(seen[0] != seen[2])
    cross = optax.softmax_cross_entropy_with_integer_labels(seen[0], batch["label"]).mean()
    np.testing.assert_allclose(task.loss(base, theta, batch, jax.random.key(1)), cross, rtol=1e-6)
    quiet = task.predict(base, theta, batch)
    total = optax.softmax_cross_entropy_with_integer_labels(quiet, batch["label"]).sum()
    np.testing.assert_allclose(task.evaluate(base, theta, batch)["loss"], total, rtol=1e-6)
    np.testing.assert_array_equal(task.features(base, theta, batch), examples["image"])
