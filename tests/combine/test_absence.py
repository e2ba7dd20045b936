"""Clients that are unavailable or lost."""

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from algorithms import DRAWS, UNEQUAL

from jaxfed import combine

SENT = 8 * (5 * 3 + 3)  # bytes of theta in double precision


def scaffold():
    return algorithms.controlled(algorithms.WHOLE, 0.2)


def test_the_absent_change_nothing_and_cost_nothing(x64):
    """A round is that of the clients who answer, alone; the others keep their states."""
    absent = [4, 7]

    def share(i, t):
        return jnp.any(i == jnp.asarray(absent)).astype(float)

    ids = np.arange(9)
    rest = [i for i in ids if i not in absent]
    expected, kept, _ = oracle.rounds(scaffold(), UNEQUAL, [rest] * 2)
    for name, down in (("unavailable", 0), ("lost", 2 * SENT)):
        fed = combine.unreliable(scaffold(), **{name: share})
        server, states, metrics = oracle.rounds(fed, UNEQUAL, [ids] * 2)
        oracle.assert_close(server, expected)
        oracle.assert_close(states, kept)
        for found in metrics:
            assert found["skipped"].tolist() == [i in absent for i in ids]
            assert found["up"].tolist() == [0 if i in absent else 2 * SENT for i in ids]
            assert found["down"].tolist() == [down if i in absent else 2 * SENT for i in ids]


def test_a_round_without_anybody_changes_nothing(x64):
    fed = combine.unreliable(algorithms.ROWS["hetlora"](0.2), lost=1.0)
    server, _, metrics = oracle.rounds(fed, UNEQUAL, DRAWS[:2])
    oracle.assert_close(server, fed.init(jax.random.key(0)), rtol=0, atol=0)
    assert all(np.isfinite(found["loss"]).all() for found in metrics)


def test_clients_are_absent_as_often_as_asked():
    fed = combine.unreliable(algorithms.averaging(algorithms.WHOLE, 0.2), unavailable=0.3, lost=0.2)
    _, _, metrics = oracle.rounds(fed, UNEQUAL, [np.arange(9)] * 40)
    down, up = (np.mean([found[name] > 0 for found in metrics]) for name in ("down", "up"))
    assert abs(down - 0.7) < 0.1  # 360 draws: 4 standard errors
    assert abs(up - 0.7 * 0.8) < 0.1


def test_declared_bytes_stay_declared():
    fed = combine.unreliable(algorithms.ROWS["ffa"](0.2), lost=1.0)
    _, _, (found,) = oracle.rounds(fed, UNEQUAL, DRAWS[:1])
    assert set(found["down"].tolist()) == {4 * (2 * 3 + 3)}
    assert not found["up"].any()


def test_what_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"lost=1\.5"):
        combine.unreliable(algorithms.averaging(algorithms.WHOLE, 0.2), lost=1.5)


def test_a_lost_answer_may_hold_anything(x64):
    """And what the record says of the others is as it was."""
    inner = algorithms.averaging(algorithms.WHOLE, 0.2)

    def run_round(server, cohort, for_each_client):
        def verb(client, base, message, cohort):
            def broken(base, message, k):
                reply = client(base, message, k)
                wrong = jnp.where(k.id == 4, jnp.nan, 0)
                return reply._replace(upload=jax.tree.map(lambda x: x + wrong, reply.upload))

            return for_each_client(broken, base, message, cohort)

        server, states, metrics = inner.run_round(server, cohort, verb)
        return server, states, {**metrics, "beyond": jnp.inf}

    def lost(i, t):
        return (i == 4).astype(float)

    fed = combine.unreliable(inner._replace(run_round=run_round), lost=lost)
    found, _, (metrics,) = oracle.rounds(fed, UNEQUAL, [np.arange(9)])
    expected, _, _ = oracle.rounds(combine.unreliable(inner, lost=lost), UNEQUAL, [np.arange(9)])
    oracle.assert_close(found, expected)
    assert metrics["beyond"] == np.inf
