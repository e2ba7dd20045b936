"""What is kept is what was made, whatever happens to files and processes in between."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from jaxfed.data import cache

ARRAYS = {"x": np.arange(6).reshape(2, 3), "y": np.ones(2, np.float32)}


def never():
    raise AssertionError("made again")


def test_arrays_are_made_once_for_one_content(tmp_path):
    cache.kept("a", [b"1", b"2"], lambda: ARRAYS, folder=tmp_path)
    again = cache.kept("a", [b"1", b"2"], never, folder=tmp_path)
    assert {n: (x.dtype, x.tolist()) for n, x in again.items()} == {
        n: (x.dtype, x.tolist()) for n, x in ARRAYS.items()
    }
    with pytest.raises(AssertionError, match="made again"):
        cache.kept("a", [b"12"], never, folder=tmp_path)


def test_a_damaged_file_is_made_again(tmp_path):
    cache.kept("a", [b"1"], lambda: ARRAYS, folder=tmp_path)
    (path,) = tmp_path.glob("*.npz")
    whole = path.read_bytes()
    for damaged in (whole[:-40], b"", whole.replace(b"\1\0\0\0\0\0\0\0\2", b"\3\0\0\0\0\0\0\0\2")):
        assert damaged != whole
        path.write_bytes(damaged)
        assert cache.kept("a", [b"1"], lambda: ARRAYS, folder=tmp_path)["x"].sum() == 15
        assert path.read_bytes() == whole


def test_what_was_not_used_for_longest_goes_first(tmp_path, monkeypatch):
    for i in range(3):
        cache.kept("a", [bytes([i])], lambda: ARRAYS, folder=tmp_path)
        time.sleep(0.01)
    size = next(tmp_path.glob("*.npz")).stat().st_size
    cache.kept("a", [b"\0"], never, folder=tmp_path)  # used again
    monkeypatch.setattr(cache, "MOST", 3 * size)
    cache.kept("a", [b"\3"], lambda: ARRAYS, folder=tmp_path)
    cache.kept("a", [b"\0"], never, folder=tmp_path)
    with pytest.raises(AssertionError):
        cache.kept("a", [b"\1"], never, folder=tmp_path)


def test_without_a_place_arrays_are_made_each_time(tmp_path):
    (tmp_path / "file").touch()
    assert cache.kept("a", [b"1"], lambda: ARRAYS, folder=tmp_path / "file" / "x") is ARRAYS


PROGRAM = """
import sys, time, pathlib
import numpy as np
from jaxfed.data import cache

def make():
    with open(sys.argv[1] + "/made", "a") as file:
        file.write("made ")
    time.sleep(float(sys.argv[2]))
    return {"x": np.arange(4)}

print(cache.kept("a", [b"1"], make, folder=pathlib.Path(sys.argv[1]))["x"].sum())
"""


@pytest.mark.full
def test_of_two_processes_one_makes_and_a_killed_one_leaves_nothing_behind(tmp_path):
    def start(seconds):
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )

    killed = start(60)
    while not (tmp_path / "made").exists():
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    both = [start(0.5), start(0.5)]
    assert [one.communicate()[0] for one in both] == ["6\n", "6\n"]
    assert (tmp_path / "made").read_text() == "made made "
