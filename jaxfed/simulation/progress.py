"""What a run has done, call after call: its records, evaluations and checkpoints."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import jax
import numpy as np

from jaxfed import trees
from jaxfed.algorithm import ACCOUNT
from jaxfed.simulation import (
    blocks,
    boards,
    by_client,
    ledger,
    records,
    run_folder,
    stopping,
)
from jaxfed.simulation.prepare import Prepared, State


class Progress:
    """The host's side of a run that goes on. Its server is handed in, as rounds donate it."""

    def __init__(self, p: Prepared) -> None:
        self.p = p
        self.owed, self.done, self.saved = p.state.owed, p.state.done, p.state.done
        self.last: dict = {}  # the newest record
        self.board: list[boards.Board] = []  # once they are open

    @cached_property
    def over(self) -> Callable[[Sequence[dict]], bool]:
        """A function of each block's records; see stopping.watched."""
        return stopping.watched(self.p)

    def is_due(self, done: int) -> bool:
        """True if an evaluation or a checkpoint is due after so many rounds."""
        saving = self.p.is_due(self.p.host.checkpoint_every, done, at_end=True)
        return saving or self.p.is_due(self.p.experiment.evaluate_every, done)

    def take(
        self,
        block: blocks.Block,
        metrics: dict,
        seconds: float,
        server: Any,
        *,
        saving: bool = False,
    ) -> tuple[list[dict], bool]:
        """(the records of a block, True if the run ends after it): they are on disk, as is what is
        due. `seconds` are those of a round; shapes do as a server if nothing is due.

        FloatingPointError if a client of one was not finite.
        """
        found, self.owed = _records_of(self.p, block, metrics, seconds, server, self.owed)
        self.done = block.rounds.stop
        each: dict[str, np.ndarray] = {}
        if self.p.is_due(self.p.experiment.evaluate_every, self.done):
            numbers, each = self.p.evaluate.measured(server, self.p.population.states_of)
            found[-1].update(numbers)
            found[-1].update(self.p.evaluate.of_server(server, self.done, found[-1]))
        self._write(found, each)
        self.last = found[-1]
        ends = self.over(found)
        due = self.p.is_due(self.p.host.checkpoint_every, self.done, at_end=True)
        if saving or ends or due:
            self.save(server)
        return found, ends

    def save(self, server: Any, *, waiting: bool = False) -> None:
        """Starts to save the state, with this server, unless it is saved; `waiting` for the end."""
        p = self.p
        if p.checkpoints is not None and self.saved < self.done:
            p.checkpoints.wait()
            extra = p.population.save(self.done, p.checkpoints.rounds)
            state = p.checkpointed(State(server, self.owed, self.done))
            p.checkpoints.save(self.done, state, score=self.last.get("accuracy"), extra=extra)
            if waiting:
                p.checkpoints.wait()
        self.saved = self.done

    def close(self) -> None:
        """Returns when all is on disk; the folder is free for others."""
        try:
            for one in self.board:
                one.close()
            if self.p.folder is not None and jax.process_index() == 0:
                by_client.write_parquet(self.p.folder)
        finally:
            self.p.close()

    def _write(self, found: list[dict], each: dict[str, np.ndarray]) -> None:
        """Adds the records to metrics.jsonl and to the boards, which the first of them open.

        And to clients.jsonl what an evaluation measured for `each` client.
        """
        p = self.p
        if p.folder is None or jax.process_index() != 0:
            return
        if each:
            by_client.append(p.folder, found[-1]["round"], each, p.experiment.data.names)
        run_folder.append(p.folder, found)
        if not self.board:
            self.board += boards.opened(p.folder, p.state.done, p.host.log)
        for one in self.board:
            one.show(found)


def _records_of(
    p: Prepared, block: blocks.Block, metrics: dict, seconds: float, server: Any, owed: np.ndarray
) -> tuple[list[dict], np.ndarray]:
    """(one record a round, owed); FloatingPointError if a client of one was not finite."""
    found, pay = [], ledger.MERGES[p.host.merges]
    whole = p.base_bytes + trees.nbytes(server.theta)
    for i, t in enumerate(block.rounds):
        plan, measured = jax.tree.map(lambda x, i=i: x[i], (block.plan, metrics))
        record = records.record(t, plan, measured)
        merge = p.algorithm.broadcast(server, t)
        room = np.maximum(whole - trees.as_number(measured[ACCOUNT].down), 0)
        extra, owed = pay(owed, plan.id, merge, p.base_bytes, room)
        found.append({**record, "seconds": seconds, "broadcast": extra})
    return found, owed
