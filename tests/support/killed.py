"""The command line in forked processes, killed at their n-th operation on a file.

What takes long to import is imported once, in the server that forks them.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree"}
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    ["jaxfed.cli.running", "jaxfed.cli.sweep", "orbax.checkpoint", "tensorboardX"]
)


def ended(at: int, folder: Path, arguments: Sequence[object], output: Path) -> int:
    """The exit status of `jaxfed ARGUMENTS`, -SIGKILL if it came to its operation `at`, from 1.

    Counted are what Python opens, makes, renames and removes in the folder. What it printed is in
    `output`. JAX is as the environment had it when this was called first.
    """
    words = [str(word) for word in arguments]
    process = FORKING.Process(target=_run, args=(at, str(folder), words, str(output)))
    process.start()
    process.join(240)
    status = process.exitcode
    process.kill()  # if it hangs
    return status


def _run(at: int, folder: str, arguments: Sequence[str], output: str) -> None:
    from jaxfed.cli import main as command

    to = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(to, 1)
    os.dup2(to, 2)
    count = 0

    def noted(event, values):
        nonlocal count
        if event in EVENTS and folder in str(values[0]):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(noted)
    command.main(list(arguments))
