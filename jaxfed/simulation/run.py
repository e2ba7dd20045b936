"""The host's loop: draw, run, evaluate, record, checkpoint.

A run is a function of its experiment and seed. Who is drawn in a round, and in which order a client
sees its examples, depends on (seed, round, client) alone, so a run that was killed and resumed
ends with the same bits as one that was not.
"""

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Generator, Sequence

import jax

from jaxfed import values
from jaxfed.simulation import engine, signals
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.host import Host
from jaxfed.simulation.prepare import Prepared, prepare
from jaxfed.simulation.progress import Progress


def run(
    experiment: Experiment,
    directory: str | os.PathLike | None = None,
    host: Host | None = None,
    *,
    resume: bool = False,
    allow: Sequence[str] = (),
) -> Generator[dict, None, None]:
    """Yields one record a round; with a directory, also writes metrics and checkpoints there.

    A record is {"round" (from 1), "loss", "seconds", "down", "up", "broadcast" (bytes, all clients
    together), "clients"}, and after an evaluation also "accuracy", "test_loss" and, if clients
    have test examples of their own, "personal": {name: {mean, min, p10, p50, p90,
    union}}. A directory's clients.jsonl has the last for each client.

    Everything is checked and compiled before this returns. With `resume`, the run in the directory
    goes on from its newest intact checkpoint, to `rounds`; all else in the experiment must be as it
    was, but for changes that `allow` names, which are kept in settings.json. Otherwise a directory
    that holds a run is refused. No two programs can run in one directory.

    A run that is left early, by break or close(), has a checkpoint of its last recorded round. With
    a directory, SIGTERM, SIGHUP, SIGUSR1 and Ctrl-C during a round let the rounds in progress end,
    and write a checkpoint before SystemExit(128 + signal) or KeyboardInterrupt.
    """
    values.kind("experiment", experiment, Experiment, "Experiment(data, algorithm, ...)")
    values.kind("host", host, Host | None, "Host(...), or None")
    values.kind("directory", directory, str | os.PathLike | None, "the path of a folder, or None")
    values.kind("resume", resume, bool, "True or False")
    if directory is not None and not os.fspath(directory):
        raise ValueError("directory='' is empty; name a folder, or give None to write nothing")
    prepared = prepare(experiment, host or Host(), directory, resume=resume, allow=allow)
    running = _records(prepared)
    next(running)  # from here on, closing it closes what was prepared
    OPEN.add(running)
    return running


def _records(p: Prepared) -> Generator[dict, None, None]:
    """Yields {} at first, then the records. Signals are noted while rounds are at work only."""
    noted: list[int] = []
    noting = signals.noting if p.folder is not None else contextlib.nullcontext
    with contextlib.closing(run_blocks(p, noted)) as work:
        yield next(work)[0]
        while True:
            with noting(noted):
                block = next(work, None)
            if noted:
                raise signals.stopped_by(noted[0])
            if block is None:
                return
            yield from block


def run_blocks(p: Prepared, noted: Sequence[int] = ()) -> Generator[list[dict], None, None]:
    """Yields [{}] at first, then the records of block after block, once they are on disk.

    Closed early, it saves the last recorded round. It stops as the first of the `noted` signals
    asks for, on all processes, when that round is saved.
    """
    progress = Progress(p)
    try:
        yield [{}]
        yield from _blocks(p, noted, progress)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            progress.close()
        raise
    progress.close()


def _blocks(
    p: Prepared, noted: Sequence[int], progress: Progress
) -> Generator[list[dict], None, None]:
    """The records of block after block; the next is prepared while the devices work."""
    server, ranges = p.state.server, p.ranges()
    upcoming = None if progress.over([]) else next(map(p.supply.block, ranges), None)
    begin = time.perf_counter()
    while (block := upcoming) is not None:
        server, states, metrics = p.step(server, block.states, block.examples, block.plan)
        p.population.keep(block.plan, states)
        upcoming = next(map(p.supply.block, ranges), None)
        metrics = jax.device_get(metrics)
        seconds = (time.perf_counter() - begin) / len(block.rounds)
        stop = int(engine.largest(noted[0] if noted else 0, p.machine))
        found, ends = progress.take(block, metrics, seconds, server, saving=stop > 0)
        try:
            yield found
        except BaseException:  # whoever takes the records is done with them
            progress.save(server, waiting=True)
            raise
        if stop:
            raise signals.stopped_by(stop)
        if ends:
            return
        begin = time.perf_counter()


# ---------------------------------------------------------------------- the end of the program

OPEN: weakref.WeakSet[Generator] = weakref.WeakSet()  # runs that were not closed


def _close_all() -> None:
    for running in list(OPEN):
        with contextlib.suppress(ValueError):  # it is at work, in a thread
            running.close()


# Threads can save nothing when atexit comes, as they cannot be started by then.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
