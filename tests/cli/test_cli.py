"""The command line: help, settings, describe, resume, and what a terminal shows."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import launched
import pytest

from jaxfed.cli import describe, main
from jaxfed.simulation import flops

SMALL = launched.SMALL
QUICK = ("--chunk", "5", "--fuse", "1", "--devices", "1")


def command(*arguments):
    main.main(list(map(str, arguments)))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["run", "--help"]])
def test_help_lists_the_commands(arguments, capsys):
    command(*arguments)
    printed = capsys.readouterr().out
    assert all(f"jaxfed {name}" in printed for name in ("run", "resume", "report", "describe"))


def test_help_of_a_config_tells_its_settings_and_the_options(capsys):
    with pytest.raises(SystemExit) as ended:
        command("run", SMALL, "--help")
    assert not ended.value.code
    printed = capsys.readouterr().out
    for said in ("A config that starts fast", "of the clients' SGD", "clients vmapped at once"):
        assert said in printed
    for option in ("--rank INT", "--method {scaffold,fedloru}", "--chunk INT|{auto}"):
        assert option in printed.replace("\n", " ")


def test_describe_tells_size_traffic_and_memory_without_training(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command("describe", SMALL, "--method=fedloru", "--rank=2", "--devices=1")
    printed = capsys.readouterr().out
    assert "factors, rank 2, scale 1" in printed
    trained = 2 * (64 + 16) + 16 + 16 * 10 + 10  # factors beside dense_0, its bias, the head
    assert f"trained  {trained:,}" in printed
    assert "20 rounds of 5 clients" in printed
    assert "for a round of 5 clients at once" in printed
    told = re.findall(r"([\d.]+) ([kMG])FLOP", printed)
    client, one, all_rounds = (float(n) * {"k": 1e3, "M": 1e6, "G": 1e9}[unit] for n, unit in told)
    assert all_rounds == pytest.approx(20 * one, rel=0.02)  # all are printed in three digits
    assert 5 * client < 1.02 * one < 6 * client  # and the server's part
    assert not list(tmp_path.iterdir())


def test_flops_are_told_with_loops_of_unknown_length():
    cost = flops.Round(flops.Count(2e9), flops.Count(1e9, unbounded=1))
    assert describe.compute(cost, rounds=1000, cohort=4) == (
        "compute  2 GFLOP for a client in a round (mean over clients and rounds), 9 GFLOP in a "
        "round of 4, 9 TFLOP in 1,000 rounds; loops counted once, as their length is not known "
        "before: 1"
    )


@pytest.mark.slow
def test_run_then_resume_further_then_report(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command("run", SMALL, "--rounds=4", "--seed", 1, "--out", "r", *QUICK)
    assert "round 4/4" in capsys.readouterr().out
    saved = json.loads(Path("r/settings.json").read_text())
    assert saved["settings"]["rounds"] == 4
    assert saved["settings"]["seed"] == saved["experiment"]["seed"] == 1
    assert Path("r/config.py").read_text() == SMALL.read_text()

    command("resume", "r", "--rounds", 6)
    printed = capsys.readouterr()
    assert "resumed  after round 4" in printed.out
    assert "now ends after round 6; schedules in its config still count on 4" in printed.err
    assert [r["round"] for r in launched.records(Path("r"))] == list(range(1, 7))
    assert json.loads(Path("r/settings.json").read_text())["experiment"]["rounds"] == 6

    command("report", "r", "--to", "plots")
    assert " 6 " in capsys.readouterr().out
    assert (Path("plots") / "accuracy_by_round.png").exists()
    with pytest.raises(SystemExit):
        command("run", SMALL, "--out", "r")
    assert "go on with `jaxfed resume r`" in capsys.readouterr().err


@pytest.mark.slow
def test_nan_ends_in_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command("run", SMALL, "--learning-rate", "1e30", "--out", tmp_path / "r", *QUICK)
    printed = capsys.readouterr().err
    assert "is not finite; lower the learning rate" in printed
    assert "Traceback" not in printed


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from jaxfed.cli import main
from jaxfed.simulation import run_folder
append = run_folder.append
def full(path, records):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, resource.RLIM_INFINITY))
    append(path, records)
run_folder.append = full
main.main()
"""


@pytest.mark.slow
def test_a_disk_that_is_full_ends_in_one_sentence(tmp_path):
    arguments = ("run", SMALL, "--out", tmp_path / "r", *QUICK, "--cpu-devices", 1)
    ended = subprocess.run(
        [sys.executable, "-c", FULL, *map(str, arguments)], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "metrics.jsonl could not be written: File too large; put this right" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_a_terminal_shows_speed_accuracy_megabytes_and_time_left(tmp_path):
    arguments = ("run", SMALL, "--rounds", 60, "--out", tmp_path / "r", *QUICK)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", "from jaxfed.cli import main; main.main()", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while chunk := read(ours):
        shown += chunk
    assert process.wait() == 0
    bars = shown.decode().split("\r")
    assert any("60/60" in bar and "accuracy=" in bar and " MB" in bar for bar in bars)
    assert any(" rounds/s" in bar and "<" in bar for bar in bars)


def read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # the other end was closed
        return b""
