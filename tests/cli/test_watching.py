"""Progress, signals and folders of commands, in processes of their own."""

import os
import re
import signal
import time
from pathlib import Path

import forked
import launched
import pytest
import tiers
from forked import Forked

SLOW = """
import time

from jaxfed import Experiment


def experiment(seconds: float = 60.0) -> Experiment:
    \"\"\"Sleeps while it is built.\"\"\"
    print("asleep", flush=True)
    end = time.time() + seconds
    while time.time() < end:
        try:
            time.sleep(0.01)
        except BaseException:  # as a library may that is called here
            pass
"""


@pytest.fixture
def slow(tmp_path):
    path = tmp_path / "slow.py"
    path.write_text(SLOW)
    return path


def started(*arguments, cache):
    process = launched.start(*arguments, cache=cache)
    while "asleep" not in process.stdout.readline():
        assert process.poll() is None
    return process


STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 138}


@pytest.mark.parametrize(
    "number", tiers.usual(STATUS, signal.SIGTERM), ids=lambda number: number.name
)
def test_a_signal_while_a_run_is_built_ends_it_at_once_with_a_sentence(number, slow, tmp_path):
    process = started("run", slow, "--out", tmp_path / "r", cache=tmp_path)
    begin = time.monotonic()
    process.send_signal(number)
    printed = launched.finished(process, STATUS[number])
    assert time.monotonic() - begin < 10
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    assert re.search(rf"jaxfed: stopped by {name} after \d+ s \(building the experiment\)", printed)
    assert "Traceback" not in printed
    assert not (tmp_path / "r").exists()


@pytest.mark.full
def test_a_signal_inside_the_compiler_ends_the_run_at_once_and_frees_its_folder(tmp_path):
    command = ("run", launched.SMALL, "--out", tmp_path / "r", "--cpu-devices", 1)
    process = launched.start(*command, cache=tmp_path)
    while not (tmp_path / "r" / "lock").exists():
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    printed = launched.finished(process, 143)
    assert "jaxfed: stopped by SIGTERM after" in printed
    assert not list((tmp_path / "r").iterdir())


@pytest.mark.full
def test_progress_is_told_with_a_clock_before_the_first_round(tmp_path):
    command = ("run", launched.SMALL, "--rounds", 2, "--out", tmp_path / "r", "--cpu-devices", 1)
    printed = launched.finished(Forked(*command, cache=tmp_path))
    lines = re.findall(r"^ +(\d+) s  (.*)$", printed, re.MULTILINE)
    seconds, said = zip(*lines, strict=True)
    assert list(map(int, seconds)) == sorted(map(int, seconds))
    assert any(re.fullmatch(r"compiling a round, \d clients at once", line) for line in said)
    assert any(re.fullmatch(r"measured [\d.e-]+ s a round, \d clients at once", s) for s in said)
    assert printed.index(said[-1]) < printed.index("round 2/2")


IN_THAT_SECOND = """
import os, time
from jaxfed.cli import main
folder, command = values
os.chdir(folder)
time.strftime = lambda *_: "20260101-000000"
main.main(command)
"""


@pytest.mark.full
def test_runs_started_in_the_same_second_have_folders_of_their_own(tmp_path):
    command = ["run", str(launched.SMALL), "--rounds", "1", "--cpu-devices", "1", "--chunk", "5"]
    running = [
        forked.started(IN_THAT_SECOND, tmp_path, [*command, "--seed", str(seed)])
        for seed in range(2)
    ]
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0]
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {"small-20260101-000000", "small-20260101-000000-2"}
    assert all(len(launched.records(tmp_path / "runs" / name)) == 1 for name in names)


@pytest.mark.full
def test_a_run_that_goes_on_is_not_resumed_and_not_run_again(tmp_path):
    folder: Path = tmp_path / "r"
    options = ("--rounds", 100_000, "--cpu-devices", 1, "--chunk", 5, "--fuse", 1)
    first = Forked("run", launched.SMALL, *options, "--out", folder, cache=tmp_path)
    while not (folder / "metrics.jsonl").exists():
        assert first.poll() is None
        time.sleep(0.05)
    try:
        second = Forked("resume", folder, cache=tmp_path)
        assert f"in use by process {first.pid} of this" in launched.finished(second, 2)
    finally:
        os.kill(first.pid, signal.SIGTERM)
    assert "goes on from round" in launched.finished(first, 143)
    t, _ = launched.state(folder)
    assert t == len(launched.records(folder))
    assert not (folder / "lock").exists()
