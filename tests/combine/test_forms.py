"""Algorithms whose clients train another form of the factors."""

import algorithms
import bilinear as bl
import jax
import numpy as np
import optax
import oracle
import pytest
from algorithms import DRAWS, LORA, SCRATCH, UNEQUAL

from jaxfed import combine, local, lowrank, tasks
from jaxfed.algorithms import fedavg
from jaxfed.lowrank import forms

RATE = 0.2


def inner(task):
    return fedavg(task, algorithms.WORK, client_optimizer=optax.sgd(RATE))


def test_fedpara_is_fedavg_over_both_pairs(x64):
    """The head [5, 3] and its bias as a function of the pairs, averaged without the form."""
    task = algorithms.classifier(SCRATCH)
    fed = combine.parametrised(inner, task, form=forms.HADAMARD)
    theta = fed.init(jax.random.key(0)).theta

    def loss(base, pairs, batch, key):
        (a, b), (c, d) = pairs["first"], pairs["second"]
        whole = {"head/kernel": (a @ b) * (c @ d), "head/bias": pairs["bias"]}
        return task.loss({}, lowrank.Theta(whole, {}), batch, key)

    def pairs(theta):
        f, g = (theta.factors[f"head/kernel{n}"] for n in ("", forms.SECOND))
        bias = theta.full["head/bias"]
        return {"first": (f.a, f.b), "second": (g.a, g.b), "bias": bias}

    by_hand = tasks.Task(lambda key: ({}, pairs(theta)), loss, None)
    server, states, _ = oracle.rounds(fed, UNEQUAL, DRAWS[:2])
    expected, _, _ = oracle.rounds(inner(by_hand), UNEQUAL, DRAWS[:2])
    oracle.assert_close(pairs(server.theta), expected.theta)
    (a, b), (c, d) = expected.theta["first"], expected.theta["second"]
    deployed = lowrank.merged(*fed.deploy(server, states[0]))
    np.testing.assert_allclose(deployed["head"]["kernel"], (a @ b) * (c @ d), rtol=1e-6)


def test_clients_of_pfedpara_keep_the_second_pair_and_send_the_first():
    fed = algorithms.ALGORITHMS["pfedpara"](RATE)
    server, states, metrics = oracle.rounds(fed, UNEQUAL, DRAWS[:1])
    size = 4 * (5 * 2 + 2 * 3 + 3)
    assert set(metrics[0]["up"].tolist()) == set(metrics[0]["down"].tolist()) == {size}
    second = f"head/kernel{forms.SECOND}"
    assert server.theta.factors[second].a is None
    one, other = (states[i].own.factors[second].a for i in DRAWS[0][:2])
    assert np.abs(one - other).max() > 1e-6


def test_an_adapter_of_two_pairs_begins_where_the_model_is():
    task = algorithms.classifier(LORA)
    fed = combine.parametrised(inner, task, form=forms.HADAMARD)
    begun = lowrank.merged(*fed.deploy(fed.init(jax.random.key(0)), ()))
    oracle.assert_close(begun, lowrank.merged(*task.init(jax.random.key(0))))


def test_what_has_no_factors_or_is_no_form_is_refused():
    task = algorithms.classifier(algorithms.WHOLE)
    fed = combine.parametrised(inner, task, form=forms.HADAMARD)
    with pytest.raises(ValueError, match="no factors are trained that could have a form"):
        fed.init(jax.random.key(0))
    with pytest.raises(TypeError, match="form is a function"):
        combine.parametrised(inner, task, form=forms.hadamard)


def test_a_step_of_fed_sb_along_the_first_gradient_is_the_best_of_its_rank(x64):
    """One client, one step: W <- W - eta s^2 G_1, with G_1 the best of rank 1 for G."""
    problem = bl.bilinear([8], rank=1)
    begun = problem.weight + problem.start.product
    form = forms.square(combine.gradient_of(problem.task, problem.world.examples))
    work = local.Work(8, steps=1, shuffle=False)

    def make(task):
        return fedavg(task, work, client_optimizer=optax.sgd(0.1))

    fed = combine.parametrised(make, problem.task, form=form)
    server, states, _ = oracle.rounds(fed, problem.world, [[0]])
    base, theta = fed.deploy(server, states[0])
    u, sigma, vt = np.linalg.svd(problem.gradient(0, begun), full_matrices=False)
    step = 0.1 * problem.start.scale**2 * sigma[0] * np.outer(u[:, 0], vt[0])
    np.testing.assert_allclose(lowrank.merge(base, theta)["w"], begun - step, rtol=1e-10)


def test_the_mean_of_cores_is_the_mean_of_the_products(x64):
    """Fed-SB of three unequal clients: the deployed change is that of the clients' models."""
    problem, seen = bl.bilinear([4, 6, 10], rank=2), []

    def make(task):
        work = local.Work(10, steps=3, shuffle=False)
        return fedavg(task, work, client_optimizer=optax.sgd(0.1))

    form = forms.square()
    fed = combine.parametrised(make, problem.task, form=form)

    def verb(client, base, message, cohort):
        reply = oracle.loop(client, base, message, cohort)
        trained = optax.tree.add(message, reply.upload)
        for i in range(3):
            one = jax.tree.map(lambda x, i=i: x[i], trained)
            seen.append(np.asarray(lowrank.merge(*form.plain(base, one))["w"]))
        return reply

    server, states, _ = oracle.rounds(fed, problem.world, [[0, 1, 2]], verb)
    found = lowrank.merge(*fed.deploy(server, states[0]))["w"]
    np.testing.assert_allclose(found, np.tensordot([0.2, 0.3, 0.5], seen, 1), rtol=1e-10)
