"""Shapes, parameter counts, parameter paths and norms of the models."""

import re

import chex
import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import models
from jaxfed.models import resnet

KEY = jax.random.key(0)


def shapes(model, example):
    """Path -> parameter's shape, without computing anything."""
    variables = jax.eval_shape(model.init, KEY, jnp.zeros(example))
    return flax.traverse_util.flatten_dict(variables["params"], sep="/")


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        (models.resnet10(10), 4.903),
        (models.resnet18(10), 11.174),
        (models.resnet18(100), 11.220),
        (models.resnet34(10), 21.282),
        (models.resnet18(10, norm="batch"), 11.174),
    ],
)
def test_resnet_has_the_parameters_of_the_papers(model, millions):
    count = sum(p.size for p in shapes(model, (1, 32, 32, 3)).values())
    assert round(count / 1e6, 3) == millions


def test_femnist_cnn_has_the_parameters_of_its_layers():
    conv, dense = 9 * 32 + 32 + 9 * 32 * 64 + 64, 9216 * 128 + 128 + 128 * 62 + 62
    count = sum(p.size for p in shapes(models.FemnistCNN(), (1, 28, 28, 1)).values())
    assert count == conv + dense


@pytest.mark.parametrize(
    ("model", "example", "classes"),
    [
        (models.MLP((20, 10), 7), (3, 4, 5, 1), 7),
        (models.FemnistCNN(), (3, 28, 28, 1), 62),
        (models.FemnistCNN(10, dropout=0.5), (3, 28, 28, 1), 10),
        (models.resnet10(10, widths=(4, 8, 8, 16), groups=2), (3, 32, 32, 3), 10),
        (models.resnet34(10, widths=(4, 8, 8, 16), norm="batch"), (3, 20, 20, 1), 10),
    ],
)
def test_logits_are_one_row_an_example(model, example, classes):
    def logits(x):
        variables = model.init(KEY, x)
        mask = jnp.ones(x.shape[0], bool)
        return model.apply(variables, x, train=True, mask=mask, rngs={"dropout": KEY})

    assert jax.eval_shape(logits, jnp.zeros(example)).shape == (example[0], classes)


def test_regular_expressions_separate_stem_norms_convolutions_and_head():
    paths = shapes(models.resnet18(10), (1, 32, 32, 3))
    groups = ["^stem/", "norm", "^layer[1-4].*/conv", "^head/"]
    found = [[path for path in paths if re.search(group, path)] for group in groups]
    assert [len(matches) for matches in found] == [1, 2 * 20, 16 + 3, 2]
    assert sorted(path for matches in found for path in matches) == sorted(paths)


def test_batch_norm_leaves_padded_examples_out():
    x = jax.random.normal(KEY, (5, 6, 6, 3))
    padded = jnp.concatenate([x, 1e3 * jnp.ones((2, 6, 6, 3))])
    norm = resnet.BatchStatisticsNorm()
    variables = norm.init(KEY, x)
    masked = norm.apply(variables, padded, jnp.arange(7) < 5)
    np.testing.assert_allclose(masked[:5], norm.apply(variables, x), atol=1e-5)


def test_a_batch_of_padding_alone_keeps_the_gradient_finite():
    x, mask = jnp.ones((2, 4, 4, 3)), jnp.zeros(2, bool)
    norm = resnet.BatchStatisticsNorm()
    variables = norm.init(KEY, x)
    value, gradient = jax.value_and_grad(lambda v: jnp.sum(norm.apply(v, x, mask)))(variables)
    chex.assert_tree_all_finite((value, gradient))


@pytest.mark.parametrize("norm", [resnet.BatchStatisticsNorm(), resnet.GroupNorm(1)])
def test_norms_give_mean_zero_and_variance_one(norm):
    x = 3 + 5 * jax.random.normal(KEY, (1, 8, 8, 4))
    y = norm.apply(norm.init(KEY, x), x)
    np.testing.assert_allclose([jnp.mean(y), jnp.var(y)], [0, 1], atol=1e-4)


def test_group_norm_is_that_of_flax():

    x = 1 + jax.random.normal(KEY, (3, 5, 5, 8))
    params = {"params": {"scale": jnp.arange(8.0), "bias": jnp.ones(8)}}
    theirs = nn.GroupNorm(num_groups=4, epsilon=1e-5).apply(params, x)
    np.testing.assert_allclose(resnet.GroupNorm(4).apply(params, x), theirs, atol=1e-5)


def test_group_norm_refuses_channels_that_do_not_divide():
    with pytest.raises(ValueError, match="6 channels do not divide into 4 groups"):
        resnet.GroupNorm(4).init(KEY, jnp.zeros((1, 2, 2, 6)))


@pytest.mark.full
def test_fedloru_initialisation_draws_scales_around_one_with_deviation_one():
    x = jnp.zeros((1, 8, 8, 3))
    params = models.resnet10(10, initialiser="fedloru").init(KEY, x)["params"]
    scale = params["layer4_0"]["norm_0"]["scale"]
    kernel = params["layer4_0"]["conv_1"]["kernel"]
    np.testing.assert_allclose([scale.mean(), scale.std()], [1, 1], atol=0.15)
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * (512 + 512))), rtol=0.01)
    assert not np.any(params["head"]["bias"])
