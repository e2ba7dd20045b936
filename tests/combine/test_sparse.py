"""FLASC: sparse both ways."""

import algorithms
import jax
import numpy as np
import oracle
import pytest
from algorithms import DRAWS, UNEQUAL

from jaxfed import combine
from jaxfed.algorithms import scaffold

SIZE = 5 * 2 + 2 * 3 + 3  # of A, B and the bias in the little world


def inner():
    return algorithms.averaging(algorithms.LORA, 0.2)


def test_dense_both_ways_is_the_algorithm(x64):
    expected, _, _ = oracle.rounds(inner(), UNEQUAL, DRAWS[:2])
    fed = combine.flasc(inner(), down=1.0, up=1.0)
    found, _, metrics = oracle.rounds(fed, UNEQUAL, DRAWS[:2])
    oracle.assert_close(found, expected)
    assert set(metrics[0]["up"].tolist()) == {8 * SIZE}


def largest(tree, kept):
    """The tree's entries as a vector, all but the largest ones zero."""
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])
    flat[np.argsort(-np.abs(flat))[kept:]] = 0
    return flat


def test_a_round_is_the_papers(x64):
    """Clients get the largest of theta and send the largest of their change from it."""
    fed, seen = combine.flasc(inner(), down=0.5, up=0.25), []

    def verb(client, base, message, cohort):
        reply = oracle.loop(client, base, message, cohort)
        seen.append((message, reply.upload))
        return reply

    begun = fed.init(jax.random.key(0))
    server, states, metrics = oracle.rounds(fed, UNEQUAL, DRAWS[:2], verb)
    down, up = int(0.5 * SIZE), int(0.25 * SIZE)
    (message, upload), (second, _) = seen
    np.testing.assert_array_equal(largest(message, SIZE), largest(begun.theta, down))

    dense = inner().init(jax.random.key(0))._replace(theta=message)
    heard = []

    def hearing(client, base, message, cohort):
        heard.append(oracle.loop(client, base, message, cohort))
        return heard[-1]

    states = [()] * len(DRAWS[0])
    inner().run_round(dense, oracle.cohort(UNEQUAL, states, DRAWS[0], 0), hearing)
    for i in range(len(DRAWS[0])):
        change, sent = (jax.tree.map(lambda x, i=i: x[i], u) for u in (heard[0].upload, upload))
        np.testing.assert_allclose(largest(sent, SIZE), largest(change, up), atol=1e-12)
    after, _, _ = fed.run_round(begun, oracle.cohort(UNEQUAL, states, DRAWS[0], 0), oracle.loop)
    np.testing.assert_allclose(largest(second, SIZE), largest(after.theta, down), atol=1e-12)
    assert set(metrics[1]["down"].tolist()) == {12 * down}  # 8 for a value, 4 for its place
    assert set(metrics[1]["up"].tolist()) == {12 * up}
    deployed = fed.deploy(server, ())[1]
    np.testing.assert_array_equal(largest(deployed, SIZE), largest(server.theta, down))


def test_what_has_no_theta_to_cut_is_refused():
    task = algorithms.classifier(algorithms.WHOLE)
    two = scaffold(task, algorithms.WORK, learning_rate=0.2, clients=9)
    with pytest.raises(ValueError, match="another tree than theta"):
        oracle.rounds(combine.flasc(two, down=0.5, up=0.5), UNEQUAL, DRAWS[:1])
    with pytest.raises(ValueError, match="down=2"):
        combine.flasc(inner(), down=2, up=0.5)
