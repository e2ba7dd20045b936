"""What the clients of a population keep between rounds, and where it lies: three placements.

    device   the states of all N clients, one stack in the devices' memory
    host     a row of bytes for each client that was drawn, in this computer's memory
    mapped   a row for each client that was drawn, in a file, through the system's page cache

All are used alike. `lend` gives the states that a plan's slots point into, `keep` takes them back
as they are after the round. On the device these are all N. Elsewhere they are the cohort's: the
next cohort's rows are read, and the last cohort's written, while the device works, and a client
that is drawn twice in a row has its state taken from the reply, where it is still on the device.

A client's first state is init_client(server, key), with the server as it was before the first
round and a key of (seed, client). It is made when it is needed, so that elsewhere than on the
device a population of any size costs some 15 bytes a client until it is drawn. The three placements
give the same bits.

A checkpoint writes the rows of the clients that were drawn since the one before, and a list of
where each client's row lies. Rows that an earlier checkpoint needs are never overwritten.
"""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxfed.algorithm import PyTree
from jaxfed.simulation import engine
from jaxfed.simulation.population.placements import Moving, OnDevice, first_states, pieces
from jaxfed.simulation.population.rows import File, Layout, Memory


@dataclasses.dataclass(frozen=True)
class Population:
    """What N clients keep, in one of three placements. Made by `open_population`."""

    name: str  # of the placement
    place: OnDevice | Moving
    log: File | None  # where checkpoints have their rows
    layout: Layout
    changed: np.ndarray  # bool [N] kept since the last checkpoint
    width: int

    @property
    def moves(self) -> bool:
        """Whether a call may run one round only, as the next one's states come from elsewhere."""
        return self.place.moves

    @property
    def held(self) -> int:
        """Bytes in a device's memory all the time."""
        return self.layout.nbytes * (self.width if self.moves else len(self.changed))

    @property
    def at_once(self) -> int:
        """How many clients' states may be looked at together: those of 256 MB."""
        return 2**28 // max(1, self.layout.nbytes)

    @property
    def kinds(self) -> PyTree:
        """An empty stack [0, ...] of states: in a checkpoint it tells what a client kept."""
        empty = [np.zeros((0, *x.shape), x.dtype) for x in self.layout.leaves]
        return jax.tree.unflatten(self.layout.structure, empty)

    def lend(self, plan: engine.Plan) -> tuple[PyTree, engine.Plan]:
        """(states, plan) for these rounds, the plan's slots pointing into the states.

        They may be donated. May be called while the last round that `keep` was told of runs.
        """
        return self.place.lend(plan)

    def keep(self, plan: engine.Plan, states: PyTree) -> None:
        """Takes back the states after the rounds of this plan, which may still be at work."""
        self.changed[plan.id[plan.id < len(self.changed)]] = True
        self.place.keep(plan, states)

    def states_of(self, ids: np.ndarray) -> PyTree:
        """The states of clients `ids` [n], stacked on the devices; N is padding."""
        return self.place.states_of(ids)

    def save(self, t: int, kept: Collection[int]) -> dict:
        """Writes what clients keep after round t; the dict is what `restore` wants to be given.

        `kept` are the rounds of the checkpoints that there are, which stay as they are. OSError if
        the disk is full.
        """
        if self.log is None:
            return {}
        self.place.settle()
        if not self._in_log:
            for ids in pieces(np.flatnonzero(self.changed), self.width):
                self.log.write(ids, self.place.read(ids))
        self.changed[:] = False
        return {"clients": self.log.save(t, kept)}

    def restore(self, t: int, extra: dict) -> None:
        """Takes what `save` wrote for round t; ValueError if one bit of it changed since."""
        if self.log is None:
            return
        if not self._in_log:
            self.place.clear()
        for ids in pieces(self.log.restore(t, extra["clients"]), self.width):
            rows = self.log.read(ids)
            if not self._in_log:
                self.place.write(ids, rows)
        self.changed[:] = False

    def close(self) -> None:
        self.place.close()
        if self.log is not None:
            self.log.close()

    @property
    def _in_log(self) -> bool:
        """Whether the rows that are used are those that checkpoints have."""
        return isinstance(self.place, Moving) and self.place.rows is self.log


def open_population(
    init_client: Callable,
    server: Callable[[], Any],
    placement: str,
    *,
    clients: int,
    width: int,
    seed: int,
    machine: engine.Machine,
    directory: Path | None,
) -> Population:
    """What `clients` keep, none of them drawn yet; nothing is written before the first round.

    `server()` is the server before the first round, `width` the places in a cohort with its
    padding, and `directory` where a run keeps rows beside its checkpoints (None: it keeps none).
    `placement` "auto" is the device if the states fit there, then host memory, then a file. What
    needs no byte is on the device. Raises ValueError for "mapped" with several processes.
    """
    shape = jax.eval_shape(init_client, jax.eval_shape(server), jax.random.key(0))
    leaves, structure = jax.tree.flatten(shape)
    layout = Layout(structure, tuple(leaves))
    name = _placement(placement, layout.nbytes * clients, machine)
    first = first_states(init_client, server, width, seed, machine)
    log: File | None = None
    if layout.nbytes and (directory is not None or name == "mapped"):
        log = File(directory, clients, layout.nbytes, writes=jax.process_index() == 0)
    place: OnDevice | Moving = (
        OnDevice(layout, first, clients, width, machine)
        if name == "device"
        else Moving(
            layout, first, (name == "mapped" and log) or Memory(clients, layout.nbytes), machine
        )
    )
    return Population(name, place, log, layout, np.zeros(clients, bool), width)


def _placement(asked: str, nbytes: int, machine: engine.Machine) -> str:
    """Where states of `nbytes` in all are to lie, on every process alike."""
    if not nbytes:
        return "device"
    if asked == "mapped" and machine.several_processes:
        raise ValueError(
            "population='mapped' is for one process, as only one writes the file; use 'host', "
            "where each process keeps all clients in its memory, or run one process"
        )
    if asked != "auto":
        return asked
    # On the devices there are two copies while rounds are timed, and the rounds need their part.
    if engine.largest(4 * nbytes * machine.sharing / engine.memory_limit(machine), machine) <= 1:
        return "device"
    fits = engine.largest(2 * nbytes / engine.host_memory(), machine) <= 1
    return "host" if fits or machine.several_processes else "mapped"
