"""What holds for every algorithm, over the one table of them."""

from functools import cache, partial

import algorithms
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from algorithms import ALGORITHMS, CLIENTS, COHORT, DRAWS, RATE

from jaxfed import lowrank, trees
from jaxfed.algorithms import zoo
from jaxfed.analysis.certify import contract
from jaxfed.analysis.certify.subject import HEARD, listening
from jaxfed.simulation import evaluate, ledger
from jaxfed.templates import Server

UNEQUAL = "unequal"
WORLDS = {UNEQUAL: algorithms.UNEQUAL, "uniform": algorithms.UNIFORM}


REPRESENTATIVE = {"fedavg steps", "scaffold", "fedloru", "hetlora", "ditto", "pf2lora"}

USUAL = REPRESENTATIVE | {"apfl", "fedpara", "flora"}

RULES = {"fedex", "flora", "flexlora", "fedmomentum", "fedsvd", "ffa", "rolora", "rac", "raflora"}
RULES |= {"accumulated fedex", "florist", "fedhm", "fedhm-decay"}
REWRITTEN = RULES - {"ffa", "rolora", "rac"}
COMPRESSED = {"fedavg-topk", "fedavg-svd", "fedavg-ef14", "fedavg-ef21", "powersgd"}
COMPRESSED |= {"fedavg-quantised", "flasc"}
DECLARED = RULES | COMPRESSED | {"hetlora", "mfedloru", "fdlora", "feddpa-f", "lora-a2"}
DECLARED |= {"unreliable scaffold", "sa-fedlora", "fedms"}


def marks(name, *others):
    """A few rows are in the default tier; the others and variants are in the full one."""
    return list(others) if name in USUAL else [pytest.mark.full]


@pytest.fixture(params=[pytest.param(n, marks=marks(n)) for n in ALGORITHMS])
def name(request):
    return request.param


def test_there_are_representatives():
    assert set(ALGORITHMS) >= USUAL
    assert set(algorithms.ROWS) >= algorithms.KINDS


@cache
def algorithm(name):
    with jax.enable_x64(True):
        return ALGORITHMS[name](RATE)


@cache
def on_engine(name, world, **options):
    with jax.enable_x64(True):
        return oracle.on_engine(algorithm(name), WORLDS[world], **options)


@cache
def loop(name, world):
    """Its metrics also hold what was exchanged."""
    return oracle.Loop(lambda rate: listening(ALGORITHMS[name](rate)), WORLDS[world])


@cache
def looped(name, world=UNEQUAL):
    with jax.enable_x64(True):
        start = oracle.start(algorithm(name))
        return loop(name, world).rounds(start, DRAWS, RATE)


@cache
def engined(name, world=UNEQUAL, fused=False, **options):
    with jax.enable_x64(True):
        on = on_engine(name, world, **options)
        found = oracle.engine_rounds(on, WORLDS[world], DRAWS, fused=fused)
        return *found, len(on.traces)


def assert_engine_is_loop(found, expected, order):
    """`order` [R, K'] holds the client at each of the engine's places."""
    server, states, metrics, _ = found
    expected_server, expected_states, expected_metrics = expected
    oracle.assert_close(server, expected_server)
    oracle.assert_close(states, expected_states)
    for ids, slots, ours, theirs in zip(DRAWS, order, metrics, expected_metrics, strict=True):
        place = np.array([list(slots).index(i) for i in ids])
        for key in theirs.keys() - {HEARD}:
            value = theirs[key]
            mine = ours[key] if jnp.ndim(ours[key]) == 0 else ours[key][place]
            np.testing.assert_allclose(mine, value, rtol=1e-6, atol=1e-7, err_msg=key)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=marks(n, *[pytest.mark.quick] * (n in REPRESENTATIVE)))
        for n in ALGORITHMS
    ],
)
def test_the_engine_computes_what_a_loop_over_clients_computes(name):
    """One round at a time, all clients under one vmap; clients are unequal."""
    order = oracle.plan(WORLDS[UNEQUAL], DRAWS).slot
    assert_engine_is_loop(engined(name), looped(name), order)


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(REPRESENTATIVE))
def test_the_compiled_loop_is_a_loop_in_python(name):
    with jax.enable_x64(True):
        server, states, _ = oracle.rounds(algorithm(name), WORLDS[UNEQUAL], DRAWS, oracle.loop)
    oracle.assert_close(looped(name)[:2], (server, states))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.full] * (n not in REPRESENTATIVE)) for n in ALGORITHMS],
)
def test_rounds_fused_on_four_devices_are_those_of_the_loop(name):
    """All rounds in one call, clients one at a time on each device, one place of it padded."""
    order = oracle.plan(WORLDS[UNEQUAL], DRAWS, devices=4).slot
    found = engined(name, fused=True, devices=4, chunk=1)
    assert_engine_is_loop(found, looped(name), order)


@pytest.mark.parametrize("name", ["scaffold"])
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("chunk", [None, 2])
def test_no_way_of_running_a_round_changes_it(name, world, devices, chunk):
    """Equal clients also with the promise that they are."""
    options = {"devices": devices, "chunk": chunk, "uniform": world == "uniform"}
    order = oracle.plan(WORLDS[world], DRAWS, devices).slot
    found = engined(name, world, **options)
    assert_engine_is_loop(found, looped(name, world), order)
    assert found[-1] == 1  # trace for all rounds


def test_one_trace_serves_all_rounds_and_keeps_shapes_and_dtypes(name):
    server, states, _, traces = engined(name)
    assert traces == 1
    assert trees.shapes(server) == trees.shapes(on_engine(name, UNEQUAL).server)
    for kept in states.values():
        assert trees.shapes(kept) == trees.shapes(states[0])


def in_single(one):
    """The task of a row with a float32 model, whatever precision is enabled."""
    made = algorithms.task_of(one)
    single = partial(jax.tree.map, lambda x: jnp.asarray(x, jnp.float32))
    return made._replace(init=lambda key: single(made.init(key)))


@pytest.mark.parametrize("one", zoo.ROWS, ids=lambda one: one.name)
def test_where_double_precision_is_enabled_a_single_precision_model_keeps_its_types(one):
    """So that the carry of a loop over rounds or steps has one type. Nothing is computed."""

    with jax.enable_x64(True):
        fed = one.make(in_single(one), algorithms.setting(RATE))

        def start(key):
            server = fed.init(key)
            return server, [fed.init_client(server, key)] * COHORT

        def run(server, states):
            drawn = oracle.cohort(algorithms.UNEQUAL, states, DRAWS[0], 0)
            server, new, _ = fed.run_round(server, drawn, oracle.compiled_loop)
            return server, [jax.tree.map(lambda s, n=n: s[n], new) for n in range(COHORT)]

        before = jax.eval_shape(start, jax.random.key(0))
        after = jax.eval_shape(run, *before)
    kinds = [jax.tree.map(lambda x: (x.shape, x.dtype), tree) for tree in (before, after)]
    assert kinds[0] == kinds[1]


def one_round(name, plan):
    """(server, states) after one round from the start."""
    with jax.enable_x64(True):
        on = on_engine(name, UNEQUAL)
        return on.step(*jax.tree.map(jnp.copy, (on.server, on.states)), on.examples, plan)[:2]


def test_a_client_of_weight_zero_is_inert(name):
    """Whatever stands in the cohort's last place changes nothing if its weight is zero."""
    now = oracle.plan(WORLDS[UNEQUAL], DRAWS[:1])
    now.weight[0, -1], now.slot[0, -1] = 0, CLIENTS
    other = jax.tree.map(np.copy, now)
    other.id[0, -1], other.start[0, -1], other.count[0, -1] = 4, 2, 12
    assert now.count[0, -1] != other.count[0, -1]
    oracle.assert_close(one_round(name, now), one_round(name, other), rtol=0, atol=0)


def test_what_a_client_keeps_follows_from_its_own_examples_and_the_message(name):
    """In a round of one exchange, whatever examples another client has."""
    now = oracle.plan(WORLDS[UNEQUAL], DRAWS[:1])
    other = jax.tree.map(np.copy, now)
    other.start[0, -1], other.count[0, -1] = 2, 12
    kept = [
        jax.tree.map(lambda x: x[now.slot[0, :-1]], one_round(name, p)[1]) for p in (now, other)
    ]
    if len(heard(name)[0].exchanges) == 1:
        oracle.assert_close(*kept, rtol=0, atol=0)


def test_a_resumed_run_has_the_bits_of_an_unbroken_one(name):
    """From a checkpoint on disk after two of five rounds."""
    with jax.enable_x64(True):
        found = contract.resumed(on_engine(name, UNEQUAL), WORLDS[UNEQUAL], DRAWS, half=2)
    oracle.assert_close(found, engined(name)[:2], rtol=0, atol=0)


def heard(name):
    """Its rounds by the loop, with the bytes that were declared."""
    return [m[HEARD]._replace(sent=m["up"], received=m["down"]) for m in looped(name)[2]]


def test_a_change_of_the_base_is_broadcast(name):
    assert not contract.silent_changes(algorithm(name), heard(name))


@pytest.mark.full
@pytest.mark.parametrize("name", sorted(DECLARED))
def test_clients_that_declare_their_bytes_declare_what_their_uploads_need(name):
    assert not contract.understated(heard(name), DRAWS)


def test_the_order_of_a_cohort_is_irrelevant(name):
    now = oracle.plan(WORLDS[UNEQUAL], DRAWS[:1])
    turned = now._replace(
        **{
            field: np.roll(getattr(now, field), 3, axis=1)
            for field in ("id", "slot", "start", "count", "weight")
        }
    )
    oracle.assert_close(one_round(name, now), one_round(name, turned))


def test_only_a_learning_rate_of_zero_leaves_theta_as_it_was(name):
    """In a round without a merge; the tests of accumulate say what a merge does.

    The cohort is one client, again and again: HETLoRA's theta depends on the ranks in it. Where the
    server may write the model in other factors, the model is compared. Running statistics move.
    """
    with jax.enable_x64(True):
        start, state = oracle.start(algorithm(name))
        server, _, _ = loop(name, UNEQUAL).rounds((start, state), [[1] * COHORT], 0.0)
        ended = looped(name)[0]
        if name in RULES:
            ended, server, start = (
                Server((), lowrank.merged(s.base, s.theta)) for s in (ended, server, start)
            )
    tolerance = {"rtol": 1e-12} if name in REWRITTEN | {"hetlora"} else {"rtol": 0, "atol": 0}
    here, there = ((s.base, trees.zero_running(s.theta)) for s in (server, start))
    oracle.assert_close(here, there, **tolerance)
    moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), ended.theta, start.theta)
    assert all(jax.tree.leaves(moved))


def test_what_is_deployed_is_a_model_that_the_task_can_run(name):
    fed = ALGORITHMS[name](RATE)
    server = jax.eval_shape(fed.init, jax.random.key(0))
    state = jax.eval_shape(fed.init_client, server, jax.random.key(0))
    base, theta = jax.eval_shape(fed.deploy, server, state)
    batch = {
        n: jax.ShapeDtypeStruct((4, *x.shape[1:]), x.dtype)
        for n, x in algorithms.UNEQUAL.examples.items()
    } | {"mask": jax.ShapeDtypeStruct((4,), jnp.float32)}
    sums = jax.eval_shape(fed.task.evaluate, base, theta, batch)
    assert {n: s.shape for n, s in sums.items()} == {"loss": (), "accuracy": ()}


def test_clients_deploy_models_of_their_own_where_what_they_keep_changes_them(name):
    """The same server's model, deployed with the states that two clients have after two rounds."""
    fed = ALGORITHMS[name](RATE)
    server = fed.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2)
    states = [fed.init_client(server, key) for key in keys]
    first, second = (
        fed.deploy(server, jax.tree.map(lambda x, i=i: _moved(x, i), state))
        for i, state in enumerate(states)
    )
    differ = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), first, second)
    assert evaluate.deploys_own(fed) is any(jax.tree.leaves(differ))


def _moved(x, by):
    """A leaf of a state as it might be later on."""
    if x.dtype == bool:
        return x ^ bool(by)
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x + by


def test_a_round_can_be_weighed_without_running_it(name):
    """Bytes up are those of what is shared, twice for SCAFFOLD and FedLin; down likewise.

    mFedLoRU sends other arrays than theta's up; its own tests count them. Some declare less.
    """
    fed = ALGORITHMS[name](RATE)
    server = jax.eval_shape(fed.init, jax.random.key(0))
    state = jax.eval_shape(fed.init_client, server, jax.random.key(0))
    states = [jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), state)] * COHORT
    wire, exact = ledger.most(fed, server, oracle.cohort(algorithms.UNEQUAL, states, DRAWS[0], 0))
    times = 2 if "scaffold" in name or "fedlin" in name else 1
    size = times * trees.nbytes((server.theta, getattr(server, "router", ())))
    if name == "sa-fedlora":  # its two stages are counted together
        size += trees.nbytes((server.base, server.theta.full))
    assert wire == ledger.Wire(size, wire.up if name == "mfedloru" else size)
    assert exact == (name not in DECLARED)
