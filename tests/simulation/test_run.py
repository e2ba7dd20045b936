"""The host's loop: what is drawn, recorded and written, and when."""

import contextlib
import dataclasses
import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiers

import jaxfed
from jaxfed import local, lowrank, models, tasks
from jaxfed.algorithms import fedavg, scaffold
from jaxfed.data import federate, partition, sources
from jaxfed.simulation import participation, run_folder
from jaxfed.simulation.participation import draw
from jaxfed.simulation.prepare import prepare


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Runs of one experiment share what XLA made of it."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {n: getattr(jax.config, n) for n in names}
    for name, value in zip(names, (str(tmp_path_factory.mktemp("compiled")), 0.0), strict=True):
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


WORK = local.Work(10, epochs=1)
RATE = 0.1


def digits(uniform=False):
    source = sources.digits()
    label = source.train["label"]
    if uniform:
        parts = [np.arange(k * 20, (k + 1) * 20) for k in range(10)]
    else:
        parts = partition.dirichlet(label, 10, concentration=0.5, seed=0)
    data = federate(source, parts, personal_fraction=0.2, seed=0)
    model = models.MLP((8,), classes=10)
    return tasks.classification(model, source.test, preprocess=lambda x, _: x / 16.0), data


def experiment(make=None, uniform=False, rounds=6, cohort=4, evaluate_every=3, **changes):
    learned, data = digits(uniform)
    made = (make or plain)(learned)
    return jaxfed.Experiment(
        data,
        made,
        rounds=rounds,
        cohort=cohort,
        evaluate_every=evaluate_every,
        **changes,
    )


def plain(learned):
    return fedavg(learned, WORK, client_optimizer=optax.sgd(RATE))


def with_states(learned):
    return scaffold(learned, WORK, learning_rate=RATE, clients=10)


def poisoned(learned, rounds=(4,)):
    """FedAvg whose clients send NaN in these rounds (from 1), if their id is even."""
    inner = plain(learned)

    def run_round(server, cohort, for_each_client):
        def spoiling(client, base, message, cohort):
            def spoiled(base, message, k):
                reply = client(base, message, k)
                now = jnp.any(k.round + 1 == jnp.asarray(rounds)) & (k.id % 2 == 0)
                upload = jax.tree.map(lambda x: jnp.where(now, jnp.nan, x), reply.upload)
                return reply._replace(upload=upload)

            return for_each_client(spoiled, base, message, cohort)

        return inner.run_round(server, cohort, spoiling)

    return inner._replace(run_round=run_round)


def settled(records):
    return [{n: v for n, v in r.items() if n != "seconds"} for r in records]


FAST = jaxfed.Host(devices=2, chunk=2, fuse=3)
SINGLE = jaxfed.Host(devices=2, chunk=2, fuse=1)


@cache
def unbroken(host):
    """The records of a run with states from its start to its end."""
    return settled(jaxfed.run(experiment(with_states), host=host))


def test_draw_is_uniform_without_replacement_and_depends_on_seed_and_round_alone():
    drawn = np.stack([draw(1, t, 20, 5) for t in range(4000)])
    assert all(len(set(ids)) == 5 for ids in drawn[:100])
    share = np.bincount(drawn.ravel(), minlength=20) / 4000
    np.testing.assert_allclose(share, 0.25, atol=0.04)  # six standard deviations
    assert (draw(1, 7, 20, 5) == drawn[7]).all()
    assert (draw(2, 7, 20, 5) != drawn[7]).any()


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_a_plan_holds_each_drawn_client_once_with_its_rows(devices):
    e = experiment(cohort=7)
    plan = participation.make(e, devices, range(2, 4))
    train = e.data.train
    for i, t in enumerate((2, 3)):
        here = plan.weight[i] > 0
        assert sorted(plan.id[i][here]) == sorted(draw(0, t, 10, 7))
        assert (plan.start[i][here] == train.start[plan.id[i][here]]).all()
        assert (plan.count[i] == np.where(here, train.count[np.minimum(plan.id[i], 9)], 0)).all()
        assert (plan.slot[i][~here] == 10).all()


def test_fewer_clients_a_round_than_devices_is_a_run():
    """Also where the clients at once are measured: on each device there is one place."""
    few = experiment(rounds=1, cohort=2, evaluate_every=0)
    assert [r["clients"] for r in jaxfed.run(few, host=jaxfed.Host(devices=4))] == [2]


@pytest.mark.parametrize("make", [plain, with_states])
def test_records_tell_rounds_bytes_and_accuracy(make):
    e = experiment(make)
    records = list(jaxfed.run(e, host=FAST))
    assert [r["round"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["round"] for r in records if "accuracy" in r] == [3, 6]
    weights = 4 * (64 * 8 + 8 + 8 * 10 + 10)
    sent = weights * 4 * (1 if make is plain else 2)  # SCAFFOLD sends its control variate too
    assert all(r["down"] == r["up"] == sent and r["broadcast"] == 0 for r in records)
    own = records[-1]["personal"]["accuracy"]
    assert 0 <= own["min"] <= own["p10"] <= own["p50"] <= own["p90"] <= 1
    assert records[-1]["accuracy"] > 0.3


@pytest.mark.parametrize("uniform", tiers.usual([False, True], False))
@pytest.mark.parametrize("make", tiers.usual([plain, with_states], with_states))
def test_streaming_gives_what_resident_examples_give(make, uniform):
    e = experiment(make, uniform)
    resident, streamed = (
        list(jaxfed.run(e, host=dataclasses.replace(SINGLE, stream=stream)))
        for stream in (False, True)
    )
    assert settled(streamed) == settled(resident)


@pytest.mark.full
def test_records_do_not_depend_on_where_clients_states_lie(tmp_path):
    """Losses, and what clients' own models score, in every bit."""
    e = experiment(with_states)
    device, host, mapped = (
        list(jaxfed.run(e, folder, dataclasses.replace(SINGLE, population=name)))
        for name, folder in (("device", None), ("host", tmp_path), ("mapped", None))
    )
    assert settled(host) == settled(mapped) == settled(device)
    names = {path.name for path in (tmp_path / "clients").iterdir()}
    assert names == {"rows", "6.npz"}


def test_fused_rounds_are_single_rounds():
    fused, single = ([r["loss"] for r in unbroken(host)] for host in (FAST, SINGLE))
    np.testing.assert_allclose(fused, single, rtol=1e-5)


def test_never_evaluating_records_no_accuracy():
    records = list(jaxfed.run(experiment(evaluate_every=0, rounds=2), host=FAST))
    assert not any("accuracy" in r for r in records)


def test_a_folder_is_left_as_promised(tmp_path):
    records = list(jaxfed.run(experiment(), tmp_path / "run", FAST))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == records
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names - {"clients.parquet"} == {  # which needs pyarrow
        *("settings.json", "host.json", "clients.npz", "metrics.jsonl"),
        *("clients.jsonl", "checkpoints", "tensorboard"),
    }
    labels = np.load(tmp_path / "run" / "clients.npz")["labels"]
    assert labels.shape == (10, 10)
    assert labels.sum(1).tolist() == experiment().data.train.count.tolist()


def test_a_run_that_failed_in_preparation_leaves_its_folder_empty(tmp_path):
    def broken(learned):
        def run_round(server, cohort, for_each_client):
            raise ZeroDivisionError("of the algorithm's own")

        return plain(learned)._replace(run_round=run_round)

    with pytest.raises(ZeroDivisionError):
        jaxfed.run(experiment(broken), tmp_path, FAST)
    assert not list(tmp_path.iterdir())


def test_a_finished_run_extended_is_a_longer_run(tmp_path):
    longer = experiment(with_states, rounds=6)
    unbroken = list(jaxfed.run(longer, host=FAST))
    first = list(jaxfed.run(experiment(with_states, rounds=3), tmp_path, FAST))
    rest = list(jaxfed.run(longer, tmp_path, FAST, resume=True))
    assert settled(first + rest) == settled(unbroken)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_fewer_rounds_than_are_done_is_refused(tmp_path):
    list(jaxfed.run(experiment(rounds=3), tmp_path, FAST))
    with pytest.raises(ValueError, match="rounds=2, but 3 are done"):
        jaxfed.run(experiment(rounds=2), tmp_path, FAST, resume=True)


def test_metrics_after_the_checkpoint_are_cut_off(tmp_path):
    e = experiment(rounds=3)
    first = list(jaxfed.run(e, tmp_path, FAST))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"round": 4, "loss": 1.0}\n{"rou')
    assert list(jaxfed.run(e, tmp_path, FAST, resume=True)) == []
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == first


def test_metrics_that_lack_a_round_are_refused(tmp_path):
    list(jaxfed.run(experiment(rounds=3), tmp_path, FAST))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join([lines[0], lines[2]]))
    with pytest.raises(ValueError, match=r"line 2 is damaged \(it holds round 3\)"):
        jaxfed.run(experiment(rounds=3), tmp_path, FAST, resume=True)


@pytest.mark.full
def test_other_devices_are_said_to_change_the_bits(tmp_path):
    list(jaxfed.run(experiment(rounds=3), tmp_path, jaxfed.Host(chunk=1, fuse=3, devices=2)))
    with pytest.warns(UserWarning, match="devices.*not to the bit"):
        jaxfed.run(
            experiment(), tmp_path, jaxfed.Host(chunk=1, fuse=3, devices=1), resume=True
        ).close()


def test_what_was_measured_is_remembered(tmp_path):
    list(jaxfed.run(experiment(rounds=3), tmp_path, FAST))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = prepare(experiment(), jaxfed.Host(devices=2), tmp_path, resume=True)
    resumed.close()
    assert (resumed.machine.chunk, resumed.form.fuse) == (2, 3)


def test_a_run_that_is_not_to_start_draws_nothing_however_large_its_model():
    source = sources.digits()
    data = federate(source, [np.arange(20)], seed=0)
    model = models.MLP((2_000_000, 2_000_000), classes=10)  # 16 TB
    select = lowrank.Select(factors="dense", full="head", rank=1)
    task = tasks.classification(model, source.test, select=select)
    algorithm = plain(task)
    e = jaxfed.Experiment(data, algorithm, rounds=1, cohort=1, evaluate_every=0)
    p = prepare(e, SINGLE, compiling=False, drawing=False)
    p.close()
    assert p.base_bytes > 1.6e13


def test_nan_stops_with_round_and_clients_and_resumes_without_them(tmp_path):
    e = experiment(poisoned, cohort=10)
    host = dataclasses.replace(SINGLE, checkpoint_every=2)
    with pytest.raises(FloatingPointError, match=r"round 4: .* clients \[0, 2, 4, 6, 8\] is not"):
        list(jaxfed.run(e, tmp_path, host))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    skipping = dataclasses.replace(host, nonfinite="skip")
    records = list(jaxfed.run(e, tmp_path, skipping, resume=True))
    assert [r["round"] for r in records] == [3, 4, 5, 6]
    assert [r.get("skipped") for r in records] == [None, [0, 2, 4, 6, 8], None, None]
    assert all(np.isfinite(r["loss"]) for r in records)


ENDING = [
    (signal.SIGTERM, SystemExit),
    (signal.SIGHUP, SystemExit),
    (signal.SIGUSR1, SystemExit),
    (signal.SIGINT, KeyboardInterrupt),
]
ALIKE = [pytest.param(*case, marks=pytest.mark.full) for case in ENDING[1:3]]


@pytest.mark.parametrize(("number", "raised"), [ENDING[0], *ALIKE, ENDING[3]])
def test_a_signal_in_a_round_ends_the_run_after_a_checkpoint(number, raised, tmp_path, monkeypatch):
    before, append = signal.getsignal(number), run_folder.append

    def signalled(folder, records):
        append(folder, records)
        if records[-1]["round"] == 3:
            signal.raise_signal(number)

    monkeypatch.setattr(run_folder, "append", signalled)
    with pytest.raises(raised):
        list(jaxfed.run(experiment(rounds=20), tmp_path, SINGLE))
    assert signal.getsignal(number) is before
    assert done(tmp_path, rounds=20) == 3


def test_a_signal_in_the_last_round_is_not_swallowed(tmp_path, monkeypatch):
    append = run_folder.append

    def signalled(folder, records):
        append(folder, records)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(run_folder, "append", signalled)
    with pytest.raises(KeyboardInterrupt):
        list(jaxfed.run(experiment(rounds=3), tmp_path, FAST))
    assert done(tmp_path, rounds=3) == 3


def done(folder, **settings):
    """How many rounds a resumed run would not repeat."""
    with contextlib.closing(prepare(experiment(**settings), SINGLE, folder, resume=True)) as found:
        return found.state.done


def test_signals_are_the_programs_own_while_a_run_is_held(tmp_path):
    before = [signal.getsignal(number) for number, _ in ENDING]
    running = jaxfed.run(experiment(rounds=20), tmp_path, SINGLE)
    for _ in range(3):
        next(running)
        assert [signal.getsignal(number) for number, _ in ENDING] == before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    running.close()


def test_ignored_signals_stay_ignored(tmp_path, monkeypatch):
    append = run_folder.append

    def signalled(folder, records):
        append(folder, records)
        signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr(run_folder, "append", signalled)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert len(list(jaxfed.run(experiment(rounds=3), tmp_path, FAST))) == 3
    finally:
        signal.signal(signal.SIGHUP, before)


def leave_by_break(running):
    for record in running:
        if record["round"] == 4:
            break


def leave_by_an_error(running):
    with contextlib.suppress(ZeroDivisionError):
        for record in running:
            1 / (4 - record["round"])


WAYS = {
    "break": leave_by_break,
    "error": leave_by_an_error,
    "islice": lambda running: list(itertools.islice(running, 4)),
    "close": lambda running: ([next(running) for _ in range(4)], running.close()),
}


@pytest.mark.parametrize("leave", tiers.usual(WAYS.values(), leave_by_an_error), ids=WAYS)
@pytest.mark.parametrize("host", tiers.usual([SINGLE, FAST], SINGLE), ids=["single", "fused"])
def test_a_run_left_early_has_a_checkpoint_of_its_last_recorded_round(leave, host, tmp_path):
    e = experiment(with_states)
    running = jaxfed.run(e, tmp_path, host)
    leave(running)
    del running
    gc.collect()
    recorded = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["round"] for r in recorded] == list(range(1, 7 if host is FAST else 5))
    rest = list(jaxfed.run(e, tmp_path, host, resume=True))
    assert settled(recorded + rest) == unbroken(host)


def test_a_run_closed_before_its_first_round_frees_its_folder(tmp_path):
    jaxfed.run(experiment(rounds=3), tmp_path, FAST).close()
    assert not (tmp_path / "lock").exists()
    assert len(list(jaxfed.run(experiment(rounds=3), tmp_path, FAST, resume=True))) == 3


HELD = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
import sys
from test_run import SINGLE, experiment
import jaxfed
running = jaxfed.run(experiment(rounds=6), sys.argv[1], SINGLE)
for record in running:
    if record["round"] == 4:
        break
"""


@pytest.mark.full
def test_a_run_held_to_the_end_of_the_program_is_saved(tmp_path):
    here = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    command = [sys.executable, "-c", HELD, str(tmp_path / "run")]
    ended = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": here}, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert "Error" not in ended.stderr
    assert done(tmp_path / "run") == 4


def files(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.full
def test_resuming_a_finished_run_changes_no_file(tmp_path):
    for make in (plain, with_states):
        folder = tmp_path / make.__name__
        list(jaxfed.run(experiment(make), folder, FAST))
        before = files(folder)
        assert list(jaxfed.run(experiment(make), folder, FAST, resume=True)) == []
        assert files(folder) == before


def test_a_run_in_a_thread_needs_no_signals(tmp_path):
    found = []
    thread = threading.Thread(
        target=lambda: found.extend(jaxfed.run(experiment(rounds=3), tmp_path, FAST))
    )
    thread.start()
    thread.join()
    assert len(found) == 3


def test_a_consumer_that_stops_early_leaves_a_run_that_goes_on(tmp_path):
    running = jaxfed.run(experiment(), tmp_path, dataclasses.replace(SINGLE, checkpoint_every=1))
    next(running), next(running)
    running.close()
    rest = list(jaxfed.run(experiment(), tmp_path, SINGLE, resume=True))
    assert rest[-1]["round"] == 6
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
