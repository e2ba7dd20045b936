"""What clients keep: three placements, one result, and checkpoints that lose none of it."""

import contextlib
import functools
import os
import shutil
import subprocess
import tracemalloc
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import tiers

from jaxfed.algorithm import Algorithm, Reply
from jaxfed.data import memory
from jaxfed.simulation import checkpoint, engine, population
from jaxfed.simulation.population import placements
from jaxfed.simulation.population import population as choosing
from jaxfed.simulation.population import rows as stores

PLACEMENTS = ("device", "host", "mapped")
CLIENTS, COHORT = 9, 5
WORLD = oracle.World({"x": np.arange(36, dtype=np.float32)}, np.array([4, 1, 7, 3, 5, 2, 6, 4, 4]))
# Clients 2 and 0 are drawn in consecutive rounds, and 8 never is.
DRAWS = [[0, 1, 2, 3, 4], [0, 2, 5, 6, 7], [2, 0, 1, 3, 7], [4, 5, 6, 2, 0], [2, 1, 0, 6, 5]]


class Server(NamedTuple):
    base: Any
    theta: jax.Array


def remembering(size=3):
    """An algorithm whose clients keep what they were born with, heard last, and how often."""

    def init(key):
        return Server({"w": jnp.ones(7)}, jax.random.normal(key, (size,)))

    def init_client(server, key):
        born = server.theta + jax.random.normal(key, (size,))
        return {"born": born, "heard": jnp.zeros((2, size), jnp.bfloat16), "seen": jnp.int32(0)}

    def client(base, theta, k):
        drift = (
            jnp.sin(theta) + k.state["born"] * k.state["seen"] + jax.random.normal(k.key, (size,))
        )
        heard = jnp.stack([k.state["heard"][1], theta.astype(jnp.bfloat16)])
        kept = {"born": k.state["born"] * 1.01, "heard": heard, "seen": k.state["seen"] + 1}
        return Reply(drift, kept, {"loss": jnp.sum(drift)})

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        theta = 0.5 * server.theta + jnp.tensordot(cohort.weight, reply.upload, 1)
        return server._replace(theta=theta), reply.state, reply.metrics

    return Algorithm(init, init_client, run_round, lambda server, state: (server.base, state))


SMALL = remembering()


def opened(placement, directory=None, *, clients=CLIENTS, width=6, devices=1, algorithm=SMALL):
    return population.open_population(
        algorithm.init_client,
        partial(algorithm.init, jax.random.key(0)),
        placement,
        clients=clients,
        width=width,
        seed=WORLD.seed,
        machine=engine.machine(devices),
        directory=directory,
    )


@functools.cache
def compiled(devices):
    machine = engine.machine(devices)
    rounds = engine.rounds(SMALL, engine.for_each_client(machine), WORLD.seed, WORLD.most)
    return engine.compiled(rounds, machine, donate=(0, 1))


def run(kept, draws=DRAWS, *, devices=2, server=None, first=0):
    """The server after rounds of these cohorts, the next one's states lent while one is at work."""
    machine = engine.machine(devices)
    server = engine.place(server or SMALL.init(jax.random.key(0)), machine)
    plans = [oracle.plan(WORLD, [ids], devices, first=t) for t, ids in enumerate(draws, first)]
    plans = [p._replace(id=np.where(p.weight > 0, p.id, CLIENTS).astype(np.int32)) for p in plans]
    upcoming = kept.lend(plans[0])
    for i, plan in enumerate(plans):
        states, lent = upcoming
        server, states, _ = compiled(devices)(server, states, WORLD.examples, lent)
        kept.keep(plan, states)
        upcoming = kept.lend(plans[i + 1]) if i + 1 < len(plans) else None
    return server


def everyone(kept):
    return jax.tree.map(np.asarray, kept.states_of(np.arange(CLIENTS)))


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@functools.cache
def expected(devices=2):
    """(server, states) after the rounds of DRAWS, by the device placement."""
    kept = opened("device", devices=devices)
    return run(kept, devices=devices), everyone(kept)


def first_state(i):
    """What client i has before it is drawn, by the contract's words."""
    root = jax.random.fold_in(jax.random.key(WORLD.seed), np.uint32(2**32 - 1))
    return SMALL.init_client(SMALL.init(jax.random.key(0)), jax.random.fold_in(root, i))


# ---------------------------------------------------------------------- states and rows


def test_a_row_holds_every_bit_of_a_state():
    state = {
        "a": jnp.array([jnp.nan, -jnp.nan, -0.0, 1e-42]),
        "b": jnp.ones((2, 3), jnp.bfloat16),
        "none": jnp.zeros((0, 4)),
        "one": jnp.int32(7),
        "yes": jnp.array([True, False]),
    }
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda: state))
    layout = stores.Layout(structure, tuple(leaves))
    stacked = jax.tree.map(lambda x: np.stack([x, np.zeros_like(x)]), state)
    rows = layout.rows(stacked)
    assert rows.shape == (2, 16 + 12 + 4 + 2)
    found = layout.states(rows)
    assert jax.tree.structure(found) == structure
    assert bits(found) == bits(stacked)
    assert [x.shape for x in jax.tree.leaves(found)] == [x.shape for x in jax.tree.leaves(stacked)]


def test_of_the_server_only_what_first_states_are_computed_from_is_kept():
    server = {"big": jnp.ones(5), "used": jnp.ones(2), "shape": jnp.ones((3, 2))}

    def init_client(server, key):
        return server["used"] + jax.random.normal(key, (2,)), jnp.zeros_like(server["shape"])

    assert placements._read_leaves(init_client, server) == [False, False, True]  # big, shape, used


# ---------------------------------------------------------------------- three placements


@pytest.mark.parametrize("devices", tiers.usual([1, 2], 2))
@pytest.mark.parametrize("placement", ["host", "mapped"])
def test_every_placement_gives_the_same_bits(placement, devices):
    kept = opened(placement, devices=devices)
    server, states = expected(devices)
    assert bits(run(kept, devices=devices)) == bits(server)
    assert bits(everyone(kept)) == bits(states)
    kept.close()


def test_all_are_what_the_loop_gives():
    server, states = SMALL.init(jax.random.key(0)), {i: first_state(i) for i in range(CLIENTS)}
    for t, ids in enumerate(DRAWS):
        drawn = oracle.cohort(WORLD, [states[i] for i in ids], ids, t)
        server, new, _ = SMALL.run_round(server, drawn, oracle.loop)
        states |= {i: jax.tree.map(lambda s, n=n: s[n], new) for n, i in enumerate(ids)}
    stacked = jax.tree.map(lambda *s: np.stack(s), *states.values())
    found = jax.tree.map(np.asarray, expected())
    oracle.assert_close(found[0], server, rtol=1e-4, atol=1e-5)
    oracle.assert_close(
        *(jax.tree.map(lambda x: x.astype(np.float32), s) for s in (found[1], stacked)),
        rtol=1e-2,  # of bfloat16
        atol=1e-2,
    )
    assert found[1]["seen"].tolist() == np.bincount(np.ravel(DRAWS), minlength=CLIENTS).tolist()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_client_that_was_never_drawn_has_its_first_state(placement):
    kept = opened(placement)
    run(kept, DRAWS[:1], devices=1)
    found = everyone(kept)
    for i in (5, 8):
        mine = jax.tree.map(lambda x, i=i: x[i], found)
        oracle.assert_close(mine, jax.tree.map(np.asarray, first_state(i)))
    kept.close()


@pytest.mark.parametrize("placement", ["host", "mapped"])
def test_a_million_clients_cost_an_index_until_they_are_drawn(placement):
    algorithm, clients = remembering(25_000), 10**6  # 200 kB each
    tracemalloc.start()
    kept = opened(placement, clients=clients, algorithm=algorithm)
    ids = np.array([[3, 999_999, 5, 70_000, 8, clients]], np.int32)
    states, _ = kept.lend(oracle.plan(WORLD, [[0, 1, 2, 3, 4]])._replace(id=ids))
    kept.keep(oracle.plan(WORLD, [[0, 1, 2, 3, 4]])._replace(id=ids), states)
    kept.place.settle()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * clients + 2 * stores.BLOCK
    assert kept.place.rows.used == 5
    kept.close()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_clients_that_keep_nothing_need_no_place(placement, tmp_path):
    nothing = SMALL._replace(init_client=lambda server, key: ())
    kept = opened(placement, tmp_path / "clients", algorithm=nothing)
    plan = oracle.plan(WORLD, DRAWS[:1])
    assert kept.lend(plan) == ((), plan)
    assert kept.save(1, []) == {}
    kept.restore(1, {})
    assert not list(tmp_path.iterdir())


def test_auto_takes_the_first_place_that_is_large_enough(monkeypatch):
    monkeypatch.setattr(engine, "memory_limit", lambda machine: 1000)
    monkeypatch.setattr(memory, "free", lambda: 10_000)
    one, two = engine.machine(1), engine.machine(2)
    placed = partial(choosing._placement, "auto")
    assert [placed(n, one) for n in (250, 251, 5000, 5001)] == ["device", "host", "host", "mapped"]
    assert [placed(n, two) for n in (125, 126)] == ["device", "host"]  # a copy for each of a CPU's
    assert choosing._placement("mapped", 1, one) == "mapped"


def test_mapped_is_refused_to_several_processes():
    with pytest.raises(ValueError, match=r"population='mapped' is for one process.*use 'host'"):
        choosing._placement("mapped", 1, SimpleNamespace(several_processes=True))


# ---------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("begun", PLACEMENTS)
@pytest.mark.parametrize("resumed", PLACEMENTS)
def test_a_checkpoint_is_restored_in_any_placement(begun, resumed, tmp_path):
    kept = opened(begun, tmp_path, devices=2)
    server = run(kept, DRAWS[:2])
    extra = kept.save(2, [])
    saved = jax.tree.map(np.array, server)
    run(kept, DRAWS[2:3], server=server, first=2)  # lost
    kept.close()
    again = opened(resumed, tmp_path, devices=2)
    again.restore(2, extra)
    server = run(again, DRAWS[2:], server=saved, first=2)
    assert bits((server, everyone(again))) == bits(expected())
    again.close()


def on_disk(directory):
    return sum(path.stat().st_size for path in directory.iterdir())


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_checkpoint_writes_the_clients_that_were_drawn(placement, tmp_path):
    written = {}
    for clients in (CLIENTS, 5000):
        kept = opened(placement, tmp_path / str(clients), clients=clients)
        row, sizes = kept.layout.nbytes, []
        for t, ids in enumerate([[1, 2, 3, 4], [2, 7], [2]]):
            plan = oracle.plan(WORLD, [ids])
            states, _ = kept.lend(plan)
            kept.keep(plan, states)
            kept.save(t, range(t))
            sizes.append(on_disk(tmp_path / str(clients)))
        written[clients] = sizes
        kept.close()
    assert written[CLIENTS] == written[5000]
    lists = [sum(1000 + 12 * n for n in drawn) for drawn in ([4], [4, 5], [4, 5, 5])]
    for size, rows, room in zip(written[5000], [4, 6, 7], lists, strict=True):
        assert rows * row < size < rows * row + room


def test_no_row_that_a_checkpoint_needs_is_ever_overwritten(tmp_path):
    """Against a dict, over random writes: the newest two and the best are as they were saved."""
    rng, rows = np.random.default_rng(0), stores.File(tmp_path, 12, 5)
    now, saved = {}, {}
    for t in range(60):
        ids = rng.permutation(12)[: rng.integers(1, 6)].astype(np.int32)
        for _ in range(rng.integers(1, 3)):
            data = rng.integers(0, 256, (len(ids), 5), np.uint8)
            rows.write(ids, data)
            now |= {int(i): row.tobytes() for i, row in zip(ids, data, strict=True)}
        saved[t] = (rows.save(t, list(saved)), dict(now))
        newest = sorted(saved)[-2:]
        saved = {n: s for n, s in saved.items() if n in newest or n == 20}
        if t % 5 == 4:  # stopped: another process looks at each of them, and goes on with one
            for n in [*saved, sorted(saved)[rng.integers(len(saved))]]:
                rows = stores.File(tmp_path, 12, 5)
                ids = rows.restore(n, saved[n][0])
                now = dict(zip(ids.tolist(), map(bytes, rows.read(ids)), strict=True))
                assert now == saved[n][1]
    assert rows.used < 4 * 12


class Crash(BaseException):
    pass


def crashing(function, at, calls, partly):
    """`function`, until call number `at` of all: that one is done in part, and none after it."""

    def call(*arguments):
        calls.append(None)
        if len(calls) < at:
            return function(*arguments)
        if len(calls) == at:
            partly(*arguments)
        raise Crash

    return call


def test_a_crash_at_any_instant_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    """At every write, flush and renaming that a round and its checkpoint make."""

    def half(file, row):
        file.write(row.data[: len(row) // 2])

    crashes = 0
    for at in range(1, 100):
        directory = tmp_path / str(at)
        directory.mkdir()
        rows, ids = stores.File(directory, 6, 8), np.arange(4)
        before = np.random.default_rng(at).integers(0, 256, (4, 8), np.uint8)
        rows.write(ids, before)
        first = rows.save(1, [])
        calls = []
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            patch.setattr(stores, "_write_all", crashing(stores._write_all, at, calls, half))
            patch.setattr(os, "fsync", crashing(os.fsync, at, calls, lambda *_: None))
            patch.setattr(os, "replace", crashing(os.replace, at, calls, lambda *_: None))
            rows.write(ids[1:], before[1:] ^ 255)
            rows.write(ids[1:3], before[1:3] ^ 1)
            rows.save(2, [1])
        again = stores.File(directory, 6, 8)
        assert again.restore(1, first).tolist() == ids.tolist()
        assert (again.read(ids) == before).all()
        if len(calls) < at:
            break
        crashes += 1
    assert crashes == 3 + 2 + 3  # rows, rows again; two flushes and a renaming


def damage(path, how):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content if how == "flipped" else content[: len(content) // 3])


@pytest.mark.filterwarnings("ignore:.*orbax.*")
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("name", ["rows", "2.npz"])
def test_a_damaged_row_costs_one_checkpoint(name, how, tmp_path):
    kept = opened("mapped", tmp_path / "clients")
    with contextlib.closing(checkpoint.open_folder(tmp_path / "checkpoints")) as checkpoints:
        for t, ids in ((1, [0, 1]), (2, [3, 4, 5, 6])):
            plan = oracle.plan(WORLD, [ids])
            states, _ = kept.lend(plan)
            kept.keep(plan, states)
            extra = kept.save(t, checkpoints.rounds)
            checkpoints.save(t, {"states": kept.kinds, "t": t}, extra=extra)
            checkpoints.wait()
        kept.close()
        damage(tmp_path / "clients" / name, how)
        again = opened("host", tmp_path / "clients")
        target = {"states": again.kinds, "t": 0}
        if (name, how) == ("rows", "missing"):
            with pytest.raises(ValueError, match=r"no checkpoint in .* is intact"):
                checkpoints.restore(target, also=again.restore)
            return
        with pytest.warns(UserWarning, match=r"damaged.*round 2.*goes on from round 1"):
            t, _, _ = checkpoints.restore(target, also=again.restore)
    assert t == 1
    assert np.flatnonzero(again.place.rows.has(np.arange(CLIENTS))).tolist() == [0, 1]


def test_other_states_are_refused_with_their_shapes(tmp_path):
    kept = opened("host", tmp_path / "clients")
    with contextlib.closing(checkpoint.open_folder(tmp_path / "checkpoints")) as checkpoints:
        checkpoints.save(1, {"states": kept.kinds}, extra=kept.save(1, []))
        checkpoints.wait()
        larger = opened("host", tmp_path / "clients", algorithm=remembering(4))
        with pytest.raises(ValueError, match=r"'born'\] as float32\[0, 3\], and.*float32\[0, 4\]"):
            checkpoints.restore({"states": larger.kinds}, also=larger.restore)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_sentence_and_no_loss(small_disk):
    rows = stores.File(small_disk / "clients", 40, 50_000)
    before = np.full((8, 50_000), 7, np.uint8)
    rows.write(np.arange(8), before)
    saved = rows.save(1, [])
    with pytest.raises(OSError, match=r"disk/clients could not be written: No space left on dev"):
        rows.write(np.arange(40), np.zeros((40, 50_000), np.uint8))
    rows.close()
    again = stores.File(small_disk / "clients", 40, 50_000)
    assert (again.read(again.restore(1, saved)) == before).all()
    again.close()
