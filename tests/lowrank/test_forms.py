"""Forms of factors: the algebra by which they are plain factors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxfed import lowrank, trees
from jaxfed.lowrank import Factors, Layer, Theta, forms

KEY = jax.random.key(0)


def drawn(*shapes, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return Factors(*(jnp.asarray(rng.normal(size=shape)) for shape in shapes), scale)


@pytest.mark.parametrize(("inside", "outside"), [((7,), (9,)), ((3, 3, 4), (7,)), ((8,), (2, 4))])
def test_the_hadamard_product_of_two_pairs_is_plain_factors_of_the_product_of_their_ranks(
    x64, inside, outside
):
    f = drawn((*inside, 2), (2, *outside), scale=0.5)
    g = drawn((*inside, 3), (3, *outside), scale=2.0, seed=1)
    both, expected = forms.hadamard(f, g), lowrank.product(f) * lowrank.product(g)
    np.testing.assert_allclose(lowrank.product(both), expected, rtol=1e-10)
    rows = expected.reshape(np.prod(inside), -1)
    assert both.rank == 6 == np.linalg.matrix_rank(np.asarray(rows))  # above r_1 + r_2


def selected(shape, inputs, rank, up="random"):
    """(base, theta) of one kernel of zeros with factors of that rank."""
    select = lowrank.Select(
        factors="kernel", rank=rank, base="zero" if up == "random" else "keep", up=up, above="allow"
    )
    kernel = {"kernel": jnp.ones(shape)}
    return lowrank.split(kernel, {"kernel": Layer(shape, inputs)}, select, KEY)


@pytest.mark.parametrize("shape", [(40, 30), (3, 3, 8, 16)])
@pytest.mark.parametrize("rank", [2, 6])
def test_what_the_model_sees_is_the_product_of_both_pairs(x64, shape, rank):
    """As plain factors (rank 2) or, where these have more numbers than the weight, in it."""
    inputs = len(shape) - 1
    base, start = selected(shape, inputs, rank)
    _, theta = forms.HADAMARD.begin(base, start, KEY)
    whole = []
    for name in ("kernel", "kernel@2"):
        f, core = theta.factors[name], theta.full.get(name + forms.CORE)
        down = f.a if core is None else jnp.einsum("ip,hwpq->hwiq", f.a, core)
        whole.append(jnp.tensordot(down, f.b, 1))
    first, second = whole
    plain = lowrank.merged(*forms.HADAMARD.plain(base, theta))["kernel"]
    np.testing.assert_allclose(plain, first * second, rtol=1e-9, atol=1e-12)
    plain = lowrank.merged(*forms.SHIFTED.plain(base, theta))["kernel"]
    np.testing.assert_allclose(plain, first * (second + 1), rtol=1e-9, atol=1e-12)
    assert bool(forms.HADAMARD.plain(base, theta)[1].factors) == (rank == 2)


def test_the_second_product_begins_with_a_variance_of_one():
    for shape, inputs in (((200, 100), 1), ((3, 3, 32, 64), 3)):
        _, theta = forms.HADAMARD.begin(*selected(shape, inputs, 8), KEY)
        plain = {p: f for p, f in theta.factors.items() if p.endswith(forms.SECOND)}
        ((name, g),) = plain.items()
        core = theta.full.get(name + forms.CORE)
        down = g.a if core is None else jnp.einsum("ip,hwpq->hwiq", g.a, core)
        assert abs(jnp.var(jnp.tensordot(down, g.b, 1)) - 1) < 0.3


def test_beside_a_kept_weight_the_model_begins_as_it_is():
    base, start = selected((40, 30), 1, 2, up="zero")
    plain = forms.HADAMARD.plain(*forms.HADAMARD.begin(base, start, KEY))
    np.testing.assert_array_equal(lowrank.merged(*plain)["kernel"], base["kernel"])


PUBLISHED = {0.1: 60_192, 0.3: 178_050, 0.5: 296_434, 0.7: 414_792, 0.9: 533_192}


@pytest.mark.parametrize("share", PUBLISHED)
def test_parameters_of_a_convolution_are_those_of_the_authors_table(share):
    """3 x 3, 256 to 256 channels: the least rank with at least that share of the parameters."""
    shape = (3, 3, 256, 256)
    ranks = range(1, 257)
    least = next(r for r in ranks if 2 * r * (512 + 9 * r) >= share * np.prod(shape))
    theta = jax.eval_shape(
        lambda key: forms.HADAMARD.begin(*selected(shape, 3, least), key)[1], KEY
    )
    assert isinstance(theta, Theta)
    assert trees.size(theta) == PUBLISHED[share]
