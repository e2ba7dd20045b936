"""The vision transformer against itself with its layers stacked; see also pretrained/test_vit."""

import flax.traverse_util
import jax
import numpy as np
import pytest

from jaxfed import lowrank, models

IMAGES = np.random.default_rng(0).normal(size=(3, 8, 12, 3)).astype(np.float32)
TINY = models.ViT(4, 8, 3, 2, 16, 5)


def drawn(model):
    """Parameters {path: array}, none of them zero or one throughout."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    flat = flax.traverse_util.flatten_dict(shapes, sep="/")
    rng = np.random.default_rng(1)
    return {
        p: rng.normal(p.endswith("scale"), 0.5, s.shape).astype(s.dtype) for p, s in flat.items()
    }


def run(model, flat):
    params = flax.traverse_util.unflatten_dict(flat, sep="/")
    quickly = {"xla_backend_optimization_level": 0}
    return jax.jit(model.apply, compiler_options=quickly)({"params": params}, IMAGES)


def stacked(flat):
    """The parameters with the layers' in a stack."""
    inside = [p.removeprefix("layer_0/") for p in flat if p.startswith("layer_0/")]
    layers = {f"layers/{p}": np.stack([flat[f"layer_{i}/{p}"] for i in range(3)]) for p in inside}
    return layers | {p: x for p, x in flat.items() if not p.startswith("layer_")}


def test_stacked_layers_compute_the_same():
    flat = drawn(TINY)
    expected = run(TINY, flat)
    np.testing.assert_allclose(run(TINY.clone(scanned=True), stacked(flat)), expected, atol=1e-5)


@pytest.mark.parametrize("scanned", [False, True])
def test_factors_stand_beside_every_dense_kernel(scanned):
    model = TINY.clone(scanned=scanned)
    select = lowrank.Select(
        factors="layer.*kernel", full="patches|first|position|norm|head|bias", rank=2
    )
    layers = lowrank.layers(model, IMAGES)
    shapes = jax.eval_shape(
        lambda flat: lowrank.split(flat, layers, select, jax.random.key(0)), drawn(model)
    )
    names = {"query", "key", "value", "out", "up", "down"}
    assert {path.split("/")[-2] for path in shapes[1].factors} == names
    assert len(shapes[1].factors) == 6 * (1 if scanned else 3)
    assert not [path for path in shapes[0] if path not in shapes[1].factors]


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 heads do not divide a width of 8"):
        TINY.clone(heads=3)
    with pytest.raises(ValueError, match="8 x 12 do not divide into patches of 8; use a divisor"):
        jax.eval_shape(TINY.clone(patch=8).init, jax.random.key(0), IMAGES)
