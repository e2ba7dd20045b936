"""The command line in forked processes, which may be killed at their n-th operation on a file.

What takes long to import is imported once, in the server that forks them.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "shutil.rmtree"}
FORKING = multiprocessing.get_context("forkserver")
FORKING.set_forkserver_preload(
    ["jaxfed.cli.running", "jaxfed.cli.sweep", "orbax.checkpoint", "tensorboardX"]
)


class Forked:
    """`jaxfed ARGUMENTS`, with those attributes of subprocess.Popen that the tests use.

    It is killed at its operation `at`, counted from 1, on files in the `folder`: what Python opens,
    makes, renames and removes there. JAX compiles as for users and keeps programs in the `cache`;
    without one it compiles as for the tests.
    """

    def __init__(
        self, *arguments: object, cache: Path | None = None, at: int = 0, folder: Path | str = ""
    ) -> None:
        self._printed = tempfile.NamedTemporaryFile(mode="r")  # noqa: SIM115 (it lives as this does)
        words = [str(word) for word in arguments]
        self._process = FORKING.Process(
            target=_run, args=(words, self._printed.name, cache, at, str(folder))
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it printed, once it has ended; a process that hangs is killed."""
        self._process.join(timeout)
        self._process.kill()
        self._process.join()
        return self._printed.read(), None


def started(code: str, *values: object) -> multiprocessing.process.BaseProcess:
    """A forked process that runs this code, in which `values` are these."""
    process = FORKING.Process(target=exec, args=(code, {"values": values}))
    process.start()
    return process


def _run(arguments: Sequence[str], output: str, cache: Path | None, at: int, folder: str) -> None:
    import jax

    from jaxfed.cli import main as command

    to = os.open(output, os.O_WRONLY)
    os.dup2(to, 1)
    os.dup2(to, 2)
    if cache:  # the server that forked this process has the environment of the tests
        jax.config.update("jax_disable_most_optimizations", False)
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    count = 0

    def noted(event, values):
        nonlocal count
        if event in EVENTS and folder in str(values[0]):
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

    if at:
        sys.addaudithook(noted)
    command.main(list(arguments))
