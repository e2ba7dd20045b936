"""FedAvg against gradient descent, and against a PyTorch loop."""

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import workloads
from quadratic import quadratic

from jaxfed import aggregate, local, lowrank, models, tasks
from jaxfed.algorithms import fedavg

COUNT = np.array([1, 3, 4, 8])  # they add up to a power of two: shares are exact in float32
ONE_STEP = local.Work(batch_size=8, epochs=1)


@pytest.mark.parametrize(("double", "tolerance"), [(False, 1e-6), (True, 1e-14)])
def test_one_local_full_batch_step_is_centralised_gradient_descent(double, tolerance):
    """The mean of unequal clients' steps, weighted by examples, is the step on all examples."""
    with jax.enable_x64(double):
        problem, w = quadratic(COUNT), None
        fed = fedavg(problem.task, ONE_STEP, client_optimizer=optax.sgd(0.1))
        server, _, _ = oracle.rounds(fed, problem.world, [range(4)] * 3)
        x, y, w = *problem.world.examples.values(), problem.start
        for _ in range(3):
            w = w - 0.1 * problem.gradient(w, x, y)
        np.testing.assert_allclose(server.theta, w, atol=tolerance, rtol=0)


def test_one_local_step_on_a_network_is_centralised_gradient_descent():
    world = algorithms.world(COUNT)
    made = tasks.classification(models.MLP((4,), algorithms.CLASSES), world.examples)
    fed = fedavg(made, ONE_STEP, client_optimizer=optax.sgd(0.5))
    server, _, _ = oracle.rounds(fed, world, [range(4)])
    base, theta = made.init(jax.random.key(0))
    batch = {**world.examples, "mask": np.ones(16, np.float32)}
    grads = jax.grad(made.loss, 1)(base, theta, batch, jax.random.key(0))
    stepped = jax.tree.map(lambda w, g: w - 0.5 * g, theta, grads)
    oracle.assert_close(server.theta, stepped, rtol=0, atol=1e-6)


def test_clients_count_by_their_examples_or_as_the_given_mean_says(x64):
    problem, ids = quadratic([2, 6, 8]), [0, 1]
    trained = []
    for i in ids:
        x, y = problem.rows(i)
        trained.append(problem.start - 0.1 * problem.gradient(problem.start, x, y))
    for options, shares in (
        ({}, [2 / 8, 6 / 8]),
        ({"mean": aggregate.uniform_mean}, [1 / 2, 1 / 2]),
    ):
        fed = fedavg(problem.task, ONE_STEP, client_optimizer=optax.sgd(0.1), **options)
        server, _, _ = oracle.rounds(fed, problem.world, [ids])
        np.testing.assert_allclose(server.theta, shares @ np.stack(trained), rtol=1e-12)


def test_the_server_optimizer_sees_the_negative_mean_change():
    """SGD with rate 2 goes twice as far as the mean of the clients."""
    problem = quadratic(COUNT)
    once, twice = (
        oracle.rounds(
            fedavg(
                problem.task,
                ONE_STEP,
                client_optimizer=optax.sgd(0.1),
                server_optimizer=optax.sgd(rate),
            ),
            problem.world,
            [range(4)],
        )[0].theta
        for rate in (1.0, 2.0)
    )
    np.testing.assert_allclose(twice - problem.start, 2 * (once - problem.start), rtol=1e-4)


# A PyTorch loop on the same arrays in the same order.

CLIENTS, ROUNDS = 4, 3


def test_three_rounds_of_workload_1_end_where_pytorch_ends():
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)  # with more it all but stops on a machine that is not quiet
    import torch_peers as peers

    arrays, workload = workloads.arrays("W1", CLIENTS), workloads.WORKLOADS["W1"]

    base, theta = peers.tensors("W1", arrays)
    ((inputs, labels),) = peers.batches("W1", arrays.examples, processes=1)
    train = peers.loop(peers.Shard("W1", peers.mlp, base, theta, inputs, labels, {}))
    flat, losses = torch.cat([w.flatten() for w in theta.values()]), []
    for _ in range(ROUNDS):
        total, ends = train(flat)
        flat, losses = total / CLIENTS, [*losses, float(ends[0] / CLIENTS)]
    expected = {p: w.numpy() for p, w in peers.views(flat, theta).items()}

    made = tasks.classification(models.MLP((200, 200), 10), arrays.examples)
    begun = {}, lowrank.Theta(jax.tree.map(jnp.asarray, arrays.params), {})
    work = local.Work(workload.batch, epochs=1, shuffle=False)
    fed = fedavg(
        made._replace(init=lambda key: begun),
        work,
        client_optimizer=optax.sgd(workload.optimizer.rate),
    )
    world = oracle.World(arrays.examples, np.full(CLIENTS, workload.examples))
    on = oracle.on_engine(fed, world, uniform=True)
    draws = [list(range(CLIENTS))] * ROUNDS
    server, _, metrics = oracle.engine_rounds(on, world, draws)
    for p, w in server.theta.full.items():
        np.testing.assert_allclose(w, expected[p], rtol=1e-4, atol=1e-5, err_msg=p)
        assert np.abs(w - arrays.params[p]).max() > 1e-2
    assert losses[0] > losses[-1] > 0
    assert float(metrics[-1]["loss"].mean()) < losses[-1]  # over the round; theirs at its start
