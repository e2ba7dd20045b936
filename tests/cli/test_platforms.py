"""Systems that are not at hand, imitated: no call that only Unix knows lies on the way of a run."""

import ast
import os
import signal
from pathlib import Path

import launched
import pytest

import jaxfed
from jaxfed.cli import main
from jaxfed.data import memory

PACKAGE = Path(jaxfed.__file__).parent
MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}
CALLS = {"fork", "getuid", "killpg", "mkfifo", "pread", "pwrite", "setsid", "sysconf"}
CALLS |= {"O_NOFOLLOW", "O_NONBLOCK", "sched_getaffinity"}


@pytest.mark.quick
def test_no_module_asks_for_what_only_unix_has():
    """But memory.py, which asks after it has looked at the name of the system."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {getattr(node, "module", None), *(a.name for a in node.names)} & MODULES
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "os":
                names = {node.attr} & CALLS
            else:
                continue
            found |= {(path.stem, name) for name in names}
    assert found == {("memory", "sysconf")}


@pytest.mark.full
def test_a_run_ends_and_is_resumed_without_them(tmp_path, monkeypatch):
    for name in CALLS - {"O_NONBLOCK", "sysconf"}:  # other packages ask for these, on Unix
        monkeypatch.delattr(os, name)
    for name in ("SIGHUP", "SIGUSR1"):
        monkeypatch.delattr(signal, name)
    monkeypatch.setattr(memory, "free", lambda: 2**33)
    quick = ["--chunk=5", "--fuse=1", "--devices=1", "--cpu-devices=4", "--population=mapped"]
    main.main(["run", str(launched.SMALL), "--rounds=2", f"--out={tmp_path / 'r'}", *quick])
    main.main(["resume", str(tmp_path / "r"), "--rounds=3"])
    assert [r["round"] for r in launched.records(tmp_path / "r")] == [1, 2, 3]
