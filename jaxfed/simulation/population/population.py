"""The states that a population's clients keep between rounds, in one of three placements.

    device   the states of all N clients, as one stack in the devices' memory
    host     a row of bytes for each client that was drawn, in this computer's memory
    mapped   a row for each client that was drawn, in a file, through the system's page cache

All placements have the same interface. `lend` gives the states that a plan's slots point into;
`keep` takes back the states after the round. "device" lends all N states. The others lend those of
the cohort: while the device works, they read the next cohort's rows and write the last cohort's. If
a client is drawn in two consecutive rounds, its state comes from the reply, which is still on the
device.

A client's first state is init_client(server, key), with the server before the first round and a key
that depends on (seed, client). "host" and "mapped" compute it when the client is first drawn, so
until then a client costs about 15 bytes. The three placements give the same bits.

A checkpoint writes the rows of the clients drawn since the previous checkpoint, and a list of each
client's row. Rows that an earlier checkpoint needs are never overwritten.
"""

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxfed.algorithm import PyTree
from jaxfed.data import memory
from jaxfed.simulation import engine
from jaxfed.simulation.population.placements import (
    Moving,
    OnDevice,
    Placement,
    first_states,
    pieces,
)
from jaxfed.simulation.population.rows import File, Layout, Memory


@dataclasses.dataclass(frozen=True)
class Population:
    """The states of N clients in one of three placements; `open_population` creates it."""

    name: str  # of the placement
    place: Placement
    log: File | None  # the rows of checkpoints
    layout: Layout
    changed: np.ndarray  # bool [N] changed since the last checkpoint
    width: int

    @property
    def moves(self) -> bool:
        """True if states move to the devices for each round, so a call can run only one round."""
        return self.place.moves

    @property
    def held(self) -> int:
        """Bytes that the states always occupy in a device's memory."""
        return self.layout.nbytes * (self.width if self.moves else len(self.changed))

    @property
    def at_once(self) -> int:
        """How many clients' states may be on the devices for evaluation: those of 256 MB."""
        return 2**28 // max(1, self.layout.nbytes)

    @property
    def kinds(self) -> PyTree:
        """An empty stack [0, ...] of states, which records their types in a checkpoint."""
        empty = [np.zeros((0, *x.shape), x.dtype) for x in self.layout.leaves]
        return jax.tree.unflatten(self.layout.structure, empty)

    def lend(self, plan: engine.Plan) -> tuple[PyTree, engine.Plan]:
        """(states, plan) for these rounds; the plan's slots point into the states.

        The states may be donated. `lend` may be called while the last round given to `keep` runs.
        """
        return self.place.lend(plan)

    def keep(self, plan: engine.Plan, states: PyTree) -> None:
        """Takes back the states after the rounds of this plan, which may still be running."""
        self.changed[plan.id[plan.id < len(self.changed)]] = True
        self.place.keep(plan, states)

    def states_of(self, ids: np.ndarray) -> PyTree:
        """The states [n, ...] of the clients `ids` [n], on the devices; id N is padding."""
        return self.place.states_of(ids)

    def save(self, t: int, kept: Collection[int]) -> dict:
        """A dict to pass to `restore`, once the states after round t are on disk.

        `kept` are the rounds of the existing checkpoints, which do not change. Raises OSError if
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
        """Restores the states that `save` wrote after round t; ValueError if a bit has changed."""
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
        """Closes all files; nothing more is written."""
        self.place.close()
        if self.log is not None:
            self.log.close()

    @property
    def _in_log(self) -> bool:
        """True if rounds use the same rows as checkpoints."""
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
    writes: bool = True,
) -> Population:
    """The population of `clients` before the first round; nothing is written to disk yet.

    `server()` is the server before the first round, `width` the number of places in a cohort
    including padding, and `directory` the folder for the rows of checkpoints (None: no checkpoint
    has rows), which is only read if `writes` is False. `placement` "auto" is "device" if the states
    fit there, else "host" if they fit into memory, else "mapped". States without any byte are on
    the device. Raises ValueError for "mapped" with several processes.
    """
    shape = jax.eval_shape(init_client, jax.eval_shape(server), jax.random.key(0))
    leaves, structure = jax.tree.flatten(shape)
    layout = Layout(structure, tuple(leaves))
    name = _placement(placement, layout.nbytes * clients, machine)
    first = first_states(init_client, server, width, seed, machine)
    log: File | None = None
    if layout.nbytes and (directory is not None or name == "mapped"):
        log = File(directory, clients, layout.nbytes, writes=writes and jax.process_index() == 0)
    place: Placement = (
        OnDevice(layout, first, clients, width, machine)
        if name == "device"
        else Moving(
            layout, first, (name == "mapped" and log) or Memory(clients, layout.nbytes), machine
        )
    )
    return Population(name, place, log, layout, np.zeros(clients, bool), width)


def _placement(asked: str, nbytes: int, machine: engine.Machine) -> str:
    """The placement for states of `nbytes` in total; the same on every process."""
    if not nbytes:
        return "device"
    if asked == "mapped" and machine.several_processes:
        raise ValueError(
            "population='mapped' is for one process, because only one can write the file; use "
            "'host', which keeps all clients in each process's memory, or run one process"
        )
    if asked != "auto":
        return asked
    # The devices hold two copies while rounds are timed, and the rounds need memory themselves.
    if engine.largest(4 * nbytes * machine.sharing / engine.memory_limit(machine), machine) <= 1:
        return "device"
    fits = engine.largest(2 * nbytes / memory.free(), machine) <= 1
    return "host" if fits or machine.several_processes else "mapped"
