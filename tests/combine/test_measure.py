"""The gap of averages: its definition, where it vanishes, and in a round."""

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from jaxfed import lowrank
from jaxfed.combine import measure
from jaxfed.lowrank import Factors

WEIGHT = np.array([0.5, 0.2, 0.3, 0.0])
measured = jax.jit(measure.discrepancy)


def factors(*shapes, scale=0.5, seed=0):
    """{path: Factors} of four clients, for each (inputs, rank, outputs)."""
    rng = np.random.default_rng(seed)
    return {
        f"layer {i}": Factors(
            jnp.asarray(rng.normal(size=(4, *inputs, rank))),
            jnp.asarray(rng.normal(size=(4, rank, *outputs))),
            scale * (i + 1),
        )
        for i, (inputs, rank, outputs) in enumerate(shapes)
    }


def by_definition(factors, weight):
    gap = whole = 0
    for f in factors.values():
        products = jax.vmap(lowrank.product)(f)
        mean = np.tensordot(weight, products, 1)
        a, b = (np.tensordot(weight, x, 1) for x in (f.a, f.b))
        gap += np.sum((mean - f.scale * np.tensordot(a, b, 1)) ** 2)
        whole += np.sum(mean**2)
    return np.sqrt(gap / whole)


@pytest.mark.parametrize(
    "shapes",
    [
        [((5,), 2, (3,))],  # small: the product is formed
        [((40,), 1, (30,))],  # large: inner products
        [((2, 2, 3), 2, (4,)), ((30,), 2, (5, 6)), ((50,), 1, (60,))],
    ],
)
def test_it_is_what_averaging_factors_loses(x64, shapes):
    some = factors(*shapes)
    found = measured(some, jnp.asarray(WEIGHT))
    np.testing.assert_allclose(found, by_definition(some, WEIGHT), rtol=1e-10)
    assert found > 0.1


def test_it_vanishes_where_one_factor_is_common(x64):
    some = factors(((5,), 2, (3,)), ((60,), 1, (60,)))
    for side in ("a", "b"):
        common = {
            p: Factors(**{"a": f.a, "b": f.b, side: jnp.stack([getattr(f, side)[0]] * 4)}, scale=1)
            for p, f in some.items()
        }
        assert measured(common, jnp.asarray(WEIGHT)) < 1e-7
    assert measured(jax.tree.map(jnp.zeros_like, some), jnp.asarray(WEIGHT)) == 0


def test_two_opposite_clients_lose_all(x64):
    """(A, B) and (-A, -B) have the same product, and both means are zero."""
    f = factors(((5,), 2, (3,)))["layer 0"]
    opposite = {"w": jax.tree.map(lambda x: jnp.stack([x[0], -x[0]]), f)}
    found = measured(opposite, jnp.asarray([0.5, 0.5]))
    np.testing.assert_allclose(found, 1, rtol=1e-12)


def test_a_round_tells_it_and_is_otherwise_the_same():
    """Against the definition, of what the clients were sent and sent back."""
    rounds, expected = algorithms.DRAWS[:1], []

    def watched(client, base, message, cohort):
        reply = oracle.loop(client, base, message, cohort)
        theta, change = (getattr(x, "theta", x) for x in (message, reply.upload))
        after = jax.tree.map(jnp.add, theta.factors, change.factors)
        expected.append(by_definition(after, cohort.weight))
        return reply

    fed = algorithms.ALGORITHMS["fedloru-scaffold"](algorithms.RATE)
    plain = oracle.rounds(fed, algorithms.UNEQUAL, rounds, verb=watched)
    found = oracle.rounds(measure.with_discrepancy(fed), algorithms.UNEQUAL, rounds)
    oracle.assert_close(found[:2], plain[:2])
    told = [metrics.pop("discrepancy") for metrics in found[2]]
    oracle.assert_close(found[2], plain[2])
    np.testing.assert_allclose(told, expected, rtol=1e-4)
    assert min(expected) > 0.001


@pytest.mark.parametrize("name", ["hetlora", "mfedloru"])
def test_uploads_that_are_no_change_are_refused(name):
    with pytest.raises(ValueError, match="do not upload a change"):
        measure.with_discrepancy(algorithms.ALGORITHMS[name](0.1))


def test_whole_weights_have_none():
    fed = measure.with_discrepancy(algorithms.averaging(algorithms.WHOLE, 0.1))
    with pytest.raises(ValueError, match="no change of factors"):
        oracle.rounds(fed, algorithms.UNEQUAL, algorithms.DRAWS[:1])
