"""A folder's lock: one holder at a time, and none that has ended."""

import json
import os
import socket
import subprocess
import sys
import threading

import pytest
import tiers

from jaxfed.simulation import lock


def test_the_second_is_refused_until_the_first_releases(tmp_path):
    held = lock.take(tmp_path)
    with pytest.raises(FileExistsError, match=f"in use by process {os.getpid()} of this computer"):
        lock.take(tmp_path)
    held.release()
    lock.take(tmp_path).release()
    assert not list(tmp_path.iterdir())


def write_lock(folder, **changes):
    content = {"host": socket.gethostname(), "process": os.getpid(), "token": "x", **changes}
    (folder / "lock").write_text(json.dumps(content))


def ended():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


STALE = {
    "ended": lambda: {"process": ended()},
    "reused": lambda: {"process": os.getppid(), "started": "1"},
    "our own id, as in a container": lambda: {"process": os.getpid()},
    "no process": lambda: {"process": "many"},
}


@pytest.mark.parametrize("made", STALE.values(), ids=STALE)
def test_the_lock_of_a_process_that_ended_is_replaced(made, tmp_path):
    write_lock(tmp_path, **made())
    held = lock.take(tmp_path)
    assert json.loads((tmp_path / "lock").read_text())["token"] == held.token
    held.release()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", tiers.usual(["", "{", "[]"], "{"))
def test_a_lock_that_was_never_written_whole_is_replaced(content, tmp_path):
    (tmp_path / "lock").write_text(content)
    lock.take(tmp_path).release()
    assert not list(tmp_path.iterdir())


def test_a_zombie_holds_nothing(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    write_lock(tmp_path, process=process.pid, started=lock._started(process.pid))
    with pytest.raises(FileExistsError, match=f"process {process.pid} of this computer"):
        lock.take(tmp_path)
    process.stdin.close()
    while lock._started(process.pid) != "ended":
        pass
    lock.take(tmp_path).release()
    process.wait()


def test_the_lock_of_another_computer_is_refused_with_the_remedy(tmp_path):
    write_lock(tmp_path, host="elsewhere", process=1)
    with pytest.raises(FileExistsError, match=r"process 1 on elsewhere; .* remove .*lock"):
        lock.take(tmp_path)
    (tmp_path / "lock").unlink()
    lock.take(tmp_path).release()


def test_what_another_took_over_is_not_released(tmp_path):
    held = lock.take(tmp_path)
    write_lock(tmp_path, token="another")
    held.release()
    assert (tmp_path / "lock").exists()


def test_without_a_table_of_processes_their_signals_tell(tmp_path, monkeypatch):
    """As on macOS."""
    monkeypatch.setattr(lock, "_started", lambda process: None)
    write_lock(tmp_path, process=os.getppid(), started=None)
    with pytest.raises(FileExistsError):
        lock.take(tmp_path)
    write_lock(tmp_path, process=ended(), started=None)
    lock.take(tmp_path).release()


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path):
    write_lock(tmp_path, process=ended())
    begin, taken, refused = threading.Barrier(8), [], []

    def attempt():
        begin.wait()
        try:
            taken.append(lock.take(tmp_path))
        except FileExistsError:
            refused.append(1)

    threads = [threading.Thread(target=attempt) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(taken), len(refused)) == (1, 7)
    taken[0].release()
    assert not list(tmp_path.iterdir())


def test_a_program_killed_as_it_takes_over_leaves_no_lock_behind(tmp_path):
    killed = {"process": 2**22 + 1, "started": "1"}
    (tmp_path / "lock").write_text(json.dumps({**killed, "token": "a1"}))
    (tmp_path / "lock.a1").write_text(json.dumps({**killed, "token": "b2"}))
    (tmp_path / "lock.a1.b2").write_text("")  # killed before it wrote a word
    held = lock.take(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    held.release()
    assert not list(tmp_path.iterdir())


def test_a_lock_is_refused_while_another_takes_it_over(tmp_path):
    killed = {"process": 2**22 + 1, "started": "1"}
    (tmp_path / "lock").write_text(json.dumps({**killed, "token": "a1"}))
    (tmp_path / "lock.a1").write_text(json.dumps({"process": os.getppid(), "token": "b2"}))
    with pytest.raises(FileExistsError, match=f"in use by process {os.getppid()}"):
        lock.take(tmp_path)


@pytest.mark.parametrize("token", ["../x", 7, "", None])
def test_a_damaged_token_names_no_file_elsewhere(token, tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"process": 2**22 + 1, "token": token}))
    lock.take(tmp_path).release()
    assert not list(tmp_path.iterdir())
