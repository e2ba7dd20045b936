"""What holds for every algorithm, over the one table of them."""

from functools import cache

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from algorithms import ALGORITHMS, COHORT, DRAWS, RATE

from jaxfed import ledger

WORLDS = {"unequal": algorithms.UNEQUAL, "uniform": algorithms.UNIFORM}
MACHINES = {  # the population, and how the engine runs it
    "one device": ("unequal", {}),
    "chunks": ("uniform", {"chunk": 3, "uniform": True}),
    "four devices": ("uniform", {"devices": 4, "uniform": True}),
    "four devices, chunks": ("unequal", {"devices": 4, "chunk": 1}),
}


@pytest.fixture(params=ALGORITHMS)
def name(request):
    return request.param


@cache
def looped(name, population):
    with jax.enable_x64(True):
        return oracle.rounds(ALGORITHMS[name](RATE), WORLDS[population], DRAWS)


@cache
def engined(name, machine, fused=False):
    population, options = MACHINES[machine]
    with jax.enable_x64(True):
        algorithm = ALGORITHMS[name](RATE)
        return oracle.engine_rounds(algorithm, WORLDS[population], DRAWS, fused=fused, **options)


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_the_engine_computes_what_a_loop_over_clients_computes(name, machine):
    population, options = MACHINES[machine]
    server, states, metrics, _ = engined(name, machine)
    expected_server, expected_states, expected_metrics = looped(name, population)
    oracle.assert_close(server, expected_server)
    oracle.assert_close(states, expected_states)
    order = oracle.plan(WORLDS[population], DRAWS, options.get("devices", 1)).slot
    for ids, slots, found, expected in zip(DRAWS, order, metrics, expected_metrics, strict=True):
        place = [list(slots).index(i) for i in ids]
        for key, value in expected.items():
            ours = found[key] if jnp.ndim(found[key]) == 0 else found[key][np.array(place)]
            np.testing.assert_allclose(ours, value, rtol=1e-6, atol=1e-8, err_msg=key)


@pytest.mark.slow
def test_one_trace_serves_all_rounds(name):
    *_, traced = engined(name, "four devices, chunks")
    assert traced == 1
    *_, traced = engined(name, "one device")
    assert traced == 1


@pytest.mark.slow
def test_shapes_and_dtypes_are_kept(name):
    server, states, *_ = engined(name, "one device")
    with jax.enable_x64(True):
        algorithm = ALGORITHMS[name](RATE)
        first = jax.eval_shape(algorithm.init, jax.random.key(0))
        state = jax.eval_shape(algorithm.init_client, first, jax.random.key(1))
    assert ledger.shapes(server) == first
    for kept in states.values():
        assert ledger.shapes(kept) == state


@pytest.mark.slow
def test_fused_rounds_are_single_rounds(name):
    machine = "one device"
    server, states, metrics, _ = engined(name, machine, fused=True)
    single_server, single_states, single_metrics, _ = engined(name, machine)
    oracle.assert_close((server, states), (single_server, single_states))
    oracle.assert_close(metrics, single_metrics)


@cache
def on_one_device(name, rate=RATE):
    """A round that any plan of one round may be given to."""
    return oracle.on_engine(ALGORITHMS[name](rate), algorithms.UNEQUAL)


def one_round(on, plan, examples=None):
    server, states = jax.tree.map(jnp.copy, (on.server, on.states))
    return on.step(server, states, on.examples if examples is None else examples, plan)


def first_round():
    return oracle.plan(algorithms.UNEQUAL, DRAWS[:1])


@pytest.mark.slow
def test_a_client_of_weight_zero_is_inert(name):
    """Whatever the last client of a cohort owns, it changes nothing if it is not present."""
    on, now = on_one_device(name), first_round()
    now = now._replace(
        present=np.where(np.arange(COHORT) == COHORT - 1, 0, now.present),
        slot=np.where(np.arange(COHORT) == COHORT - 1, algorithms.CLIENTS, now.slot),
    )
    other = now._replace(**{f: getattr(now, f).copy() for f in ("id", "start", "count")})
    other.id[0, -1], other.start[0, -1], other.count[0, -1] = 4, 0, 12
    (server, states, _), (others, kept, _) = one_round(on, now), one_round(on, other)
    assert not np.array_equal(now.count, other.count)
    oracle.assert_close((server, states), (others, kept), rtol=0, atol=0)


@pytest.mark.slow
def test_the_order_of_a_cohort_is_irrelevant(name):
    on, now = on_one_device(name), first_round()
    turned = now._replace(
        **{
            field: np.roll(getattr(now, field), 3, axis=1)
            for field in ("id", "slot", "start", "count", "present")
        }
    )
    (server, states, _), (others, kept, _) = one_round(on, now), one_round(on, turned)
    oracle.assert_close((server, states), (others, kept), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_learning_rate_zero_leaves_theta_as_it_was(name):
    """In a round without a merge; combine's tests say what a merge does."""
    still, moving = on_one_device(name, rate=0.0), on_one_device(name)
    server, _, _ = one_round(still, first_round())
    oracle.assert_close((server.base, server.theta), (still.server.base, still.server.theta), 0, 0)
    moved, _, _ = one_round(moving, first_round())
    assert all(
        jnp.any(x != y)
        for x, y in zip(
            jax.tree.leaves(moved.theta), jax.tree.leaves(moving.server.theta), strict=True
        )
    )


def test_what_is_deployed_is_a_model_that_the_task_can_run(name):
    algorithm = ALGORITHMS[name](RATE)
    server = jax.eval_shape(algorithm.init, jax.random.key(0))
    state = jax.eval_shape(algorithm.init_client, server, jax.random.key(0))
    base, theta = jax.eval_shape(algorithm.deploy, server, state)
    batch = {
        n: jax.ShapeDtypeStruct((4, *x.shape[1:]), x.dtype)
        for n, x in algorithms.UNEQUAL.examples.items()
    } | {"mask": jax.ShapeDtypeStruct((4,), jnp.float32)}
    sums = jax.eval_shape(algorithms.classifier(algorithms.WHOLE).evaluate, base, theta, batch)
    assert {n: s.shape for n, s in sums.items()} == {"loss": (), "accuracy": ()}


def test_a_round_can_be_weighed_without_running_it(name):
    """Bytes up are those of what is trained, twice for SCAFFOLD; down likewise."""
    algorithm = ALGORITHMS[name](RATE)
    server = jax.eval_shape(algorithm.init, jax.random.key(0))
    state = jax.eval_shape(algorithm.init_client, server, jax.random.key(0))
    states = [jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state)] * COHORT
    wire = ledger.wire(algorithm, server, oracle.cohort(algorithms.UNEQUAL, states, DRAWS[0], 0))
    times = 2 if "scaffold" in name else 1
    assert wire == ledger.Wire(*[times * ledger.nbytes(server.theta)] * 2)
