"""The account of a round: bytes as declared, by the branch that runs; padding never in a mean."""

from typing import NamedTuple

import algorithms
import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from jaxfed import Algorithm, Reply, algorithm, trees
from jaxfed.simulation import engine, ledger

WORLD = algorithms.UNEQUAL
NUMBERS = 6


class Server(NamedTuple):
    base: jax.Array
    theta: jax.Array


def sender(**options):
    def client(base, message, k):
        change = jnp.full(NUMBERS, k.id.astype(float)) + message[0] * 0
        return Reply(change, (), {"loss": k.weight}, **options)

    return client


def made(run_round):
    server = Server(jnp.zeros(()), jnp.zeros(NUMBERS))
    return Algorithm(
        lambda key: server, lambda server, key: (), run_round, lambda s, _: (s.base, s.theta)
    )


def rounds(fed, draws, devices=1):
    on = oracle.on_engine(fed, WORLD, devices=devices, chunk=1)
    return oracle.engine_rounds(on, WORLD, draws)


# ---------------------------------------------------------------------- padding


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_median_sees_no_padded_client(devices):
    """Five clients on two or four devices: there are idle places."""

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(sender(), server.base, server.theta, cohort)
        assert reply.upload.shape == (5, NUMBERS)
        assert cohort.weight.shape == (5,)
        middle = jnp.median(reply.upload, axis=0)
        return server._replace(theta=middle), reply.state, reply.metrics

    server, _, _ = rounds(made(run_round), [[0, 3, 8, 6, 1]], devices)
    np.testing.assert_array_equal(server.theta, 3)


def test_clients_that_do_not_divide_over_devices_still_need_one_all_reduce():
    def run_round(server, cohort, for_each_client):
        reply = for_each_client(sender(), server.base, server.theta, cohort)
        mean = cohort.weight.astype(reply.upload.dtype) @ reply.upload
        return server._replace(theta=mean), (), {}

    on = oracle.on_engine(made(run_round), WORLD, devices=4)
    now = oracle.plan(WORLD, [[0, 3, 8, 6, 1]], devices=4)
    text = on.step.lower(on.server, on.states, on.examples, now).compile().as_text()
    assert "all-to-all" not in text
    assert f"f32[{NUMBERS}]" in "".join(x for x in text.splitlines() if " all-reduce(" in x)


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("name", sorted(algorithm.RESERVED - {algorithm.ACCOUNT}))
@pytest.mark.parametrize("whose", ["client", "round"])
def test_a_metric_with_a_reserved_name_is_refused(name, whose):
    def client(base, message, k):
        return Reply(message, (), {name: k.weight} if whose == "client" else {})

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        more = {} if whose == "client" else {name: jnp.zeros(())}
        return server, reply.state, {**reply.metrics, **more}

    with pytest.raises(ValueError, match=f"the metric '{name}' has a name that records use"):
        rounds(made(run_round), [[0, 1]])


# ---------------------------------------------------------------------- bytes


def test_what_a_client_declares_is_counted_in_place_of_its_arrays():
    def client(base, message, k):
        received = {"mask": jnp.sum(jnp.arange(4) < k.id), "always": 3}
        return Reply(message, (), {}, received=received, sent=k.id)

    def run_round(server, cohort, for_each_client):
        for_each_client(client, server.base, server.theta, cohort)
        return server, (), {}  # the account needs no metrics to be handed on

    ids = [5, 2, 0]
    place = oracle.plan(WORLD, [ids]).id[0]
    _, _, metrics = rounds(made(run_round), [ids])
    assert metrics[0]["up"].tolist() == place.tolist()
    assert metrics[0]["down"].tolist() == [min(i, 4) + 3 for i in place]


@pytest.mark.parametrize("by", ["round", "server"])
@pytest.mark.parametrize("form", ["cond", "switch"])
def test_of_two_conditional_exchanges_the_one_that_runs_is_counted(by, form):
    """Two floats in even rounds, six in odd ones; the condition may be known to the server only."""

    def run_round(server, cohort, for_each_client):
        def few(server):
            return for_each_client(sender(), server.base, server.theta[:2], cohort)

        def all_of_it(server):
            return for_each_client(sender(), server.base, server.theta, cohort)

        odd = cohort.round % 2 if by == "round" else server.base.astype(int) % 2
        if form == "cond":
            reply = jax.lax.cond(odd == 1, all_of_it, few, server)
        else:
            reply = jax.lax.switch(odd, [few, all_of_it], server)
        return server._replace(base=server.base + 1), reply.state, reply.metrics

    _, _, metrics = rounds(made(run_round), [[0, 1, 2]] * 4, devices=2)
    assert [m["down"].tolist() for m in metrics] == [[8] * 3, [24] * 3] * 2
    assert [m["up"].tolist() for m in metrics] == [[24] * 3] * 4


def test_a_conditional_exchange_that_hands_on_no_metrics_is_refused():
    def run_round(server, cohort, for_each_client):
        def exchange():
            return for_each_client(sender(), server.base, server.theta, cohort).upload

        upload = jax.lax.cond(cohort.round > 0, exchange, exchange)
        return server._replace(theta=upload[0]), (), {}

    with pytest.raises(TypeError, match=r"must pass on its reply\.metrics"):
        rounds(made(run_round), [[0, 1]])


def test_two_exchanges_add_up_whatever_is_handed_on():
    def run_round(server, cohort, for_each_client):
        first = for_each_client(sender(), server.base, server.theta, cohort)
        second = for_each_client(sender(sent=1), server.base, server.theta[:1], cohort)
        return server, (), second.metrics | {"first": first.upload.mean()}

    _, _, metrics = rounds(made(run_round), [[0, 1]])
    assert (metrics[0]["down"].tolist(), metrics[0]["up"].tolist()) == ([28, 28], [25, 25])


@pytest.mark.parametrize("pieces", [[5], [2**31 - 1] * 7, [2**30, 3, 2**30 + 1], []])
def test_declared_bytes_add_up_beyond_two_gib(pieces):
    traced = jax.jit(lambda *p: trees.byte_count((), list(p)))(*map(jnp.int32, pieces))
    assert int(trees.as_number(traced)) == sum(pieces)
    both = trees.added([traced, traced, traced])
    assert int(trees.as_number(both)) == 3 * sum(pieces)


def test_the_bytes_of_large_arrays_are_counted_without_overflow():
    large = jax.ShapeDtypeStruct((3 * 2**30,), jnp.float32)
    assert int(trees.as_number(trees.byte_count(large))) == 12 * 2**30


@pytest.mark.parametrize(("declared", "error"), [(1.5, TypeError), (2**31, ValueError)])
def test_declared_bytes_that_are_no_int32_are_refused(declared, error):
    with pytest.raises(error, match="declared bytes"):
        trees.byte_count((), declared)


# ---------------------------------------------------------------------- before a run


def first_round(name):
    """(most, exactly?, mean) bytes before the run, and the account of its first round."""
    fed = algorithms.ALGORITHMS[name](algorithms.RATE)
    on, now = oracle.on_engine(fed, WORLD), oracle.plan(WORLD, algorithms.DRAWS[:1])
    verb = engine.for_each_client(engine.machine(1), uniform=False)
    step = engine.rounds(fed, verb, WORLD.seed, WORLD.most)
    arguments = (on.server, on.states, on.examples, now)
    ids = algorithms.DRAWS[0]
    states = [jax.tree.map(lambda s: s[0], on.states)] * len(ids)
    most = ledger.most(fed, on.server, oracle.cohort(WORLD, states, ids, 0))
    mean = ledger.mean(step, *arguments)
    _, _, metrics = oracle.engine_rounds(on, WORLD, algorithms.DRAWS[:1])
    return *most, mean, metrics[0]


def test_ranks_are_counted_alike_before_a_run_and_in_it():
    """HETLoRA's ranks are of the client: the record has what the description promised."""
    most, exact, mean, record = first_round("hetlora")
    assert not exact
    assert mean == ledger.Wire(round(record["down"].mean()), round(record["up"].mean()))
    assert mean.down < most.down


def test_arrays_alone_are_counted_exactly_before_a_run():
    most, exact, mean, record = first_round("fedlora")
    assert exact
    assert most == mean == ledger.Wire(int(record["down"][0]), int(record["up"][0]))


def test_a_wrapper_can_ask_for_the_shapes_of_uploads():
    """SCAFFOLD uploads a change of theta and one of its control variate."""
    fed = algorithms.ALGORITHMS["scaffold"](algorithms.RATE)
    server = jax.eval_shape(fed.init, jax.random.key(0))
    state = fed.init(jax.random.key(0)).c
    cohort = oracle.cohort(WORLD, [state] * 2, [0, 1], 0)
    (upload,) = algorithm.upload_shapes(fed, server, cohort)
    for part in upload:
        chex.assert_trees_all_equal_shapes_and_dtypes(part, server.theta)


def test_a_round_without_an_exchange_is_refused():
    with pytest.raises(TypeError, match="no exchange"):
        rounds(made(lambda server, cohort, verb: (server, (), {})), [[0, 1]])


# ---------------------------------------------------------------------- what nobody trains


class Parts(NamedTuple):
    base: dict
    theta: dict


def of_parts(trained, kept=()):
    """Averaging of these parts of theta; clients keep `kept`."""

    def client(base, message, k):
        return Reply({name: message[name] + 1 for name in trained}, k.state, {})

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        moved = {name: jnp.mean(x, axis=0) for name, x in reply.upload.items()}
        return server._replace(theta=server.theta | moved), reply.state, reply.metrics

    server = Parts({}, {"a": jnp.zeros(2), "b": jnp.zeros(3)})
    return Algorithm(
        lambda key: server, lambda server, key: kept, run_round, lambda s, _: (s.base, s.theta)
    )


def test_a_part_that_no_round_trains_is_a_warning():
    with pytest.warns(UserWarning, match=r"^b: selected to be trained, but the algorithm hands it"):
        rounds(of_parts("a"), [[0, 1]])


@pytest.mark.parametrize("fed", [of_parts("ab"), of_parts("a", jnp.zeros(()))])
@pytest.mark.filterwarnings("error::UserWarning")
def test_what_is_trained_or_kept_by_clients_is_none(fed):
    rounds(fed, [[0, 1]])
