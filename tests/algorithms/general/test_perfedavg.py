"""Per-FedAvg on least squares, where H is constant: (I - alpha H) grad f(w - alpha grad f(w))."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from quadratic import FEATURES, quadratic

from jaxfed import aggregate, local
from jaxfed.algorithms import fedavg, perfedavg
from jaxfed.algorithms.general.perfedavg import exact, first_order, hessian_free, same, thirds

COUNT = [9, 6, 9]
ALPHA, BETA = 0.3, 0.1
FULL = local.Work(9, epochs=2, shuffle=False)


def made(problem, gradient=exact, minibatches=same, work=FULL, inner_rate=ALPHA):
    return perfedavg(
        problem.task,
        work,
        inner_rate=inner_rate,
        gradient=gradient,
        minibatches=minibatches,
        client_optimizer=optax.sgd(BETA),
        personal_work=local.Work(9, epochs=1, shuffle=False),
    )


def step(problem, w, inner, outer, curved, second=True):
    """One local step of Algorithm 1 on three minibatches (x, y)."""
    g = problem.gradient(w - ALPHA * problem.gradient(w, *inner), *outer)
    hessian = curved[0].T @ curved[0] / len(curved[1])
    return w - BETA * (g - ALPHA * second * hessian @ g)


@pytest.mark.parametrize(
    ("gradient", "second"), [(exact, True), (hessian_free(0.1), True), (first_order, False)]
)
def test_rounds_are_those_of_the_closed_form(x64, gradient, second):
    """The paper's uniform mean; central differences are exact on a quadratic."""
    problem = quadratic(COUNT)
    server, states, _ = oracle.rounds(made(problem, gradient), problem.world, [[0, 1], [2, 1]])
    w = problem.start
    for ids in ([0, 1], [2, 1]):
        received, trained = w, []
        for i in ids:
            rows = problem.rows(i)
            w_i = received
            for _ in range(2):
                w_i = step(problem, w_i, rows, rows, rows, second)
            trained.append(w_i)
        w = np.mean(trained, axis=0)
    np.testing.assert_allclose(server.theta, w, rtol=1e-9)
    change = -ALPHA * problem.gradient(received, *problem.rows(1))  # one step after download
    np.testing.assert_allclose(states[1], change, rtol=1e-9)


def test_three_minibatches_are_used_where_the_paper_uses_them(x64):
    problem = quadratic([9])
    one_step = local.Work(9, epochs=1, shuffle=False)
    fed = made(problem, minibatches=thirds, work=one_step)
    server, _, _ = oracle.rounds(fed, problem.world, [[0]])
    x, y = problem.rows(0)
    expected = step(problem, problem.start, *((x[i::3], y[i::3]) for i in range(3)))
    np.testing.assert_allclose(server.theta, expected, rtol=1e-10)


def test_with_an_inner_rate_of_zero_it_is_fedavg(x64):
    problem = quadratic(COUNT)
    server, states, _ = oracle.rounds(made(problem, inner_rate=0.0), problem.world, [[0, 1, 2]] * 2)
    plain = fedavg(
        problem.task, FULL, client_optimizer=optax.sgd(BETA), mean=aggregate.uniform_mean
    )
    expected, _, _ = oracle.rounds(plain, problem.world, [[0, 1, 2]] * 2)
    np.testing.assert_allclose(server.theta, expected.theta, rtol=1e-10)
    np.testing.assert_array_equal(states[0], np.zeros(FEATURES))


def test_on_a_linear_loss_all_three_are_the_gradient():
    g = jnp.arange(1.0, 4.0)
    for gradient in (exact, hessian_free(0.5), first_order):
        value, found = gradient(lambda w, batch: g @ w, jnp.ones(3), 0.5, {}, {}, {})
        np.testing.assert_allclose(found, g, rtol=1e-6)
        np.testing.assert_allclose(value, g @ (1 - 0.5 * g), rtol=1e-6)


def test_exact_is_the_derivative_through_the_inner_step(x64):
    """On one minibatch, for a loss that is no quadratic; central differences come close."""

    def loss(w, batch):
        return jnp.sum(jnp.sin(w * batch["x"])) + jnp.prod(w)

    w, batch = jnp.array([0.3, -1.2, 0.7]), {"x": jnp.array([1.0, 2.0, -0.5])}
    value, expected = jax.value_and_grad(lambda w: loss(w - 0.2 * jax.grad(loss)(w, batch), batch))(
        w
    )
    found_value, found = exact(loss, w, 0.2, *same(batch))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(found_value, value, rtol=1e-12)
    _, near = hessian_free(1e-4)(loss, w, 0.2, *same(batch))
    np.testing.assert_allclose(near, expected, rtol=1e-6)


def test_a_client_runs_the_servers_theta_with_the_change_of_its_own_steps(x64):
    problem = quadratic(COUNT)
    fed = made(problem)
    server, states, _ = oracle.rounds(fed, problem.world, [[0, 1]])
    for i, drawn in ((0, True), (2, False)):
        change = -ALPHA * problem.gradient(problem.start, *problem.rows(i)) * drawn
        np.testing.assert_allclose(
            fed.deploy(server, states[i])[1], server.theta + change, rtol=1e-9
        )


def test_a_batch_without_thirds_is_refused():
    with pytest.raises(ValueError, match="batch of 4 has no thirds"):
        thirds({"mask": np.ones(4)})
