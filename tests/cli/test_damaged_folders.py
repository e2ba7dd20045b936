"""A folder that is damaged, or a stranger's, ends in one sentence that names what is wrong."""

import json
import os
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from launched import recorded_folder

from jaxfed.cli import main, plots

SMALL = Path(__file__).parents[1] / "support" / "small.py"


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a run that ended: 4 rounds, checkpoints of rounds 2 and 4."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    options = {"rounds": 4, "checkpoint-every": 2, "chunk": 5, "fuse": 1, "devices": 1}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    main.main(["run", str(SMALL), *words, "--out", str(folder)])
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def ended(arguments, capsys):
    """(status, what was printed to stderr) of a command."""
    capsys.readouterr()
    status = 0
    try:
        main.main([str(a) for a in arguments])
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


def in_settings(**changes):
    def damage(folder):
        path = folder / "settings.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def in_launch(**changes):
    def damage(folder):
        path = folder / "settings.json"
        found = json.loads(path.read_text())
        path.write_text(json.dumps({**found, "launch": {**found["launch"], **changes}}))

    return damage


def in_machine(**changes):
    def damage(folder):
        path = folder / "host.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def holds(name, content):
    """The file has this content, and is made if it is not there."""

    def damage(folder):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return damage


def gone(name):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def becomes_folder(name):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.mkdir(parents=True)

    return damage


def becomes_pipe(name):
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def becomes_socket(name):
    def damage(folder):
        (folder / name).unlink(missing_ok=True)
        here = Path.cwd()
        os.chdir(folder)  # a socket's path is short
        socket.socket(socket.AF_UNIX).bind(name)
        os.chdir(here)

    return damage


def becomes_link(name, to):
    def damage(folder):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(to)

    return damage


def line(number, content):
    """This line of metrics.jsonl has this content."""

    def damage(folder):
        path = folder / "metrics.jsonl"
        lines = path.read_bytes().splitlines()
        lines[number - 1] = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(b"\n".join(lines) + b"\n")

    return damage


def in_line(number, **changes):
    def damage(folder):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        line(number, json.dumps({**json.loads(lines[number - 1]), **changes}))(folder)

    return damage


def flipped(name, at=0.5):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[int(at * len(content))] ^= 1
        (folder / name).write_bytes(content)

    return damage


def cut(name):
    def damage(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return damage


def pickled(folder):
    np.savez(folder / "clients.npz", labels=np.array([{"a": 1}], object))


def labels_are(labels):
    return lambda folder: np.savez(folder / "clients.npz", labels=labels)


def huge(name, size):
    def damage(folder):
        with open(folder / name, "ab") as file:
            file.truncate(size)

    return damage


def nested(depth):
    return "[" * depth


# name: (damage, what resume says, what report says); None: it goes on, status 0.
SETTINGS, MACHINE, METRICS = (
    r"settings\.json", r"host\.json", r"metrics\.jsonl"
)  # fmt: skip
DAMAGES = {
    **{
        f"settings {content[:12]}": (holds("settings.json", content), SETTINGS, SETTINGS)
        for content in ("[]", "null", "3", '"text"', "true", "", "{", "{'a': 1}", nested(10**5),
                        "\ud7ff\x00", "9" * 5000)
    },
    "settings not utf-8": (holds("settings.json", b"\xff\xfe{}"), SETTINGS, SETTINGS),
    "settings {}": (holds("settings.json", "{}"), SETTINGS, None),
    "settings gone": (gone("settings.json"), SETTINGS, None),
    "settings a folder": (becomes_folder("settings.json"), SETTINGS, SETTINGS),
    "settings a pipe": (becomes_pipe("settings.json"), SETTINGS, SETTINGS),
    "settings a socket": (becomes_socket("settings.json"), SETTINGS, SETTINGS),
    "settings a device": (becomes_link("settings.json", "/dev/zero"), SETTINGS, SETTINGS),
    "settings too large": (huge("settings.json", 2**23), SETTINGS, SETTINGS),
    "experiment 3": (in_settings(experiment=3), SETTINGS, SETTINGS),
    "experiment null": (in_settings(experiment=None), SETTINGS, SETTINGS),
    "experiment {}": (in_settings(experiment={}), SETTINGS, None),
    "rounds text": (in_settings(experiment={"rounds": "4"}), SETTINGS, SETTINGS),
    "rounds true": (in_settings(experiment={"rounds": True}), SETTINGS, SETTINGS),
    "rounds -1": (in_settings(experiment={"rounds": -1}), SETTINGS, SETTINGS),
    "rounds below": (in_settings(experiment={"rounds": 2}), "rounds=2", None),
    "settings a list": (in_settings(settings=[1]), SETTINGS, SETTINGS),
    "config a number": (in_settings(config=3), SETTINGS, SETTINGS),
    "arguments text": (in_settings(arguments="--rounds 4"), SETTINGS, SETTINGS),
    "arguments numbers": (in_settings(arguments=[3]), SETTINGS, SETTINGS),
    "arguments null": (in_settings(arguments=None), SETTINGS, SETTINGS),
    "arguments unknown": (in_settings(arguments=["--nothing", "4"]), "no option --nothing", None),
    "versions a list": (in_settings(versions=[]), SETTINGS, SETTINGS),
    "launch a list": (in_settings(launch=[]), SETTINGS, SETTINGS),
    "launch null": (in_settings(launch=None), SETTINGS, SETTINGS),
    "launch chunk text": (in_launch(chunk="many"), SETTINGS, None),
    "launch chunk zero": (in_launch(chunk=0), SETTINGS, None),
    "launch stream 3": (in_launch(stream=3), SETTINGS, None),
    "launch population": (in_launch(population="moon"), SETTINGS, None),
    "launch devices": (in_launch(devices=-1), SETTINGS, None),
    "launch every": (in_launch(checkpoint_every="x"), SETTINGS, None),
    "launch cpus many": (in_launch(cpu_devices=100_000), "cpu_devices=100000; use 1 to", None),
    "launch cpus none": (in_launch(cpu_devices=0), "cpu_devices=0; use 1 to", None),
    "launch cpus text": (in_launch(cpu_devices="2"), SETTINGS, None),
    **{
        f"machine {content[:9]}": (holds("host.json", content), MACHINE, None)
        for content in ("[]", "3", "null", "{", "")
    },
    "machine {}": (holds("host.json", "{}"), None, None),
    "machine gone": (gone("host.json"), None, None),
    "machine a pipe": (becomes_pipe("host.json"), MACHINE, None),
    "machine chunk": (in_machine(chunk="5"), MACHINE, None),
    "machine chunk zero": (in_machine(chunk=0), MACHINE, None),
    "machine fuse": (in_machine(fuse=[1]), MACHINE, None),
    "machine population": (in_machine(population="moon"), MACHINE, None),
    "machine devices": (in_machine(devices=None), MACHINE, None),
    **{
        f"line {content[:9]}": (line(2, content), METRICS, METRICS)
        for content in ("3", "[1, 2]", "null", '"text"', "{", "", "{}", '{"round": 1}',
                        '{"round": "2"}', '{"round": true}', '{"round": 2.0}', nested(10**5))
    },
    "line last": (line(4, "3"), METRICS, METRICS),
    "line not utf-8": (line(3, b'{"round": 3, "a": "\xff"}'), METRICS, METRICS),
    "line long": (line(3, b"7" * (2**24 + 1)), METRICS, METRICS),
    "line doubled": (in_line(3, round=2), METRICS, METRICS),
    "line up text": (in_line(2, up="many"), METRICS, METRICS),
    "line down list": (in_line(2, down=[]), METRICS, METRICS),
    "line up huge": (line(2, '{"round": 2, "up": 1e999, "down": 1, "broadcast": 0}'), None,
                     METRICS),
    "line loss text": (in_line(2, loss="low"), None, METRICS),
    "line loss huge": (in_line(2, loss=10**400), None, METRICS),
    "line accuracy": (in_line(2, accuracy={}), None, METRICS),
    "line seconds": (in_line(2, seconds=False), None, METRICS),
    "line personal": (in_line(2, personal=3), None, METRICS),
    "line personal deep": (in_line(2, personal={"accuracy": {"p10": "x"}}), None, METRICS),
    "line NaN": (line(2, '{"round": 2, "loss": NaN, "up": 1, "down": 1, "broadcast": 0}'), None,
                 None),
    "metrics gone": (gone("metrics.jsonl"), METRICS, None),
    "metrics empty": (holds("metrics.jsonl", ""), METRICS, None),
    "metrics a folder": (becomes_folder("metrics.jsonl"), METRICS, METRICS),
    "metrics a pipe": (becomes_pipe("metrics.jsonl"), METRICS, METRICS),
    "metrics a device": (becomes_link("metrics.jsonl", "/dev/zero"), METRICS, METRICS),
    "metrics too large": (huge("metrics.jsonl", 2**31), METRICS, METRICS),
    "metrics binary": (holds("metrics.jsonl", bytes(range(256)) * 9), METRICS, METRICS),
    "config gone": (gone("config.py"), r"config\.py", None),
    "config empty": (holds("config.py", ""), "has no function", None),
    "config no Python": (holds("config.py", "def ("), "invalid syntax", None),
    "config a folder": (becomes_folder("config.py"), r"config\.py", None),
    "labels []": (holds("clients.npz", ""), None, r"clients\.npz"),
    "labels text": (holds("clients.npz", "PK but no zip"), None, r"clients\.npz"),
    "labels cut": (cut("clients.npz"), None, r"clients\.npz"),
    "labels flipped": (flipped("clients.npz", 0.3), None, r"clients\.npz"),
    "labels a pipe": (becomes_pipe("clients.npz"), None, r"clients\.npz"),
    "labels a folder": (becomes_folder("clients.npz"), None, r"clients\.npz"),
    "labels pickled": (pickled, None, r"clients\.npz"),
    "labels flat": (labels_are(np.arange(5)), None, r"clients\.npz"),
    "labels negative": (labels_are(-np.ones((4, 3), int)), None, r"clients\.npz"),
    "labels text array": (labels_are(np.array([["a"]])), None, r"clients\.npz"),
    "labels empty": (labels_are(np.zeros((0, 0), int)), None, None),
    "labels of none": (labels_are(np.zeros((5, 0), int)), None, None),
    "labels other name": (lambda f: np.savez(f / "clients.npz", x=1), None, r"clients\.npz"),
    "stray clients/x.npz": (holds("clients/x.npz", "stray"), None, None),
    "stray clients/-1.npz": (holds("clients/-1.npz", "stray"), None, None),
    "stray clients/1.npz": (holds("clients/1.npz", "stray"), None, None),
    "stray clients/notes": (holds("clients/notes.txt", "stray"), None, None),
    "stray checkpoints/foo": (holds("checkpoints/foo", "stray"), None, None),
    "stray checkpoints/foo/": (holds("checkpoints/foo/bar", "stray"), None, None),
    "stray checkpoints/9": (holds("checkpoints/9", "a file"), None, None),
    "stray checkpoints/7/": (becomes_folder("checkpoints/7"), None, None),
    "stray checkpoints/7.damaged": (holds("checkpoints/7.damaged/a", "stray"), None, None),
    "stray file": (holds("notes.txt", "stray"), None, None),
    "stray file new": (holds("metrics.jsonl.new", "stray"), None, None),
    "checkpoints gone": (gone("checkpoints"), "checkpoints is gone", None),
    "checkpoints a file": (
        lambda f: (gone("checkpoints")(f), holds("checkpoints", "")(f)), "checkpoints is a file",
        None,
    ),
    "checkpoint cut": (cut("checkpoints/4/state/_METADATA"), None, None),
    "checkpoint record gone": (gone("checkpoints/4/record"), None, None),
    "checkpoint empty": (becomes_folder("checkpoints/4"), None, None),
    "both empty": (
        lambda f: [becomes_folder(f"checkpoints/{t}")(f) for t in (2, 4)],
        "no checkpoint in .*checkpoints is intact", None,
    ),
    "clients gone": (gone("clients"), r"clients.*4\.npz", None),
    "clients/rows gone": (gone("clients/rows"), r"clients.rows", None),
    "clients/rows empty": (holds("clients/rows", ""), r"clients.rows: the states? of client", None),
    "clients/rows cut": (cut("clients/rows"), None, None),
    "clients/rows a pipe": (becomes_pipe("clients/rows"), r"clients.rows", None),
    "clients/4 flipped": (flipped("clients/4.npz"), None, None),
    "clients/4 gone": (gone("clients/4.npz"), None, None),
    "plots a link": (becomes_link("plots", ".."), r"plots is a link", r"plots is a link.*--to"),
    "plots a file": (
        lambda f: (gone("plots")(f), holds("plots", "")(f)), "plots could not be", "plots could not"
    ),
    "tensorboard a link": (becomes_link("tensorboard", ".."), None, None),
    "tensorboard a file": (
        lambda f: (gone("tensorboard")(f), holds("tensorboard", "")(f)), None, None
    ),
}  # fmt: skip


FULL = pytest.mark.full  # a second each
SOON = ("settings {}", "machine gone", "line last", "checkpoints gone", "clients/rows cut")
CASES = [
    pytest.param(command, name, marks=() if command == "report" or name in SOON else FULL)
    for command in ("resume", "report")
    for name in DAMAGES
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("command", "name"), CASES)
def test_a_damaged_folder_ends_in_one_sentence(command, name, folder, capsys, monkeypatch):
    monkeypatch.setattr(plots, "written", lambda plot, path: path)  # the pictures cost a second
    damage, resumed, reported = DAMAGES[name]
    damage(folder)
    said = resumed or reported if command == "resume" else reported  # a resumed run reports, too
    status, printed = ended([command, folder], capsys)
    last = printed.splitlines()[-1] if printed else ""
    if said is None:
        assert status == 0, printed
    else:
        assert status == 2
        assert last.startswith("jaxfed: ")
        assert "Traceback" not in printed
        assert re.search(said, last), last


@pytest.mark.parametrize(
    "name", ["../../../escaped", "a\x1b[2Jb", "", ".hidden", "a/b", "a" * 101, "a\nb"]
)
def test_a_measure_with_no_name_for_a_file_is_refused(name, tmp_path, capsys):
    place = recorded_folder(tmp_path / "deep" / "down" / "run", rounds=2, every=2)
    lines = (place / "metrics.jsonl").read_text().splitlines()
    evaluated = {**json.loads(lines[1]), name: 0.5}
    (place / "metrics.jsonl").write_text(f"{lines[0]}\n{json.dumps(evaluated)}\n")
    before = sorted(tmp_path.rglob("*"))
    status, printed = ended(["report", place], capsys)
    assert (status, "\x1b" in printed) == (2, False)
    assert "run/metrics.jsonl, line 2 is damaged (a measure is called" in printed
    (place / "metrics.jsonl").write_text(f"{lines[0]}\n{lines[1]}\n")
    (place / "clients.jsonl").write_text(
        json.dumps({"round": 2, "client": [0], name: [0.5]}) + "\n"
    )
    status, printed = ended(["report", place], capsys)
    assert (status, "\x1b" in printed) == (2, False)
    assert "clients.jsonl is damaged (a measure is called" in printed
    (place / "clients.jsonl").write_text(json.dumps({"round": 2, "client": [0], name: 0.5}) + "\n")
    assert "\x1b" not in ended(["report", place], capsys)[1]
    assert sorted(tmp_path.rglob("*")) == sorted([*before, place / "clients.jsonl"])


def test_rounds_that_are_no_number_are_left_out(tmp_path, capsys):
    place = recorded_folder(tmp_path / "run", rounds=2)
    settings = {"config": "digits", "settings": {"rounds": "many"}}
    (place / "settings.json").write_text(json.dumps(settings))
    assert ended(["report", place, "--html", tmp_path / "page.html"], capsys)[0] == 0
