"""The ledger: bytes of a round by the shapes that cross the wire, and who pays for merges."""

from typing import NamedTuple

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfed import Algorithm, Reply, trees
from jaxfed.simulation import ledger

pytestmark = pytest.mark.quick

MERGE, BASE = 40, 100  # bytes

schedules = st.lists(
    st.tuples(st.booleans(), st.sets(st.integers(0, 5), min_size=1)), min_size=1, max_size=12
)


def totals(rule, rounds, room=BASE):
    """The extra bytes of each round: (is there a merge, who takes part)."""
    owed, paid = np.zeros(6, np.int64), []
    for merging, ids in rounds:
        extra, owed = rule(owed, np.array(sorted(ids)), MERGE * merging, BASE, room)
        paid.append(extra)
    return paid


@settings(max_examples=100)
@given(schedules)
def test_a_lazy_client_pays_for_what_it_missed_when_it_is_next_drawn(rounds):
    """Simulated by hand: each client knows how many merges it has seen."""
    knows, merges, expected = [0] * 6, 0, []
    for merging, ids in rounds:
        expected.append(sum(min((merges - knows[i]) * MERGE, BASE) for i in ids))
        merges += merging
        for i in ids:
            knows[i] = merges
    assert totals(ledger.lazy, rounds) == expected


def test_a_lazy_client_fetches_no_more_than_its_message_leaves_of_the_model():
    """And is then no longer late."""
    rounds = [(True, {0}), (True, {0}), (True, {1}), (False, {1})]
    assert totals(ledger.lazy, rounds) == [0, 0, 2 * MERGE, 0]
    assert totals(ledger.lazy, rounds, room=np.array([25])) == [0, 0, 25, 0]
    assert totals(ledger.lazy, rounds, room=np.array([0])) == [0, 0, 0, 0]


@settings(max_examples=100)
@given(schedules)
def test_an_eager_merge_goes_at_once_to_all_who_are_absent(rounds):
    expected = [sum(MERGE for i in range(6) if merging and i not in ids) for merging, ids in rounds]
    assert totals(ledger.eager, rounds) == expected


@settings(max_examples=50)
@given(schedules)
def test_lazy_never_costs_more_than_eager(rounds):
    assert sum(totals(ledger.lazy, rounds)) <= sum(totals(ledger.eager, rounds))


class Server(NamedTuple):
    base: jax.Array
    theta: jax.Array


def test_a_round_of_two_exchanges_adds_them_up_by_their_dtypes():
    """Down 4 float32 and then 2 bfloat16; up 4 float32, and then one int8."""

    def first(base, message, k):
        return Reply(message, (), {})

    def second(base, message, k):
        return Reply(message[:1].astype(jnp.int8), (), {})

    def run_round(server, cohort, for_each_client):
        for_each_client(first, server.base, server.theta, cohort)
        reply = for_each_client(second, (), server.theta[:2].astype(jnp.bfloat16), cohort)
        return server, reply.state, {}

    server = Server(jnp.zeros((100, 100)), jnp.zeros(4))
    fed = Algorithm(lambda key: server, lambda server, key: (), run_round, None)
    cohort = oracle.cohort(algorithms.UNEQUAL, [()] * 3, [0, 1, 2], 0)
    assert ledger.most(fed, server, cohort)[0] == ledger.Wire(down=16 + 4, up=16 + 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8])
def test_bytes_are_numbers_times_their_width(dtype):
    tree = {"a": jnp.zeros((3, 4), dtype), "b": (jnp.zeros(5, dtype), ())}
    assert trees.size(tree) == 17
    assert trees.nbytes(tree) == 17 * jnp.dtype(dtype).itemsize
    assert trees.nbytes(trees.shapes(tree)) == trees.nbytes(tree)


def test_merges_that_never_come_are_a_warning():
    fed = algorithms.ALGORITHMS["fedloru"](algorithms.RATE)  # merges every 2 rounds
    server = jax.eval_shape(fed.init, jax.random.key(0))
    with pytest.warns(UserWarning, match="no merge is due in 2 rounds"):
        ledger.check_merges(fed, server, 2)


@pytest.mark.filterwarnings("error")
def test_merges_that_come_are_none():
    for name in ("fedloru", "fedavg"):
        fed = algorithms.ALGORITHMS[name](algorithms.RATE)
        ledger.check_merges(fed, jax.eval_shape(fed.init, jax.random.key(0)), 3)
