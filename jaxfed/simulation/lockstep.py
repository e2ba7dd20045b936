"""Runs in lockstep: the host's loop over trials whose rounds are one call; see together.py."""

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from jaxfed.algorithm import PyTree
from jaxfed.simulation import blocks, engine, signals, together
from jaxfed.simulation.prepare import Prepared
from jaxfed.simulation.progress import Progress
from jaxfed.simulation.together import Together


class Turn(NamedTuple):
    """One trial after a call."""

    trial: int
    records: list[dict]
    ended: bool
    error: FloatingPointError | None = None  # of a trial that diverged


def run_blocks(
    members: Sequence[Prepared], trials: Together, noted: Sequence[int] = ()
) -> Generator[list[Turn], None, None]:
    """The turns of all trials that go on, call after call, once their records are on disk.

    A trial that ends or diverges is closed, and the others go on. Closed early, it saves the last
    recorded round of each. It stops as the first of the `noted` signals asks for, when that round
    is saved. The seconds of a record are those of a round of all trials over their number.
    """
    going = {i: Progress(together.resting(p)) for i, p in enumerate(members)}
    try:
        yield from _turns(going, trials, noted)
    except BaseException:
        for progress in going.values():
            with contextlib.suppress(OSError):  # the first error is the one to report
                progress.close()
        raise


def _turns(
    going: dict[int, Progress], trials: Together, noted: Sequence[int]
) -> Generator[list[Turn], None, None]:
    """The turns after call after call; trials that ended are taken out of those `going`."""
    ranges = going[0].p.ranges()
    if over := [Turn(i, [], ended=True) for i, progress in going.items() if progress.over([])]:
        _close(going, over)
        yield over
    upcoming = _blocks(going, ranges)
    begin = time.perf_counter()
    while now := {i: block for i, block in upcoming.items() if i in going}:
        trials, metrics = trials({i: block.plan for i, block in now.items()})
        upcoming = _blocks(going, ranges)
        metrics = jax.device_get(metrics)
        rounds = len(now) * len(next(iter(now.values())).rounds)
        seconds = (time.perf_counter() - begin) / rounds
        stop = noted[0] if noted else 0
        turns = [
            _turn(i, going[i], block, trials, metrics, seconds, saving=stop > 0)
            for i, block in now.items()
        ]
        _close(going, turns)
        try:
            yield turns
        except BaseException:  # whoever takes the records is done with them
            for i, progress in going.items():
                server = _at_hand(trials, i, progress.p, now[i])
                progress.save(server, waiting=True)
            raise
        if stop:
            raise signals.stopped_by(stop)
        if len(going) < len(now) and going:
            trials = trials.of_only(list(going))
        begin = time.perf_counter()


def _blocks(going: dict[int, Progress], ranges: Iterator[range]) -> dict[int, blocks.Block]:
    """The next rounds of each, if any are left."""
    rounds = next(ranges, None)
    if rounds is None:
        return {}
    return {i: progress.p.supply.block(rounds) for i, progress in going.items()}


def _turn(
    i: int,
    progress: Progress,
    block: blocks.Block,
    trials: Together,
    metrics: PyTree,
    seconds: float,
    *,
    saving: bool,
) -> Turn:
    """The turn of a trial; its arrays are taken from those of all where they are needed."""
    p, place = progress.p, trials.seats.index(i)
    mine = jax.tree.map(lambda x: x[place], metrics)
    server = p.state.server  # shapes
    if saving or progress.is_due(block.rounds.stop):
        server = _at_hand(trials, i, p, block)
    else:
        p.population.keep(block.plan, ())
    try:
        found, ends = progress.take(block, mine, seconds, server, saving=saving)
    except FloatingPointError as error:
        return Turn(i, [], ended=True, error=error)
    p.population.place.keep(block.plan, ())
    return Turn(i, found, ended=ends or block.rounds.stop == p.experiment.rounds)


def _at_hand(trials: Together, i: int, p: Prepared, block: blocks.Block) -> Any:
    """The server of a trial, and to its population what its clients keep."""
    server, states = engine.place(trials.one(i), p.machine)
    p.population.keep(block.plan, states)
    return server


def _close(going: dict[int, Progress], turns: Sequence[Turn]) -> None:
    for turn in turns:
        if turn.ended:
            going.pop(turn.trial).close()
