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


# ---------------------------------------------------------------------- between fixed factors


def kept(shape, inputs, rank):
    """(base, theta) of a random kernel beside factors whose product is zero."""
    rng = np.random.default_rng(0)
    select = lowrank.Select(factors="kernel", rank=rank, alpha=3.0)
    kernel = {"kernel": jnp.asarray(rng.normal(size=shape))}
    return lowrank.split(kernel, {"kernel": Layer(shape, inputs)}, select, KEY)


@pytest.mark.parametrize(("shape", "inputs"), [((7, 9), 1), ((3, 3, 2, 5), 3)])
def test_a_square_core_stands_between_the_first_singular_vectors(x64, shape, inputs):
    base, start = kept(shape, inputs, 2)
    begun, theta = forms.square().begin(base, start, KEY)
    core = jnp.asarray(np.random.default_rng(1).normal(size=(2, 2)))
    assert trees.size(theta) == 4
    np.testing.assert_array_equal(
        lowrank.merged(*forms.square().plain(begun, theta))["kernel"], base["kernel"]
    )
    moved = Theta({"kernel" + forms.CORE: core}, {})
    plain = lowrank.merged(*forms.square().plain(begun, moved))["kernel"]
    matrix = np.asarray(base["kernel"]).reshape(-1, shape[-1])
    u, _, vt = np.linalg.svd(matrix, full_matrices=False)
    change = (plain - base["kernel"]).reshape(matrix.shape)
    inside = u[:, :2].T @ change @ vt[:2].T  # R, up to the signs of singular vectors
    np.testing.assert_allclose(np.abs(inside), 1.5 * np.abs(core), rtol=1e-9)
    np.testing.assert_allclose(u[:, :2] @ inside @ vt[:2], change, atol=1e-12)


def test_heads_add_up_and_do_not_overlap(x64):
    base, start = kept((7, 9), 1, 2)
    begun, theta = forms.heads(3).begin(base, start, KEY)
    rng = np.random.default_rng(1)
    cores, scales = rng.normal(size=(3, 2, 2)), rng.normal(size=3)
    full = {"kernel" + forms.CORE: jnp.asarray(cores)}
    moved = Theta({**full, "kernel" + forms.SCALES: jnp.asarray(scales)}, {})
    plain = lowrank.merged(*forms.heads(3).plain(begun, moved))["kernel"]
    a, b = (np.asarray(begun[f"fixed/kernel/{side}"]) for side in "ab")
    a = a / 1.5
    np.testing.assert_allclose(a.T @ a, np.eye(6), atol=1e-12)
    np.testing.assert_allclose(b @ b.T, np.eye(6), atol=1e-12)
    change = sum(
        s * a[:, 2 * i : 2 * i + 2] @ h @ b[2 * i : 2 * i + 2]
        for i, (s, h) in enumerate(zip(scales, cores, strict=True))
    )
    np.testing.assert_allclose(plain, base["kernel"] + 1.5 * change, rtol=1e-10)
    assert trees.size(theta) == 3 * 4
    assert np.linalg.matrix_rank(change) == 6  # from 12 numbers, where A and B would be 96


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="4 heads of rank 2 are above kernel's smaller side, 7"):
        forms.heads(4).begin(*kept((7, 9), 1, 2), KEY)


# ---------------------------------------------------------------------- kernels as matrices


def test_a_separable_kernel_is_the_one_of_its_tensor(x64):
    """W[h, w, in, out] = s sum_r a[w, in, r] b[r, h, out]."""
    base, start = selected((2, 3, 4, 5), 3, 2)
    _, theta = forms.SEPARABLE.begin(base, start, KEY)
    f = theta.factors["kernel"]
    assert (f.a.shape, f.b.shape) == ((3, 4, 2), (2, 2, 5))
    whole = f.scale * jnp.einsum("wir,rho->hwio", f.a, f.b)
    plain = lowrank.merged(*forms.SEPARABLE.plain(base, theta))["kernel"]
    np.testing.assert_allclose(plain, whole, rtol=1e-12)
    np.testing.assert_allclose(forms.restored(lowrank.product(f)), whole, rtol=1e-12)
    np.testing.assert_array_equal(forms.restored(forms.reshaped(whole)), whole)
