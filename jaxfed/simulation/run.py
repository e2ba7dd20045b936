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
from typing import Any

import jax
import numpy as np

from jaxfed import values
from jaxfed.simulation import (
    blocks,
    boards,
    by_client,
    engine,
    ledger,
    records,
    run_folder,
    signals,
    stopping,
)
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.host import Host
from jaxfed.simulation.prepare import Prepared, State, prepare


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
    board: list[boards.Board] = []  # once they are open
    try:
        yield [{}]
        yield from _blocks(p, noted, board)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            _close(p, board)
        raise
    _close(p, board)


def _close(p: Prepared, board: list[boards.Board]) -> None:
    try:
        for one in board:
            one.close()
        if p.folder is not None and jax.process_index() == 0:
            by_client.write_parquet(p.folder)
    finally:
        p.close()


def _blocks(
    p: Prepared, noted: Sequence[int], board: list[boards.Board]
) -> Generator[list[dict], None, None]:
    """The records of block after block; the next is prepared while the devices work."""
    state, saved, ranges, over = p.state, p.state.done, p.ranges(), stopping.watched(p)
    upcoming = None if over([]) else next(map(p.supply.block, ranges), None)
    begin = time.perf_counter()
    while (block := upcoming) is not None:
        server, states, metrics = p.step(state.server, block.states, block.examples, block.plan)
        p.population.keep(block.plan, states)
        upcoming = next(map(p.supply.block, ranges), None)
        metrics = jax.device_get(metrics)
        seconds = (time.perf_counter() - begin) / len(block.rounds)
        found, owed = _records_of(p, block, metrics, seconds, server, state.owed)
        state = State(server, owed, block.rounds.stop)
        stop = int(engine.largest(noted[0] if noted else 0, p.machine))
        each: dict[str, np.ndarray] = {}
        if p.is_due(p.experiment.evaluate_every, state.done):
            numbers, each = p.evaluate.measured(state.server, p.population.states_of)
            found[-1].update(numbers)
        _write(p, found, each, board)
        ends = over(found)
        if stop or ends or p.is_due(p.host.checkpoint_every, state.done, at_end=True):
            saved = _save(p, state, found[-1])
        try:
            yield found
        except BaseException:  # whoever takes the records is done with them
            if saved < state.done and p.checkpoints is not None:
                _save(p, state, found[-1])
                p.checkpoints.wait()
            raise
        if stop:
            raise signals.stopped_by(stop)
        if ends:
            return
        begin = time.perf_counter()


def _records_of(
    p: Prepared, block: blocks.Block, metrics: dict, seconds: float, server: Any, owed: np.ndarray
) -> tuple[list[dict], np.ndarray]:
    """(one record a round, owed); FloatingPointError if a client of one was not finite."""
    found, pay = [], ledger.MERGES[p.host.merges]
    for i, t in enumerate(block.rounds):
        plan, measured = jax.tree.map(lambda x, i=i: x[i], (block.plan, metrics))
        record = records.record(t, plan, measured)
        merge = p.algorithm.broadcast(server, t)
        extra, owed = pay(owed, plan.id, merge, p.base_bytes)
        found.append({**record, "seconds": seconds, "broadcast": extra})
    return found, owed


def _write(
    p: Prepared, found: list[dict], each: dict[str, np.ndarray], board: list[boards.Board]
) -> None:
    """Adds the records to metrics.jsonl and to the boards, which the first of them open.

    And to clients.jsonl what an evaluation measured for `each` client.
    """
    if p.folder is None or jax.process_index() != 0:
        return
    if each:
        by_client.append(p.folder, found[-1]["round"], each, p.experiment.data.names)
    run_folder.append(p.folder, found)
    if not board:
        board += boards.opened(p.folder, p.state.done, p.host.log)
    for one in board:
        one.show(found)


def _save(p: Prepared, state: State, record: dict) -> int:
    """Starts to save the state; the round that it is of."""
    if p.checkpoints is not None:
        p.checkpoints.wait()
        extra = p.population.save(state.done, p.checkpoints.rounds)
        score = record.get("accuracy")
        p.checkpoints.save(state.done, p.checkpointed(state), score=score, extra=extra)
    return state.done


# ---------------------------------------------------------------------- the end of the program

OPEN: weakref.WeakSet[Generator] = weakref.WeakSet()  # runs that were not closed


def _close_all() -> None:
    for running in list(OPEN):
        with contextlib.suppress(ValueError):  # it is at work, in a thread
            running.close()


# Threads can save nothing when atexit comes, as they cannot be started by then.
getattr(threading, "_register_atexit", atexit.register)(_close_all)
