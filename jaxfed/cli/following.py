"""A run from the command line: in which folder, how it goes, and its end."""

import contextlib
import itertools
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from jaxfed import trees
from jaxfed.cli import describe, plots, recorded, studies, tables
from jaxfed.cli.launching import Launch
from jaxfed.cli.watching import Watch
from jaxfed.simulation import records, signals
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.lockstep import Turn
from jaxfed.simulation.prepare import Prepared, prepare
from jaxfed.simulation.run import run_blocks

SHOWN = ("accuracy", "own", "matthews", "f1", "loss")  # own: the mean of clients' own accuracies


def go(experiment: Experiment, launch: Launch, path: Path, watch: Watch, **how: Any) -> None:
    """Runs the experiment in this folder, watched; a signal ends it when a checkpoint is there."""
    prepared = prepare(experiment, launch.host, path, **how)
    first = jax.process_index() == 0
    watch.rounds_begin()
    if first:
        print(_summary(prepared))
        print(f"folder   {path}", flush=True)
    done = [prepared.state.done]
    try:
        follow(prepared, watch.noted, done, bar=first, lines=first)
        if watch.noted:
            raise signals.stopped_by(watch.noted[0])
    except (KeyboardInterrupt, SystemExit) as stop:
        status = stop.code if isinstance(stop, SystemExit) else 128 + signal.SIGINT
        saved = max(prepared.checkpoints.rounds if prepared.checkpoints else [], default=0)
        then = f"`jaxfed resume {path}` goes on from round {saved}"
        if saved == experiment.rounds:
            then = f"it was the last; `jaxfed report {path}` shows the run"
        print(f"jaxfed: stopped after round {done[-1]}; {then}", file=sys.stderr)
        raise SystemExit(int(status or 0)) from None
    watch.rounds_end()
    if not first:
        return
    groups = studies.grouped([recorded.read(path)])
    plots.draw(groups, plots.place(path))
    print(tables.text(tables.table(groups)))
    print(f"plots    {path / 'plots'}")


def follow(
    prepared: Prepared, noted: list[int], done: list[int], *, bar: bool, lines: bool
) -> None:
    """Runs to the end, with a progress bar on a terminal, or plain lines elsewhere.

    Appends to `done` each round that is recorded.
    """
    rounds, sent = prepared.experiment.rounds, prepared.sent
    shown: dict[str, str] = {}
    terminal, printed = sys.stderr.isatty(), time.monotonic()
    with (
        contextlib.closing(run_blocks(prepared, noted)) as work,
        tqdm(
            total=rounds,
            initial=prepared.state.done,
            unit=" rounds",
            disable=not (bar and terminal),
            dynamic_ncols=True,
        ) as progress,
    ):
        next(work)
        for record in itertools.chain.from_iterable(work):
            done.append(record["round"])
            sent += record["down"] + record["up"] + record["broadcast"]
            last = {**record, "own": records.at(record, "personal/accuracy/mean")}
            shown |= {n: f"{last[n]:.4f}" for n in SHOWN if last.get(n) is not None}
            progress.set_postfix(shown | {"sent": f"{sent / 1e6:,.1f} MB"}, refresh=False)
            progress.update()
            due = "accuracy" in record or record["round"] == rounds
            if terminal or not lines or not (due or time.monotonic() > printed + 10):
                continue
            printed = time.monotonic()
            print(
                f"round {record['round']}/{rounds}",
                *(f"{n} {v}" for n, v in shown.items()),
                f"sent {sent / 1e6:,.1f} MB",
                f"{1 / record['seconds']:.3g} rounds/s",
                sep="  ",
                flush=True,
            )


def follow_turns(work: Iterable[list[Turn]], left: int, done: list[int]) -> Iterator[Turn]:
    """The last turn of each trial, as it comes, with a progress bar of `left` rounds on a terminal.

    Appends to `done` each round that is recorded.
    """
    with tqdm(total=left, unit=" rounds", disable=not sys.stderr.isatty()) as progress:
        for turns in work:
            for turn in turns:
                done += [record["round"] for record in turn.records]
                progress.update(len(turn.records))
            if ended := [turn for turn in turns if turn.ended]:
                progress.clear()  # to make room for what is printed
                yield from ended


def _summary(prepared: Prepared) -> str:
    e, server, machine = prepared.experiment, prepared.state.server, prepared.machine
    theta = describe.whole(server.theta, e.task.init)
    lines = [
        describe.parameters(server.base, theta, prepared.wire, trees.size(server.theta)),
        describe.population(e.data.train, e.cohort),
        f"machine  {len(machine.devices)} x {machine.devices[0].device_kind}, "
        f"{machine.chunk} clients at once on each, {prepared.form.fuse} rounds in a call",
    ]
    if prepared.state.done:
        lines.append(f"resumed  after round {prepared.state.done}")
    return "\n".join(lines)
