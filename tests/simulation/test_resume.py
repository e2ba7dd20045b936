"""A run that was killed and resumed ends with the same bits as one that was not."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import launched
import pytest
from forked import Forked

ROUNDS, EVERY = 120, 4
OPTIONS = ("--rounds", ROUNDS, "--checkpoint-every", EVERY, "--cpu-devices", 2, "--chunk", 3)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, cache):
    """method -> the folder of a run that nobody stopped."""
    runs: dict[tuple, Path] = {}

    def run(*how):
        if how not in runs:
            runs[how] = tmp_path_factory.mktemp("unbroken") / "run"
            launched.finished(begun(*how, folder=runs[how], cache=cache))
        return runs[how]

    return run


def begun(method, placement="device", fuse=2, *, folder, cache):
    options = ("--method", method, *OPTIONS, "--fuse", fuse, "--out", folder)
    return Forked("run", launched.SMALL, *options, "--population", placement, cache=cache)


def resumed(folder, cache):
    return Forked("resume", folder, cache=cache)


def assert_same_end(folder, expected):
    assert launched.records(folder) == launched.records(expected)
    t, bits = launched.state(folder)
    t_expected, bits_expected = launched.state(expected)
    assert t == t_expected == ROUNDS
    assert bits == bits_expected


def rounds_in(folder):
    metrics = folder / "metrics.jsonl"
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def wait(process, happened):
    """Returns when `happened()`, or the process has ended."""
    while process.poll() is None and not happened():
        time.sleep(0.002)


def kill_when(process, happened, draw):
    wait(process, happened)
    time.sleep(draw.uniform(0, 0.05))
    process.kill()
    process.communicate()


@pytest.mark.full
@pytest.mark.parametrize(("method", "kills"), [("scaffold", 4), ("fedloru", 2)])
def test_killed_at_random_instants_ends_in_the_same_bits(method, kills, tmp_path, cache, unbroken):
    expected, folder = unbroken(method), tmp_path / "run"
    assert_killed_ends_as(expected, begun(method, folder=folder, cache=cache), kills, folder, cache)


@pytest.mark.full
@pytest.mark.parametrize(("placement", "kills"), [("host", 1), ("mapped", 2)])
def test_killed_with_clients_states_elsewhere_ends_as_with_them_on_the_device(
    placement, kills, tmp_path, cache, unbroken
):
    expected, folder = unbroken("scaffold", "device", 1), tmp_path / "run"
    process = begun("scaffold", placement, folder=folder, cache=cache)
    assert_killed_ends_as(expected, process, kills, folder, cache)


KILLS = 16  # 40 were run by hand


@pytest.mark.full
def test_killed_at_any_operation_on_a_file_ends_in_the_same_bits(tmp_path, cache):
    """Kills of runs of 24 rounds: in preparation, in writing, and within a resume."""
    options = ("--rounds", 24, "--checkpoint-every", EVERY, "--cpu-devices", 2, "--chunk", 3)
    whole = ("run", launched.SMALL, *options, "--fuse", 2, "--method", "scaffold", "--out")
    expected = tmp_path / "unbroken"
    launched.finished(Forked(*whole, expected, cache=cache))
    draw, kills, runs = random.Random(5), 0, 0

    def was_killed(folder, *command):
        """Whether the command was killed at an operation that is drawn, before its end."""
        at = draw.randint(1, 120) if kills < KILLS else 0
        process = Forked(*command, cache=cache, at=at, folder=folder)
        printed, _ = process.communicate(240)
        assert process.returncode in (0, -signal.SIGKILL), printed
        return process.returncode != 0

    while kills < KILLS:
        folder, runs = tmp_path / str(runs), runs + 1
        command = (*whole, folder)
        while was_killed(folder, *command):
            kills += 1
            begun_there = (folder / "settings.json").exists()
            command = ("resume", folder) if begun_there else (*whole, folder)
        assert launched.records(folder) == launched.records(expected)
        assert launched.state(folder) == launched.state(expected)


def assert_killed_ends_as(expected, process, kills, folder, cache):
    draw = random.Random(kills)
    targets, in_writing = sorted(draw.sample(range(1, ROUNDS - 20), kills)), 0
    for i, target in enumerate(targets):
        if i % 2:
            kill_when(process, lambda target=target: rounds_in(folder) >= target, draw)
        else:  # while a checkpoint is being written, beyond the target
            writing = (folder / "checkpoints").glob

            def is_written(target=target, glob=writing):
                return rounds_in(folder) >= target and any(glob("*.orbax-checkpoint-tmp*"))

            wait(process, is_written)
            process.kill()
            in_writing += any(writing("*.orbax-checkpoint-tmp*"))
            process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it was killed"
        process = resumed(folder, cache)
    launched.finished(process)
    assert in_writing
    assert_same_end(folder, expected)


@pytest.mark.full
@pytest.mark.parametrize(
    ("number", "status"),
    [
        (signal.SIGTERM, 143),
        (signal.SIGINT, 130),
    ],
    ids=["term", "int"],
)
def test_stopped_by_a_signal_goes_on_from_where_it_was(number, status, tmp_path, cache, unbroken):
    expected, folder = unbroken("scaffold"), tmp_path / "run"
    process = begun("scaffold", folder=folder, cache=cache)
    wait(process, lambda: rounds_in(folder) > ROUNDS // 4)
    os.kill(process.pid, number)
    printed = launched.finished(process, status)
    assert f"`jaxfed resume {folder}` goes on from round" in printed
    assert launched.state(folder)[0] == rounds_in(folder) < ROUNDS
    launched.finished(resumed(folder, cache))
    assert_same_end(folder, expected)


@pytest.mark.full
def test_a_damaged_checkpoint_is_passed_over(tmp_path, cache, unbroken):
    expected, folder = unbroken("scaffold"), tmp_path / "run"
    shutil.copytree(expected, folder)
    for path in (folder / "checkpoints" / str(ROUNDS) / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    printed = launched.finished(resumed(folder, cache))
    assert "damaged checkpoints" in printed
    assert f"resumed  after round {ROUNDS - EVERY}" in printed
    assert_same_end(folder, expected)


@pytest.mark.full
def test_killed_before_its_first_checkpoint_begins_again(tmp_path, cache, unbroken):
    expected, folder = unbroken("fedloru"), tmp_path / "run"
    process = begun("fedloru", folder=folder, cache=cache)
    wait(process, lambda: (folder / "settings.json").exists())
    process.kill()
    process.communicate()
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    launched.finished(resumed(folder, cache))
    assert_same_end(folder, expected)
