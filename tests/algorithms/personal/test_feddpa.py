"""FedDPA: the two variants against loops in numpy."""

import jax
import numpy as np
import one_layer
import optax
import oracle
import pytest
from bilinear import Adapter, adapter, assert_adapter, bilinear, mean

from jaxfed import local
from jaxfed.algorithms import fedavg, feddpa_f, feddpa_instances, feddpa_t
from jaxfed.lowrank import Factors

COUNT = np.array([4, 6, 5])
DRAWS = [[0, 1], [1, 2], [2, 0]]
A = 0.3
WORK, PERSONAL = (local.Work(8, epochs=n, shuffle=False) for n in (2, 3))


def made(variant, problem, **options):
    return variant(
        problem.task,
        WORK,
        personal_work=PERSONAL,
        client_optimizer=optax.sgd(0.1),
        personal_optimizer=optax.sgd(0.2),
        **{"a": A, **options},
    )


def deployed(fed, server, state):
    base, theta = fed.deploy(server, state)
    return base["w"] + adapter(theta.factors).product


def test_feddpa_f_is_fedavg_and_then_training_of_a_copy(x64):
    """Clients 2 and 0 are drawn after the federation, client 0 twice, and client 1 never."""
    problem = bilinear(COUNT)
    fed = made(feddpa_f, problem, rounds=3)
    server, states, metrics = oracle.rounds(fed, problem.world, [*DRAWS, [2, 0], [0]])
    plain = fedavg(problem.task, WORK, client_optimizer=optax.sgd(0.1))
    federated, _, _ = oracle.rounds(plain, problem.world, DRAWS)
    oracle.assert_close(server.theta, federated.theta, rtol=1e-12)
    shared = adapter(federated.theta.factors)
    for i, drawn in ((0, 2), (1, 0), (2, 1)):
        own = problem.trained(i, shared, 0.2, 3 * drawn)
        expected = problem.weight + (1 - A) * shared.product + A * own.product
        np.testing.assert_allclose(deployed(fed, server, states[i]), expected, rtol=1e-9)
    sent = sum(x.nbytes for x in jax.tree.leaves(server.theta))
    assert [m["up"].tolist() for m in metrics] == [[sent, sent]] * 3 + [[0, 0], [0]]


def test_feddpa_t_trains_the_local_adapter_in_the_mixture_and_the_global_one_alone(x64):
    problem = bilinear(COUNT)
    fed = made(feddpa_t, problem, rank=1, alpha=0.8)
    server, states, _ = oracle.rounds(fed, problem.world, DRAWS)
    shared = problem.start
    begun = adapter(fed.init_client(fed.init(jax.random.key(0)), jax.random.key(1)))
    own = dict.fromkeys(range(3), begun)
    for ids in DRAWS:
        trained = []
        for i in ids:
            weighed = own[i]._replace(scale=A * own[i].scale)
            weighed = problem.trained(i, weighed, 0.2, 3, frozen=(1 - A) * shared.product)
            own[i] = weighed._replace(scale=own[i].scale)
            trained.append(problem.trained(i, shared, 0.1, 2))
        shared = mean(trained, COUNT[ids] / COUNT[ids].sum())
    assert_adapter(server.theta.factors, shared, rtol=1e-6)
    for i in range(3):
        assert_adapter(states[i], own[i], rtol=1e-6)
        expected = problem.weight + (1 - A) * shared.product + A * own[i].product
        np.testing.assert_allclose(deployed(fed, server, states[i]), expected, rtol=1e-6)


@pytest.mark.parametrize(("a", "run"), [(0.0, "global"), (1.0, "local")])
def test_at_its_ends_the_weight_leaves_one_adapter(x64, a, run):
    problem = bilinear(COUNT)
    fed = made(feddpa_t, problem, rank=2, a=a)
    server = fed.init(jax.random.key(0))
    own = {"w": Factors(np.ones((3, 2)), np.ones((2, 2)), 2.0)}
    expected = problem.start if run == "global" else Adapter(np.ones((3, 2)), np.ones((2, 2)), 2.0)
    np.testing.assert_allclose(
        deployed(fed, server, own), problem.weight + expected.product, rtol=1e-12
    )


def test_feddpa_f_mixes_whole_weights_too():
    """(1 - a) of the server's, a of the client's, which keeps what its own has more."""
    fed = made(feddpa_f, bilinear(COUNT), rounds=1)
    server = fed.init(jax.random.key(0))
    server = server._replace(theta=server.theta._replace(full={"bias": np.full(2, 5.0)}))
    own = fed.init_client(server, jax.random.key(0))._replace(full={"bias": np.full(2, 10.0)})
    _, theta = fed.deploy(server, own)
    np.testing.assert_allclose(theta.full["bias"], (1 - A) * 5 + A * (5 + 10))


@pytest.mark.parametrize("variant", [feddpa_f, feddpa_t])
def test_a_weight_that_is_no_share_is_refused(variant):
    options = {"rounds": 1} if variant is feddpa_f else {"rank": 1}
    with pytest.raises(ValueError, match=r"a=1\.5"):
        made(variant, bilinear(COUNT), a=1.5, **options)


@pytest.mark.full
def test_instance_wise_weights_are_a_times_the_mean_cosine_to_what_a_client_has_seen(x64):
    """The last layer of a model of one layer reads the images themselves."""
    fed = feddpa_instances(
        one_layer.task(),
        WORK,
        rank=1,
        a=A,
        instances=4,
        personal_work=PERSONAL,
        client_optimizer=optax.sgd(0.1),
        personal_optimizer=optax.sgd(0.2),
    )
    server, states, _ = oracle.rounds(fed, one_layer.WORLD, [[4, 7]])
    (x, _), (mine, _) = one_layer.rows(2), one_layer.rows(4)
    seen = np.asarray(states[4].seen)
    assert all(np.any(np.all(np.isclose(row, mine), axis=1)) for row in seen)
    cosine = (x @ seen.T) / np.linalg.norm(x, axis=1)[:, None] / np.linalg.norm(seen, axis=1)
    w = A * np.mean(cosine, axis=1)[:, None]
    weight, _, _, s = one_layer.start()
    shared = one_layer.added(one_layer.pair(server.theta), s, x)
    own = one_layer.added(one_layer.pair(states[4].own), 1.0, x)
    expected = x @ weight + server.theta.full[one_layer.BIAS] + (1 - w) * shared + w * own
    batch = {"image": x, "label": np.zeros(len(x), np.int32), "mask": np.ones(len(x))}
    deployed = fed.deploy(server, states[4])
    np.testing.assert_allclose(fed.task.predict(*deployed, batch), expected, rtol=1e-6)
    losses = optax.softmax_cross_entropy_with_integer_labels(expected, batch["label"])
    np.testing.assert_allclose(fed.task.evaluate(*deployed, batch)["loss"], losses.sum(), rtol=1e-6)


def test_without_an_example_seen_instance_wise_weights_leave_the_shared_adapter(x64):
    options = {"rank": 1, "a": A, "client_optimizer": optax.sgd(0.1)}
    options |= {"personal_optimizer": optax.sgd(0.1), "personal_work": PERSONAL}
    fed = feddpa_instances(one_layer.task(), WORK, instances=2, **options)
    server = fed.init(jax.random.key(0))
    deployed = fed.deploy(server, fed.init_client(server, jax.random.key(1)))
    x, _ = one_layer.rows(3)
    batch = {"image": x, "mask": np.ones(len(x))}
    expected = one_layer.task().predict(server.base, server.theta, batch)
    np.testing.assert_allclose(fed.task.predict(*deployed, batch), expected, rtol=1e-6)
