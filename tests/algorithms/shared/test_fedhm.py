"""FedHM against a loop over clients, in numpy."""

import bilinear as bl
import jax
import numpy as np
import optax
import oracle
import pytest

from jaxfed import local, lowrank, models, tasks
from jaxfed.algorithms import fedhm

COUNT, STEPS, RATE = [4, 6, 10], 3, 0.1
SHARE = np.array(COUNT) / sum(COUNT)
WORK = local.Work(max(COUNT), steps=STEPS, shuffle=False)


def best(matrix, rank, scale):
    u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
    root = np.sqrt(sigma[:rank] / scale)
    return bl.Adapter(u[:, :rank] * root, root[:, None] * vt[:rank], scale)


@pytest.mark.parametrize("ranks", [None, [1, 2, 1]])
def test_two_rounds_are_the_papers_loop(x64, ranks):
    """Of clients of equal and of unequal ranks; the server's W has a higher rank than theirs."""
    problem = bl.bilinear(COUNT, rank=1 if ranks is None else 2)
    fed = fedhm(problem.task, WORK, client_optimizer=optax.sgd(RATE), ranks=ranks)
    server, states, _ = oracle.rounds(fed, problem.world, [[0, 1, 2]] * 2)
    whole, scale = problem.weight + problem.start.product, problem.start.scale
    for _ in range(2):
        begun = [best(whole, r, scale) for r in ranks or [1, 1, 1]]
        whole = sum(
            p * problem.trained(i, f, RATE, STEPS, weight=0 * whole).product
            for i, (p, f) in enumerate(zip(SHARE, begun, strict=True))
        )
    base, theta = fed.deploy(server, states[0])
    np.testing.assert_allclose(lowrank.merge(base, theta)["w"], whole, rtol=1e-8)
    received = bl.adapter(server.theta.factors)
    np.testing.assert_allclose(
        received.product, best(whole, received.a.shape[1], scale).product, rtol=1e-8
    )
    assert np.linalg.matrix_rank(whole) == 2


def test_the_decay_shrinks_the_product_and_not_the_factors_alone(x64):
    """By the weight, the gradient of lambda/2 ||s A B||^2 is lambda s A B."""
    problem = bl.bilinear([8], rank=1)
    work, lam = local.Work(8, steps=1, shuffle=False), 0.7
    fed = fedhm(problem.task, work, client_optimizer=optax.sgd(RATE), decay=lam)
    server, states, _ = oracle.rounds(fed, problem.world, [[0]])
    a, b, s = best(problem.weight + problem.start.product, 1, problem.start.scale)
    g = problem.gradient(0, s * a @ b) + lam * s * a @ b
    expected = s * (a - RATE * s * g @ b.T) @ (b - RATE * s * a.T @ g)
    found = lowrank.merge(*fed.deploy(server, states[0]))["w"]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_convolution_is_a_matrix_of_width_and_channels():
    """The deployed kernels have the model's shape, [h, w, in, out]; the factors are smaller."""
    image = np.random.default_rng(0).normal(size=(4, 28, 28, 1)).astype(np.float32)
    examples = {"image": image, "label": np.arange(4, dtype=np.int32)}
    select = lowrank.Select(factors="conv_1/kernel", full="bias", rank=2, base="zero", up="random")
    task = tasks.classification(models.FemnistCNN(4), examples, select=select)
    fed = fedhm(task, local.Work(4, steps=1), client_optimizer=optax.sgd(0.1))
    server = jax.eval_shape(fed.init, jax.random.key(0))
    base, theta = jax.eval_shape(fed.deploy, server, ())
    plain, _ = jax.eval_shape(task.init, jax.random.key(0))
    assert {p: w.shape for p, w in base.items()} == {p: w.shape for p, w in plain.items()}
    assert theta.factors == {}
    ((path, f),) = server.theta.factors.items()
    high, wide, inside, out = plain[path].shape
    assert (f.a.shape, f.b.shape) == ((wide, inside, 2), (2, high, out))


def test_clients_do_not_multiply_by_a_weight_beside_the_factors():
    """A layer without a weight has the low-rank term alone, with its bias."""
    model, rng = models.MLP((8,), 3), np.random.default_rng(0)
    image = rng.normal(size=(4, 6)).astype(np.float32)
    examples = {"image": image, "label": np.arange(4) % 3}
    select = lowrank.Select(factors="kernel", full="bias", rank=2, base="zero", up="random")
    task = tasks.classification(model, examples, select=select)
    base, theta = task.init(jax.random.key(0))
    theta = theta._replace(full={p: w + 0.5 for p, w in theta.full.items()})
    batch = {"image": image, "mask": np.ones(4)}
    np.testing.assert_allclose(
        task.predict({}, theta, batch), task.predict(base, theta, batch), rtol=1e-6
    )
    found = jax.jit(task.predict).lower({}, theta, batch).as_text()
    assert found.count("dot_general") == 4  # x a and (x a) b of both layers
