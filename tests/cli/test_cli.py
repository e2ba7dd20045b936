"""The command line: help, settings, describe, resume, and what a terminal shows."""

import fcntl
import json
import os
import pty
import py_compile
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from py_compile import PycInvalidationMode
from types import SimpleNamespace

import launched
import numpy as np
import pytest

import jaxfed
from jaxfed.cli import describe, main, options
from jaxfed.simulation import flops, hlo, targets

SMALL = launched.SMALL
QUICK = ("--chunk", "5", "--fuse", "1", "--devices", "1")


def command(*arguments):
    main.main(list(map(str, arguments)))


@pytest.mark.quick
@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(arguments, capsys):
    command(*arguments)
    printed = capsys.readouterr().out
    assert all(f"jaxfed {name}" in printed for name in ("run", "resume", "report", "describe"))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("run", "--out"),
        ("describe", "--chunk"),
        ("resume", "--rounds"),
        ("report", "--to"),
        ("analyse", "--depth"),
    ],
)
def test_help_of_a_command_lists_its_options(name, option, capsys):
    with pytest.raises(SystemExit) as ended:
        command(name, "--help")
    assert not ended.value.code
    assert option in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    command("--version")
    assert capsys.readouterr().out.startswith(f"jaxfed {jaxfed.__version__}, jax ")
    module = [sys.executable, "-m", "jaxfed.cli", "--version"]
    assert f"jaxfed {jaxfed.__version__}" in subprocess.check_output(module, text=True)


BESIDE = """
from pathlib import Path
import numpy as np
import optax
import split_of_mine
from jaxfed import Experiment, local, models, tasks
from jaxfed.algorithms import fedavg
from jaxfed.data import federate, sources

def experiment(data: Path = Path("data.npz"), rounds: int = 2) -> Experiment:
    assert (Path(__file__).parent / "notes.txt").read_text() == "beside"
    source = sources.npz(data)
    task = tasks.classification(models.MLP((4,), classes=2), source.test)
    algorithm = fedavg(task, local.Work(4, epochs=1), client_optimizer=optax.sgd(0.1))
    population = federate(source, split_of_mine.halves(len(source.train["label"])))
    return Experiment(population, algorithm, rounds=rounds, cohort=2, evaluate_every=2)
"""


@pytest.fixture
def study(tmp_path):
    """A folder with a config, and beside it a module, a text and data."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "mine.py").write_text(BESIDE)
    (folder / "notes.txt").write_text("beside")
    (folder / "split_of_mine.py").write_text(
        "import numpy as np\n\n\ndef halves(n):\n    return np.array_split(np.arange(n), 2)\n"
    )
    image, label = np.zeros((8, 2, 2), np.uint8), np.arange(8) % 2
    np.savez(folder / "data.npz", train_image=image, train_label=label, test_image=image,
             test_label=label)  # fmt: skip
    return folder


def test_a_config_finds_what_lies_beside_it_from_wherever_it_is_resumed(
    study, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(study)
    monkeypatch.setattr(sys, "path", before := list(sys.path))
    command("run", "mine.py", "--out", "r", *QUICK)
    monkeypatch.chdir(tmp_path)
    command("resume", "study/r", "--rounds", 3)
    assert [r["round"] for r in launched.records(study / "r")] == [1, 2, 3]
    assert sys.path == before
    assert Path.cwd() == tmp_path


def test_a_config_that_was_moved_away_is_executed_from_the_runs_folder(study, tmp_path):
    (study / "r").mkdir()
    (study / "r/config.py").write_text("stored")
    saved = {"directory": str(study), "config": "mine.py"}
    original = options.stored(study / "r", saved)
    assert original == ("stored", study / "mine.py", study)
    (study / "mine.py").unlink()
    assert options.stored(study / "r", saved).path == study / "r/config.py"
    for damaged in ({}, {"directory": "."}, {"directory": [], "config": 3}):
        assert options.stored(study / "r", damaged).directory == Path.cwd()


def test_modules_in_a_runs_folder_are_not_imported(study, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (study / "settings.json").write_text("{}")
    (study / "trojan.py").write_text("")
    (study / "config.py").write_text("import trojan\n")
    config = options.stored(study, {})
    with options.at_home(config), pytest.raises(ImportError):
        options.load(config.path, config.text)


def test_the_text_that_was_read_is_executed(tmp_path):
    """Not the file as it is later, and not what Python compiled of it once."""
    path = tmp_path / "mine.py"
    path.write_text("x = 1\n")
    config = options.read(path)
    path.write_text("x = 2\n")
    compiled = py_compile.compile(str(path), invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    assert compiled
    module = options.load(config.path, config.text)
    assert module.x == 1
    assert Path(module.__file__) == path


@pytest.mark.quick
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


@pytest.mark.quick
def test_a_round_elsewhere_is_told_with_its_memory_and_its_bound():
    """Two chunks were tried on a device of 100 bytes, 1 FLOP/s and 1 byte/s."""
    device = targets.Device(100.0, 1.0, 1.0, 1.0)
    where = targets.Target("tpu:x:1", "tpu", device, (SimpleNamespace(device_kind="X"),), {})
    work = hlo.Work(30, 50, 20, 10, (("all-reduce", 1, 5),))
    tried = [
        targets.Compiled(4, 40, 80, work, work, False),
        targets.Compiled(2, 40, 40, work, hlo.Work(3), True),
    ]
    printed = describe.elsewhere(where, tried)
    assert "40 B arguments and 80 B temporary for 4 clients at once: 1.2 of" in printed
    assert "40 B temporary for 2 clients at once: 0.8 of what is there, which fits" in printed
    assert "1 all-reduce of 5 B" in printed
    assert "3 a local step, 30 a round" in printed
    assert "at least 50 s a round, by memory (30 s of arithmetic, 50 s of memory)" in printed


@pytest.mark.quick
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--for", "h1:1"], "'h1:1' is no target"),
        (["--for"], "--for has no value"),
        (["--for=nothing"], "'nothing' is no target"),
    ],
)
def test_describe_refuses_a_target_that_is_none(arguments, sentence, capsys):
    with pytest.raises(SystemExit):
        command("describe", SMALL, *arguments)
    assert sentence in capsys.readouterr().err


@pytest.mark.quick
def test_flops_are_told_with_loops_of_unknown_length():
    cost = flops.Round(flops.Count(2e9), flops.Count(1e9, unbounded=1))
    assert describe.compute(cost, rounds=1000, cohort=4) == (
        "compute  2 GFLOP for a client in a round (mean over clients and rounds), 9 GFLOP in a "
        "round of 4, 9 TFLOP in 1,000 rounds; loops counted once, as their length is not known "
        "before: 1"
    )


@pytest.mark.quick
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


def test_a_warning_that_recurs_is_printed_once(tmp_path, capsys, monkeypatch):
    """As a sweep's trials repeat it, each of which executes the config's text anew."""

    def repeated(arguments, watch):
        for i in (1, 1, 2, 1):
            exec(f"import warnings; warnings.warn('rows left out: {i}')", {})

    monkeypatch.setattr(main, "_command", lambda name: repeated)
    main.main(["run", "config.py"])
    printed = launched.without_progress(capsys.readouterr().err)
    assert printed == "warning: rows left out: 1\nwarning: rows left out: 2\n"


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


@pytest.mark.full
def test_a_disk_that_is_full_ends_in_one_sentence(tmp_path):
    arguments = ("run", SMALL, "--out", tmp_path / "r", *QUICK, "--cpu-devices", 1)
    ended = subprocess.run(
        [sys.executable, "-c", FULL, *map(str, arguments)], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "metrics.jsonl could not be written: File too large; put this right" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_ends_quietly_where_its_output_is_closed():
    """As by `| head`; Python would flush what is left and print a traceback."""
    begun = "from jaxfed.cli import main; main.main(['zoo'])"
    process = subprocess.Popen(
        [sys.executable, "-c", begun], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 128 + 13


@pytest.mark.full
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
