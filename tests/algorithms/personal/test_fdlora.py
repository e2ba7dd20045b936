"""FDLoRA: its three stages, one after the other, against a loop in numpy; and its search."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from bilinear import Adapter, adapter, assert_adapter, bilinear, mean

from jaxfed import local
from jaxfed.algorithms import fdlora
from jaxfed.algorithms.personal.fdlora import compass

COUNT = np.array([4, 6, 5])
ALL = [0, 1, 2]
ETA, MOMENTUM = 0.7, 0.9
WORK, PERSONAL = (local.Work(8, epochs=n, shuffle=False) for n in (2, 3))


def made(problem, sync=2):
    return fdlora(
        problem.task,
        WORK,
        rounds=3,
        sync=sync,
        personal_work=PERSONAL,
        personal_optimizer=optax.sgd(0.2),
        inner_optimizer=optax.sgd(0.1),
        outer_optimizer=optax.sgd(ETA, momentum=MOMENTUM, nesterov=True),
        shots=8,
        search=60,
    )


def plus(f, step, d):
    return Adapter(f.a + step * d.a, f.b + step * d.b, f.scale)


@pytest.fixture(scope="module")
def by_hand():
    """(problem, its FDLoRA, [(theta_s, {i: theta_p,i}) after each of rounds 0 to 3])."""
    problem = bilinear(COUNT)
    own = {i: problem.trained(i, problem.start, 0.2, 3) for i in ALL}  # stage 1
    shared = mean([own[i] for i in ALL], [1 / 3] * 3)
    seen = [(shared, dict(own))]
    trace = plus(shared, -1, shared)  # zero
    for t in (1, 2, 3):  # stage 2
        trained = {i: problem.trained(i, shared, 0.1, 2) for i in ALL}
        if t == 2:
            own = trained
        gradient = plus(shared, -1, mean(list(trained.values()), [1 / 3] * 3))
        trace = plus(gradient, MOMENTUM, trace)
        shared = plus(shared, -ETA, plus(gradient, MOMENTUM, trace))
        seen.append((shared, dict(own)))
    return problem, made(problem), seen


@pytest.mark.parametrize("done", [1, 2, 3, 4])
def test_stage_one_averages_and_stage_two_takes_outer_steps_with_momentum(x64, by_hand, done):
    """Counts do not weigh: the paper's mean is uniform. Every second round synchronises."""
    problem, fed, seen = by_hand
    server, states, _ = oracle.rounds(fed, problem.world, [ALL] * done)
    shared, own = seen[done - 1]
    assert_adapter(server.theta.factors, shared, rtol=1e-6)
    for i in ALL:
        assert_adapter(states[i].own, own[i], rtol=1e-6)
        np.testing.assert_array_equal(states[i].weights, [0.5, 0.5])


def test_stage_three_fuses_by_the_weights_that_are_best_on_the_clients_examples(x64, by_hand):
    """The loss is quadratic in the two weights: its minimum is the solution of 2 x 2 equations."""
    problem, fed, seen = by_hand
    shared, own = seen[3]
    server, states, metrics = oracle.rounds(fed, problem.world, [[*ALL]] * 4 + [[1, 2]])
    assert_adapter(server.theta.factors, shared, rtol=1e-6)  # the server stands still
    for i in (1, 2):
        x, y = problem.rows(i)
        columns = np.stack([(x @ f.product).ravel() for f in (shared, own[i])], axis=1)
        best = np.linalg.lstsq(columns, (y - x @ problem.weight).ravel())[0]
        np.testing.assert_allclose(states[i].weights, best, atol=1e-3)
        base, theta = fed.deploy(server, states[i])
        w_s, w_p = np.asarray(states[i].weights)
        fused = problem.weight + w_s * shared.product + w_p * own[i].product
        np.testing.assert_allclose(base["w"] + adapter(theta.factors).product, fused, rtol=1e-6)
        np.testing.assert_allclose(metrics[-1]["loss"][i - 1], problem.loss(i, fused), rtol=1e-6)
        assert problem.loss(i, fused) < problem.loss(
            i, problem.weight + (shared.product + own[i].product) / 2
        )
    np.testing.assert_array_equal(states[0].weights, [0.5, 0.5])  # was not drawn
    sent = sum(x.nbytes for x in jax.tree.leaves(server.theta))
    assert [m["up"].tolist() for m in metrics] == [[sent] * 3] * 4 + [[0, 0]]


def test_without_synchronisation_a_client_keeps_the_adapter_of_stage_one(x64, by_hand):
    problem, _, seen = by_hand
    _, states, _ = oracle.rounds(made(problem, sync=None), problem.world, [ALL] * 3)
    assert_adapter(states[1].own, seen[0][1][1], rtol=1e-10)


@pytest.mark.parametrize("corner", [(0.3, -0.2), (1.7, 0.9)])
def test_the_compass_search_needs_no_gradient(x64, corner):
    """|w_1 - c_1| + 2 |w_2 - c_2| has none where it matters; more moves never are worse."""

    def f(w):
        return jnp.abs(w[0] - corner[0]) + 2 * jnp.abs(w[1] - corner[1])

    start = jnp.full(2, 0.5)
    found = [compass(f, start, moves) for moves in (0, 3, 10, 80)]
    values = [float(value) for _, value in found]
    assert values == sorted(values, reverse=True)
    assert values == [f(w) for w, _ in found]
    np.testing.assert_array_equal(found[0][0], start)
    np.testing.assert_allclose(found[-1][0], corner, atol=1e-6)
