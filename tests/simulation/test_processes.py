"""Two processes over the loopback compute what one process with two devices does."""

import socket

import launched
import numpy as np
import pytest
from forked import Forked

pytestmark = pytest.mark.full

OPTIONS = ("--checkpoint-every", 10, "--chunk", 2, "--fuse", 5)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def both(*arguments, cache):
    """What the two processes of one command print, process 0 first."""
    address = f"127.0.0.1:{free_port()}"
    started = [
        Forked(
            *arguments,
            "--cpu-devices",
            1,
            "--coordinator",
            address,
            "--processes",
            2,
            "--process",
            i,
            cache=cache / str(i),
        )
        for i in range(2)
    ]
    try:
        return [launched.finished(process) for process in started]
    finally:
        for process in started:
            process.kill()


def numbers(records):
    return np.array([[r["loss"], r.get("accuracy", 0), r["clients"]] for r in records])


def test_two_processes_are_one_process_with_two_devices(tmp_path):
    run = ("run", launched.SMALL, *OPTIONS)
    one, two = tmp_path / "one", tmp_path / "two"
    launched.finished(
        Forked(*run, "--rounds", 30, "--cpu-devices", 2, "--out", one, cache=tmp_path)
    )
    printed = both(*run, "--rounds", 20, "--out", two, cache=tmp_path)
    assert "2 x cpu" in printed[0]
    assert "round" not in printed[1]  # the second only works

    # Each process has what clients keep in its memory from here on.
    resumed = both("resume", two, "--rounds", 30, "--population", "host", cache=tmp_path)
    assert "resumed  after round 20" in resumed[0]
    expected, found = launched.records(one), launched.records(two)
    assert [r["round"] for r in found] == list(range(1, 31))
    np.testing.assert_allclose(numbers(found), numbers(expected), rtol=1e-4, atol=3e-3)
    assert [r["down"] for r in found] == [r["down"] for r in expected]
    assert launched.state(two)[0] == 30


def test_both_processes_refuse_a_folder_that_holds_a_run(tmp_path):
    (tmp_path / "settings.json").write_text("{}")
    address = f"127.0.0.1:{free_port()}"
    started = [
        Forked(
            "run",
            launched.SMALL,
            "--out",
            tmp_path,
            "--cpu-devices",
            1,
            "--coordinator",
            address,
            "--processes",
            2,
            "--process",
            i,
            cache=tmp_path / "cache",
        )
        for i in range(2)
    ]
    assert "holds a run already" in launched.finished(started[0], 2)
    assert "see process 0" in launched.finished(started[1], 2)


def test_processes_with_different_rates_are_refused_before_the_first_round(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    started = [
        Forked(
            "run",
            launched.SMALL,
            "--learning-rate",
            rate,
            "--out",
            tmp_path / "r",
            "--cpu-devices",
            1,
            "--coordinator",
            address,
            "--processes",
            2,
            "--process",
            i,
            cache=tmp_path / "cache",
        )
        for i, rate in enumerate((0.03, 0.3))
    ]
    for process, rate in zip(started, (0.03, 0.3), strict=True):
        printed = launched.finished(process, 2)
        assert "the processes of this run differ in" in printed
        assert f"learning_rate (here {rate})" in printed
    assert not list((tmp_path / "r").iterdir())
