"""The engine: what a client is given, where clients stand, and what the compiled round holds."""

import re
from functools import partial
from itertools import pairwise, permutations
from typing import NamedTuple

import algorithms
import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxprs import shapes

from jaxfed import Algorithm, Reply, local, lowrank, models, tasks
from jaxfed.algorithm import Cohort, Data
from jaxfed.algorithms import fedavg
from jaxfed.simulation import engine, tuning

pytestmark = pytest.mark.usefixtures("optimised")  # it looks into what was compiled

# What a client is given.


class Server(NamedTuple):
    base: jax.Array
    theta: jax.Array


def echo():
    """An algorithm whose clients keep what they were told, and how often they took part."""

    def init_client(server, key):
        blank = {n: jnp.zeros((), jnp.int32) for n in ("times", "id", "start", "count", "round")}
        return blank | {"weight": jnp.zeros(()), "draw": jnp.zeros(())}

    def client(base, theta, k):
        state = {
            "times": k.state["times"] + 1,
            **{"id": k.id, "start": k.data.start, "count": k.count, "round": k.round},
            **{"weight": k.weight, "draw": jax.random.uniform(k.key)},
        }
        upload = theta / (k.id - 3).astype(float)  # infinite for client 3
        return Reply(upload, state, {"loss": jnp.zeros(())})

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        draw = jax.random.uniform(cohort.round_key)
        return server, reply.state, {**reply.metrics, "server_draw": draw}

    return Algorithm(lambda key: Server(jnp.zeros(2), jnp.ones(2)), init_client, run_round, None)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_client_is_given_what_the_plan_says_and_keeps_its_state(devices):
    world = algorithms.UNEQUAL
    draws = [[0, 3, 5, 8, 1], [3, 7, 5, 2, 6]]
    on = oracle.on_engine(echo(), world, devices=devices, chunk=1)
    _, states, metrics = oracle.engine_rounds(on, world, draws)
    assert [int(s["times"]) for s in states.values()] == [1, 1, 1, 2, 0, 2, 1, 1, 1]
    for i, s in states.items():
        if not s["times"]:
            continue
        t = max(t for t, ids in enumerate(draws) if i in ids)
        told = [int(s[n]) for n in ("id", "start", "count", "round")]
        assert told == [i, world.start[i], world.count[i], t]
        share = world.count[i] / world.count[draws[t]].sum()
        np.testing.assert_allclose(s["weight"], share, rtol=1e-6)
    drawn = [float(s["draw"]) for s in states.values() if s["times"]]
    assert len(set(drawn)) == len(drawn)
    assert metrics[0]["server_draw"] != metrics[1]["server_draw"]
    finite = [set(np.flatnonzero(~m["finite"])) for m in metrics]
    places = oracle.plan(world, draws, devices).id
    assert [{int(ids[p]) for p in bad} for ids, bad in zip(places, finite, strict=True)] == [
        {3}
    ] * 2


def test_randomness_is_a_function_of_seed_round_and_client():
    """Not of who else is drawn, of the place in the cohort, or of the rounds before."""

    def draws(seed, ids, first):
        world = algorithms.UNEQUAL._replace(seed=seed)
        on = oracle.on_engine(echo(), world)
        _, states, _ = on.step(
            on.server, on.states, on.examples, oracle.plan(world, [ids], first=first)
        )
        return np.asarray(states["draw"])

    base = draws(3, [0, 1, 2], 4)
    np.testing.assert_array_equal(draws(3, [7, 2, 0], 4)[[0, 2]], base[[0, 2]])
    for other in (draws(4, [0, 1, 2], 4), draws(3, [0, 1, 2], 5)):
        assert (other[:3] != base[:3]).all()


@pytest.mark.parametrize(("chunk", "vmapped"), [(1, False), (2, True), (None, True)])
def test_a_client_that_is_computed_alone_is_not_vmapped(chunk, vmapped):
    """An axis of one client would make it slower: products of matrices become batched ones."""

    @jax.custom_batching.custom_vmap
    def seen(x):
        return x

    seen.def_vmap(lambda size, batched, x: (x + 1, True))

    def client(base, theta, k):
        return Reply(theta, k.state, {"loss": seen(0.0 * k.weight)})

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        return server, reply.state, reply.metrics

    def begin(key):
        return Server(jnp.zeros(2), jnp.ones(2))

    made = Algorithm(begin, lambda server, key: {}, run_round, None)
    on = oracle.on_engine(made, algorithms.UNEQUAL, chunk=chunk)
    *_, metrics = oracle.engine_rounds(on, algorithms.UNEQUAL, [[0, 3, 5, 8]])
    np.testing.assert_array_equal(metrics[0]["loss"], vmapped)


# Where clients stand.


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 8))
def test_clients_are_dealt_evenly_and_by_size(count, devices):
    count = np.array(count)
    order = engine.deal(count, devices)
    assert sorted(order) == list(range(len(count)))
    width = -(-len(count) // devices)
    blocks = [order[i * width : (i + 1) * width] for i in range(devices)]
    for block in blocks:
        assert (np.diff(count[block]) <= 0).all()
    if len(count) % devices == 0:
        loads = [count[block].sum() for block in blocks]
        assert max(loads) - min(loads) <= count.max()


@given(st.integers(1, 500))
def test_chunk_candidates_divide_and_run_from_all_to_one(clients):
    found = tuning.chunk_candidates(clients)
    assert (found[0], found[-1]) == (clients, 1)
    assert all(clients % n == 0 for n in found)
    assert all(2 * low <= high for high, low in pairwise(found))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"devices": 5}, "devices=5, but JAX sees 4"),
        ({"devices": 0}, "devices=0"),
        ({"chunk": 0}, "chunk=0 would run no client"),
    ],
)
def test_a_machine_that_is_not_there_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        engine.machine(**options)


@pytest.mark.parametrize("array", [np.ones(2), jnp.ones(2)], ids=["numpy", "jax"])
@pytest.mark.parametrize("wrap", [lambda f: f, partial], ids=["plain", "partial"])
def test_a_client_that_closes_over_an_array_is_refused(array, wrap):
    nested = {"w": [array]}

    def client(base, message, k):
        return Reply(message + nested["w"][0], (), {})

    verb = engine.for_each_client(engine.machine(1))
    cohort = oracle.cohort(algorithms.UNEQUAL, [()] * 2, [0, 1], 0)
    with pytest.raises(TypeError, match="closes over the array 'nested'"):
        verb(wrap(client), (), jnp.ones(2), cohort)


# What the compiled round holds.

CLIENTS, ROWS, BATCH, INPUTS, WIDTH = 7, 6, 3, 29, 37
LOW_RANK = lowrank.Select(factors="kernel", rank=2, up="random")


def population(clients, inputs, rows=ROWS):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(clients * rows, inputs)).astype(np.float32)
    label = rng.integers(3, size=clients * rows).astype(np.int32)
    return oracle.World({"image": image, "label": label}, np.full(clients, rows))


def averaging(world, widths, select):
    made = tasks.classification(models.MLP(widths, 3), world.examples, select=select)
    work = local.Work(BATCH, epochs=1)
    return fedavg(made, work, client_optimizer=optax.sgd(0.1, momentum=0.9))


def lowered(world, widths, select, **options):
    on = oracle.on_engine(averaging(world, widths, select), world, **options)
    draws = [list(range(len(world.count)))]
    now = oracle.plan(world, draws, options.get("devices", 1))
    return on.step.trace(on.server, on.states, on.examples, now), on


def copies(traced):
    """(in the jaxpr, in the optimised program): values with as many numbers as K base kernels."""
    per_client = set(permutations((CLIENTS, INPUTS, WIDTH)))
    in_jaxpr = [s for s in shapes(traced.jaxpr.jaxpr) if s in per_client]
    text = traced.lower().compile().as_text()
    found = {tuple(map(int, s.split(","))) for s in re.findall(r"\[([\d,]+)\]", text)}
    return in_jaxpr, [s for s in found if np.prod(s) == CLIENTS * INPUTS * WIDTH]


def test_no_client_has_a_copy_of_a_frozen_weight():
    traced, _ = lowered(population(CLIENTS, INPUTS), (WIDTH,), LOW_RANK)
    assert copies(traced) == ([], [])


def test_every_client_has_a_copy_of_a_trained_weight():
    """So that the search above finds what it looks for."""
    traced, _ = lowered(population(CLIENTS, INPUTS), (WIDTH,), lowrank.everything)
    assert all(copies(traced))


def all_reduces(text):
    """The shapes that each all-reduce of a program sums: [["5,6", "6"], ...]."""
    results = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    return [re.findall(r"\w+\[([\d,]*)\]", r) for r in results]


def test_a_round_on_several_devices_has_one_all_reduce():
    """Of everything that is trained, once, and of nothing else."""
    traced, on = lowered(population(8, 5), (6,), lowrank.everything, devices=4)
    (summed,) = all_reduces(traced.lower().compile().as_text())
    trained = [",".join(map(str, x.shape)) for x in jax.tree.leaves(on.server.theta)]
    assert sorted(summed) == sorted(trained)


def test_one_device_knows_of_no_other():
    traced, _ = lowered(population(4, 5), (6,), lowrank.everything)
    assert not re.search(r"all-\w+\(|collective", traced.lower().compile().as_text())


@pytest.mark.full
def test_a_further_client_needs_memory_for_its_factors_and_its_batch_only():
    """Temporary bytes grow by theta, gradient, momentum and update, and by the activations."""
    inputs, widths = 256, (512, 512)

    def needed(clients):
        traced, on = lowered(population(clients, inputs), widths, LOW_RANK)
        analysis = traced.lower().compile().memory_analysis()
        sizes = [
            sum(x.nbytes for x in jax.tree.leaves(t)) for t in (on.server.base, on.server.theta)
        ]
        return analysis.temp_size_in_bytes, *sizes

    (few, base, theta), (many, *_) = needed(4), needed(12)
    activations = BATCH * 4 * (inputs + 2 * sum(widths))
    each = (many - few) / 8
    assert theta < each < 6 * theta + 4 * activations
    assert each < base / 2


def test_the_server_is_updated_in_place():
    world = population(4, 5)
    on = oracle.on_engine(averaging(world, (6,), LOW_RANK), world)
    begun = jax.tree.leaves(on.server)
    on.step(on.server, on.states, on.examples, oracle.plan(world, [[0, 1, 2, 3]]))
    assert all(x.is_deleted() for x in begun)


def test_the_measured_chunk_is_the_fastest_of_those_that_were_timed():
    world = population(4, 5)
    on = oracle.on_engine(averaging(world, (6,), LOW_RANK), world)

    def make(machine):
        verb = engine.for_each_client(machine)
        rounds = engine.rounds(averaging(world, (6,), LOW_RANK), verb, world.seed, world.most)
        return engine.compiled(rounds, machine, donate=(0, 1))

    now = oracle.plan(world, [[0, 1, 2, 3]])
    arguments = (on.server, on.states, on.examples, now)
    found = tuning.measured_chunk(make, on.machine, arguments, [4, 1], 10**6)
    assert found.chunk in (4, 1)
    assert 0 < found.seconds < 60
    assert not any(x.is_deleted() for x in jax.tree.leaves(on.server))


def test_clients_share_one_copy_of_the_examples():
    """Also when they are run in chunks: the examples' axis is never the clients'."""
    axes = engine.contract.axes(
        Cohort((), Data({"x": jnp.ones((9, 2))}, jnp.zeros(3, int), 4), *[jnp.ones(3)] * 4, 0, 0)
    )
    assert axes.data.examples is None
    assert (axes.round, axes.round_key) == (None, None)


def test_a_round_is_traced_once_whoever_takes_part():
    chex.clear_trace_counter()
    made = algorithms.ALGORITHMS["scaffold"](algorithms.RATE)
    once = made._replace(run_round=chex.assert_max_traces(made.run_round, n=1))
    world, draws = algorithms.UNEQUAL, algorithms.DRAWS
    assert len({tuple(world.count[ids]) for ids in draws}) > 1  # sizes differ as well
    oracle.engine_rounds(oracle.on_engine(once, world), world, draws)
