"""FedSA-LoRA: A is shared, B and the classifier are not."""

import algorithms
import jax
import numpy as np
import optax
import oracle
from bilinear import bilinear

from jaxfed import local
from jaxfed.algorithms import fedper, fedsa
from jaxfed.simulation import ledger

WORK = local.Work(8, epochs=2, shuffle=False)
SGD = {"client_optimizer": optax.sgd(0.1)}


def test_a_is_what_crosses_the_wire_and_b_and_the_classifier_what_is_kept():
    """LORA trains factors of one kernel, and the bias of the head whole."""
    fed = fedsa(algorithms.classifier(algorithms.LORA), WORK, **SGD)
    server = fed.init(jax.random.key(0))
    state = fed.init_client(server, jax.random.key(0))
    (f,), (own,) = server.theta.factors.values(), state.own.factors.values()
    assert (f.b, own.a) == (None, None)
    assert f.a.shape[-1] == own.b.shape[0] == 2
    assert server.theta.full == {"head/bias": None}
    assert state.own.full["head/bias"].shape == (algorithms.CLASSES,)
    cohort = oracle.cohort(algorithms.UNEQUAL, [state] * 2, [0, 1], 0)
    assert ledger.most(fed, server, cohort)[0] == ledger.Wire(f.a.nbytes, f.a.nbytes)


def test_it_is_fedper_with_the_up_factors_personal(x64):
    problem, draws = bilinear([4, 6, 5]), [[0, 1], [1, 2]]
    ours, theirs = (
        fedsa(problem.task, WORK, **SGD),
        fedper(problem.task, WORK, personal="/b$", **SGD),
    )
    found, expected = (oracle.rounds(fed, problem.world, draws) for fed in (ours, theirs))
    oracle.assert_close(found[:2], expected[:2])
    assert np.any(found[1][0].own.factors["w"].b != found[1][1].own.factors["w"].b)


def test_with_a_common_start_all_heads_are_the_servers_first():
    fed = fedsa(algorithms.classifier(algorithms.LORA), WORK, common_start=True, **SGD)
    server = fed.init(jax.random.key(0))
    states = [fed.init_client(server, jax.random.key(i)) for i in range(2)]
    oracle.assert_close(states[0], states[1], rtol=0, atol=0)
    theta = algorithms.classifier(algorithms.LORA).init(jax.random.key(0))[1]
    oracle.assert_close(fed.deploy(server, states[0])[1], theta, rtol=0, atol=0)
