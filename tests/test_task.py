"""Classification: its loss, its counts, and what the host can know before training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import lowrank, models, task

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
    made = task.classification(MODEL, EXAMPLES)
    losses = cross_entropy(logits(made), EXAMPLES["label"])
    found = made.loss(*begun(made), {**EXAMPLES, "mask": MASK}, jax.random.key(1))
    np.testing.assert_allclose(found, losses[MASK > 0].mean(), rtol=1e-5)


def test_an_evaluation_sums_over_real_examples():
    made = task.classification(MODEL, EXAMPLES)
    z, real = logits(made), MASK > 0
    found = made.evaluate(*begun(made), {**EXAMPLES, "mask": MASK})
    losses = cross_entropy(z, EXAMPLES["label"])
    np.testing.assert_allclose(found["loss"], losses[real].sum(), rtol=1e-5)
    assert found["accuracy"] == (z.argmax(-1) == EXAMPLES["label"])[real].sum()


def test_an_empty_batch_costs_nothing_and_teaches_nothing():
    made = task.classification(MODEL, EXAMPLES)
    base, theta = begun(made)
    batch = {**EXAMPLES, "mask": np.zeros(6, np.float32)}
    value, grads = jax.value_and_grad(made.loss, 1)(base, theta, batch, jax.random.key(1))
    assert value == 0
    assert not any(g.any() for g in jax.tree.leaves(grads))


def test_masked_examples_do_not_reach_the_gradient():
    made = task.classification(MODEL, EXAMPLES)
    base, theta = begun(made)
    other = EXAMPLES["image"] + 100 * (1 - MASK[:, None])
    batches = ({**EXAMPLES, "mask": MASK}, {**EXAMPLES, "image": other, "mask": MASK})
    one, two = (jax.grad(made.loss, 1)(base, theta, b, jax.random.key(1)) for b in batches)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one, two)


def test_augmentation_comes_before_preprocessing_and_in_training_only():
    """x -> 2 (x + 1) in training, 2 x at test, with a model that is linear in x."""
    images = {**EXAMPLES, "image": (EXAMPLES["image"] * 10).astype(np.int32)}
    made = task.classification(
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
        made = task.classification(MODEL, EXAMPLES, **options)
        batch = {**EXAMPLES, "mask": MASK}
        one, same, other = (made.loss(*begun(made), batch, jax.random.key(s)) for s in (1, 1, 2))
        assert one == same
        assert one != other
        plain = task.classification(MODEL, EXAMPLES, select=options.get("select", select))
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
    made = task.classification(Told(), EXAMPLES)
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
        task.classification(MODEL, examples)


def test_a_selection_is_checked_when_the_task_is_made():
    with pytest.raises(ValueError, match="'conv' matches none of"):
        task.classification(MODEL, EXAMPLES, select=lowrank.Select(factors="conv", rank=1))


def test_other_names_for_input_and_label():
    renamed = {"x": EXAMPLES["image"], "y": EXAMPLES["label"]}
    made = task.classification(MODEL, renamed, image="x", label="y")
    found = made.evaluate(*begun(made), {**renamed, "mask": MASK})
    plain = task.classification(MODEL, EXAMPLES)
    assert found == plain.evaluate(*begun(plain), {**EXAMPLES, "mask": MASK})
