"""FLoRIST against numpy's SVD of the mean product."""

import algorithms
import bilinear as bl
import jax
import numpy as np
import optax
import oracle
import pytest

from jaxfed import local, lowrank
from jaxfed.algorithms import fedlora, florist
from jaxfed.lowrank import rules

COUNT, STEPS, RATE = [4, 6, 10], 3, 0.1
SHARE = np.array(COUNT) / sum(COUNT)
WORK = local.Work(max(COUNT), steps=STEPS, shuffle=False)
OPTIONS = {"client_optimizer": optax.sgd(RATE), "cohort_size": 3}


@pytest.mark.parametrize(("energy", "kept"), [(0.5, 1), (1.0, 2)])
def test_w_takes_the_first_singular_values_of_the_mean_product(x64, energy, kept):
    problem = bl.bilinear(COUNT, rank=1)
    fed = florist(problem.task, WORK, energy=energy, **OPTIONS)
    _, _, metrics = oracle.rounds(fed, problem.world, [[0, 1, 2]] * 2)
    after, _, _ = oracle.rounds(fed, problem.world, [[0, 1, 2]])
    mean = sum(
        p * problem.trained(i, problem.start, RATE, STEPS).product for i, p in enumerate(SHARE)
    )
    u, sigma, vt = np.linalg.svd(mean, full_matrices=False)
    cut = (u[:, :kept] * sigma[:kept]) @ vt[:kept]
    np.testing.assert_allclose(after.base["w"], problem.weight + cut, rtol=1e-9)
    assert not np.asarray(after.theta.factors["w"].b).any()
    assert int(after.kept["w"]) == kept
    assert set(metrics[0]["down"].tolist()) == {0}  # clients draw A and B themselves
    assert set(metrics[1]["down"].tolist()) == {8 * kept * (3 + 2)}
    assert set(metrics[1]["up"].tolist()) == {8 * (3 + 2)}


def test_with_all_of_the_energy_it_is_flora(x64):
    task = algorithms.classifier(algorithms.LORA)
    options = {"client_optimizer": optax.sgd(0.2), "cohort_size": 7}
    fed = florist(task, algorithms.WORK, energy=1.0, **options)
    flora = fedlora(task, algorithms.WORK, rule=rules.FLORA, **options)
    found, _, _ = oracle.rounds(fed, algorithms.UNEQUAL, algorithms.DRAWS[:2])
    expected, _, _ = oracle.rounds(flora, algorithms.UNEQUAL, algorithms.DRAWS[:2])
    oracle.assert_close(found.base, expected.base)
    oracle.assert_close(found.theta, expected.theta)


@pytest.mark.parametrize("size", [(6, 4, 5), (4, 6, 5), (5, 6, 4)])  # inputs, rank, outputs
def test_the_cut_is_that_of_the_svd(x64, size):
    inputs, rank, outputs = size
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(inputs, rank)), rng.normal(size=(rank, outputs))
    f, kept = rules.thresholded(
        lowrank.Factors(jax.numpy.asarray(a), jax.numpy.asarray(b), 0.5), 0.8
    )
    u, sigma, vt = np.linalg.svd(0.5 * a @ b, full_matrices=False)
    least = int(np.argmax(np.cumsum(sigma**2) >= 0.8 * np.sum(sigma**2))) + 1
    assert 1 < least == int(kept) < 4
    assert f.rank == 4
    np.testing.assert_allclose(
        lowrank.product(f), (u[:, :least] * sigma[:least]) @ vt[:least], rtol=1e-9
    )


def test_absent_clients_are_counted_with_the_most_that_they_may_receive():
    fed = florist(bl.bilinear(COUNT, rank=1).task, WORK, energy=0.5, **OPTIONS)
    server = jax.eval_shape(fed.init, jax.random.key(0))
    assert (fed.broadcast(server, 0), fed.broadcast(server, 1)) == (0, 4 * 2 * (3 + 2))
