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
import io
import os
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import engine, folder
from jaxfed.algorithm import PyTree

BLOCK = 2**24  # bytes of memory that are taken for rows at once
NEVER = 2**32 - 1  # a round that does not come, whose key makes the first states


class Layout(NamedTuple):
    """How one client's state is laid out as a row of bytes, leaf after leaf."""

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def nbytes(self) -> int:
        return sum(x.size * x.dtype.itemsize for x in self.leaves)

    def rows(self, states: PyTree) -> np.ndarray:
        """States [n, ...] as bytes [n, nbytes]."""
        flat = [np.asarray(x) for x in jax.tree.leaves(states)]
        rows = np.empty((len(flat[0]), self.nbytes), np.uint8)
        for leaf, columns, like in zip(flat, self._columns(), self.leaves, strict=True):
            whole = np.ascontiguousarray(leaf).reshape(len(leaf), like.size)
            rows[:, columns] = whole.view(np.uint8)
        return rows

    def states(self, rows: np.ndarray) -> PyTree:
        """Bytes [n, nbytes] as states [n, ...] in host memory."""
        leaves = [
            np.ascontiguousarray(rows[:, columns]).view(like.dtype).reshape(len(rows), *like.shape)
            for columns, like in zip(self._columns(), self.leaves, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def _columns(self) -> list[slice]:
        ends = np.cumsum([x.size * x.dtype.itemsize for x in self.leaves])
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def first_states(
    init_client: Callable, server: Callable[[], Any], width: int, seed: int, machine: engine.Machine
) -> Callable[[np.ndarray], PyTree]:
    """ids [n] -> states [n, ...] on the devices: what these clients keep before they are drawn.

    `server()` is the server before the first round; only what init_client reads of it is kept.
    `width` clients are made at once, by one program, so that the same client has the same bits
    whenever it is made.
    """
    shapes = jax.eval_shape(server)
    leaves, structure = jax.tree.flatten(shapes)
    read = _read_leaves(init_client, shapes)
    whole = jax.tree.leaves(server()) if any(read) else leaves
    kept = [np.array(x) if r else None for x, r in zip(whole, read, strict=True)]

    def make(kept, ids):
        filled = [
            jnp.zeros(x.shape, x.dtype) if k is None else k
            for x, k in zip(leaves, kept, strict=True)
        ]
        root = jax.random.fold_in(jax.random.key(seed), np.uint32(NEVER))
        keys = jax.vmap(partial(jax.random.fold_in, root))(ids)
        return jax.vmap(init_client, in_axes=(None, 0))(jax.tree.unflatten(structure, filled), keys)

    make_piece = partial(engine.compiled(make, machine), engine.place(kept, machine))

    def first(ids):
        made = [make_piece(_filled_up(piece, width, piece[0])) for piece in _pieces(ids, width)]
        if len(ids) == width:
            return made[0]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts)[: len(ids)], *made)

    return first


def _read_leaves(init_client: Callable, server: PyTree) -> list[bool]:
    """Which leaves of the server init_client computes with; shapes alone are not counted."""
    jaxpr = jax.make_jaxpr(init_client)(server, jax.random.key(0)).jaxpr
    read = {id(v) for equation in jaxpr.eqns for v in equation.invars}
    read |= {id(v) for v in jaxpr.outvars}
    return [id(v) in read for v in jaxpr.invars[: len(jax.tree.leaves(server))]]


def _pieces(ids: np.ndarray, width: int) -> Iterator[np.ndarray]:
    return (ids[i : i + width] for i in range(0, len(ids), width))


def _filled_up(ids: np.ndarray, width: int, spare: int) -> np.ndarray:
    """The ids as [width], with `spare` in the places that are left over."""
    return np.pad(ids, (0, width - len(ids)), constant_values=spare).astype(np.int32)


# ---------------------------------------------------------------------- places for rows


class Memory:
    """Rows in this computer's memory, which is taken as clients are first written."""

    def __init__(self, clients: int, nbytes: int):
        self.row = np.full(clients, -1, np.int32)  # [N] the client's row; -1: none
        self.used = 0
        self.blocks: list[np.ndarray] = []  # each [rows, nbytes]
        self.nbytes, self.rows = nbytes, max(1, BLOCK // nbytes)

    def has(self, ids: np.ndarray) -> np.ndarray:
        return self.row[ids] >= 0

    def read(self, ids: np.ndarray) -> np.ndarray:
        """The rows of clients that have one [n, nbytes]."""
        rows = np.empty((len(ids), self.nbytes), np.uint8)
        for i, at in enumerate(self.row[ids]):
            rows[i] = self.blocks[at // self.rows][at % self.rows]
        return rows

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        new = ids[~self.has(ids)]
        self.row[new] = self.used + np.arange(len(new))
        self.used += len(new)
        while len(self.blocks) * self.rows < self.used:
            self.blocks.append(np.empty((self.rows, self.nbytes), np.uint8))
        for i, at in enumerate(self.row[ids]):
            self.blocks[at // self.rows][at % self.rows] = rows[i]

    def clear(self) -> None:
        self.row[:], self.used = -1, 0
        self.blocks.clear()

    def close(self) -> None:
        """The rows stay as they are, to be looked at."""


class File:
    """Rows in a file, and lists of which of them a checkpoint needs.

    Read and written by position: as cheap as a mapping, but a full disk is an error and no signal,
    and what the page cache holds is not this process's memory. A client's first write after
    `save` goes to a row that no checkpoint needs. `directory` None is a nameless temporary file.
    Every process knows where rows lie; one of them writes.
    """

    def __init__(self, directory: Path | None, clients: int, nbytes: int, writes: bool = True):
        self.directory, self.nbytes, self.writes = directory, nbytes, writes
        self.file: Any = None  # opened by what is first read or written
        self.row = np.full(clients, -1, np.int32)  # [N] the client's row; -1: none
        self.checksum = np.zeros(clients, np.uint32)  # [N] of that row
        self.changed = np.zeros(clients, bool)  # [N] written since the last checkpoint
        self.needed: dict[int, np.ndarray] = {}  # {round: the rows of its checkpoint}
        self.free = np.zeros(0, np.int32)  # rows below `used` that may be written
        self.used = 0

    def has(self, ids: np.ndarray) -> np.ndarray:
        return self.row[ids] >= 0

    def read(self, ids: np.ndarray) -> np.ndarray:
        """The rows of clients that have one [n, nbytes]; ValueError if one is not as written."""
        rows = np.empty((len(ids), self.nbytes), np.uint8)
        for i in np.argsort(self.row[ids]):
            data = os.pread(self._descriptor(), self.nbytes, int(self.row[ids[i]]) * self.nbytes)
            if len(data) != self.nbytes or zlib.crc32(data) != self.checksum[ids[i]]:
                raise ValueError(f"what client {ids[i]} keeps changed on disk; resume the run")
            rows[i] = np.frombuffer(data, np.uint8)
        return rows

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        new = ids[~self.changed[ids]]
        self.row[new], self.changed[new] = self._unneeded(len(new)), True
        self.checksum[ids] = [zlib.crc32(row) for row in rows]
        if self.writes:
            with folder.writing(self.directory or Path(tempfile.gettempdir())):
                for at, row in zip(self.row[ids].tolist(), rows, strict=True):
                    _write_at(self._descriptor(), row, at * self.nbytes)

    def save(self, t: int, kept: Collection[int]) -> int:
        """Puts all rows on disk, and which are whose after round t; the checksum of that list.

        `kept` are the rounds of the checkpoints that there are: rows of others become free.
        """
        ids = np.flatnonzero(self.row >= 0).astype(np.int32)
        buffer = io.BytesIO()
        np.savez(buffer, ids=ids, row=self.row[ids], checksum=self.checksum[ids])
        self.needed = {n: rows for n, rows in self.needed.items() if n in kept}
        self.needed[t] = self.row[ids]
        if self.writes and self.directory is not None:
            with folder.writing(self.directory):
                os.fsync(self._descriptor())
                folder.replace(self._list(t), buffer.getvalue())
                for path in self.directory.glob("*.npz"):
                    if int(path.stem) not in self.needed:
                        path.unlink()
        self.changed[:] = False
        self._free_the_rest()
        return zlib.crc32(buffer.getvalue())

    def restore(self, t: int, checksum: int) -> np.ndarray:
        """The clients that have a row after round t [n]; ValueError if their list was changed."""
        content = self._list(t).read_bytes()
        if zlib.crc32(content) != checksum:
            raise ValueError("the list of what clients keep changed on disk")
        found = _arrays(content)
        self.row[:], self.changed[:] = -1, False
        self.row[found["ids"]] = found["row"]
        self.checksum[found["ids"]] = found["checksum"]
        self.needed = {t: found["row"]}
        for path in self._list(t).parent.glob("*.npz"):
            try:
                self.needed.setdefault(int(path.stem), _arrays(path.read_bytes())["row"])
            except Exception:  # damaged: said where its checkpoint is looked at
                continue
        self.used = 1 + max(int(rows.max(initial=-1)) for rows in self.needed.values())
        self._free_the_rest()
        return found["ids"][np.argsort(found["row"])]

    def clear(self) -> None:
        """Nobody has a row; what the file holds may be overwritten."""
        self.row[:], self.changed[:] = -1, False
        self.needed, self.free, self.used = {}, self.free[:0], 0

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None

    def _list(self, t: int) -> Path:
        return (self.directory or Path()) / f"{t}.npz"

    def _descriptor(self) -> int:
        if self.file is None and self.directory is None:
            self.file = tempfile.TemporaryFile()  # noqa: SIM115 (closed by close)
        if self.file is None and self.directory is not None:
            path = self.directory / "rows"
            if self.writes:
                self.directory.mkdir(exist_ok=True)
                path.touch()
            self.file = open(path, "r+b" if self.writes else "rb", buffering=0)  # noqa: SIM115
        return self.file.fileno()

    def _unneeded(self, count: int) -> np.ndarray:
        """Rows to write to [count]: free ones, then new ones."""
        taken, self.free = self.free[:count], self.free[count:]
        begin, self.used = self.used, self.used + count - len(taken)
        return np.concatenate([taken, np.arange(begin, self.used, dtype=np.int32)])

    def _free_the_rest(self) -> None:
        free = np.ones(self.used, bool)
        for rows in self.needed.values():
            free[rows] = False
        self.free = np.flatnonzero(free).astype(np.int32)


def _arrays(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content)) as found:
        return {name: found[name] for name in ("ids", "row", "checksum")}


def _write_at(descriptor: int, row: np.ndarray, offset: int) -> None:
    """All of the row, though the system may take it in pieces."""
    left = memoryview(row.data)
    while left:
        written = os.pwrite(descriptor, left, offset)
        left, offset = left[written:], offset + written


# ---------------------------------------------------------------------- the three placements


class OnDevice:
    """Every client's state, stacked [N, ...] on the devices."""

    moves = False

    def __init__(self, layout: Layout, first: Callable, clients: int, width: int, machine):
        self.layout, self.first, self.clients, self.width = layout, first, clients, width
        self.take = engine.compiled(_take, machine)
        self.set = engine.compiled(_set, machine, donate=(0,))
        empty = [jnp.zeros((clients, *x.shape), x.dtype) for x in layout.leaves]
        self.states = engine.place(jax.tree.unflatten(layout.structure, empty), machine)
        self.clear()

    def lend(self, plan: engine.Plan) -> tuple[PyTree, engine.Plan]:
        return self.states, plan

    def keep(self, plan: engine.Plan, states: PyTree) -> None:
        self.states = states

    def settle(self) -> None:
        """There is nothing that is not where it belongs."""

    def of(self, ids: np.ndarray) -> PyTree:
        return self.take(self.states, ids.astype(np.int32))

    def read(self, ids: np.ndarray) -> np.ndarray:
        states = self.of(_filled_up(ids, self.width, self.clients))
        return self.layout.rows(jax.device_get(states))[: len(ids)]

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        spare = np.zeros((self.width - len(ids), self.layout.nbytes), np.uint8)
        states = self.layout.states(np.concatenate([rows, spare]))
        self._set(ids, states)

    def clear(self) -> None:
        """All as before the first round."""
        if self.layout.nbytes:
            for ids in _pieces(np.arange(self.clients), self.width):
                self._set(ids, self.first(_filled_up(ids, self.width, 0)))

    def close(self) -> None:
        """The states stay as they are, to be looked at."""

    def _set(self, ids: np.ndarray, states: PyTree) -> None:
        self.states = self.set(self.states, _filled_up(ids, self.width, self.clients), states)


class Moving:
    """Rows in host memory or in a file, of which the devices have the cohort's."""

    moves = True

    def __init__(self, layout: Layout, first: Callable, rows: Memory | File, machine):
        self.layout, self.first, self.rows = layout, first, rows
        self.clients = len(rows.row)
        self.select = engine.compiled(_select, machine)
        self.reply: tuple[np.ndarray, PyTree] | None = None  # ids and states, not written yet

    def lend(self, plan: engine.Plan) -> tuple[PyTree, engine.Plan]:
        places = np.arange(plan.id.shape[1], dtype=np.int32)
        return self._stack(plan.id[0]), plan._replace(slot=places[None])

    def keep(self, plan: engine.Plan, states: PyTree) -> None:
        self.settle()  # the round before has ended, and this one is at work
        self.reply = (plan.id[0], states)

    def of(self, ids: np.ndarray) -> PyTree:
        self.settle()
        return self._stack(ids)

    def read(self, ids: np.ndarray) -> np.ndarray:
        self.settle()
        return self.rows.read(ids)

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        self.rows.write(ids, rows)

    def settle(self) -> None:
        """Writes the last reply to its rows; waits for the devices if it must."""
        if self.reply is not None:
            (ids, states), self.reply = self.reply, None
            present = ids < self.clients
            self.rows.write(ids[present], self.layout.rows(jax.device_get(states))[present])

    def clear(self) -> None:
        """All as before the first round."""
        self.reply = None
        self.rows.clear()

    def close(self) -> None:
        self.reply = None
        self.rows.close()

    def _stack(self, ids: np.ndarray) -> PyTree:
        """States [n, ...] on the devices: from the last reply, from rows, or first ones.

        A padded place gets what some client of them has.
        """
        ids = np.where(ids < self.clients, ids, ids.min())
        drawn, reply = self.reply or (np.zeros(0, np.int32), None)
        place = {k: i for i, k in enumerate(drawn.tolist())}
        replied = np.array([place.get(k, -1) for k in ids.tolist()], np.int32)
        stored = (replied < 0) & self.rows.has(ids)
        rows = np.zeros((len(ids), self.layout.nbytes), np.uint8)
        rows[stored] = self.rows.read(ids[stored])
        source, stacks = np.arange(len(ids), dtype=np.int32), [self.layout.states(rows)]
        if (replied >= 0).any():
            source = np.where(replied >= 0, len(ids) + replied, source)
            stacks.append(reply)
        fresh = (replied < 0) & ~stored
        if fresh.any():
            begin = sum(len(jax.tree.leaves(s)[0]) for s in stacks)
            source = np.where(fresh, begin + np.arange(len(ids), dtype=np.int32), source)
            stacks.append(self.first(ids))
        return self.select(stacks, source)


def _take(states: PyTree, ids: jax.Array) -> PyTree:
    return jax.tree.map(lambda s: s.at[ids].get(mode="clip"), states)


def _set(states: PyTree, ids: jax.Array, new: PyTree) -> PyTree:
    return jax.tree.map(lambda s, n: s.at[ids].set(n, mode="drop"), states, new)


def _select(stacks: list[PyTree], source: jax.Array) -> PyTree:
    """Row source[i] of the stacks, as if they stood one after the other."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[source], *stacks)


# ---------------------------------------------------------------------- what a run uses


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

    def of(self, ids: np.ndarray) -> PyTree:
        """The states of clients `ids` [n], stacked on the devices; N is padding."""
        return self.place.of(ids)

    def save(self, t: int, kept: Collection[int]) -> dict:
        """Writes what clients keep after round t; the dict is what `restore` wants to be given.

        `kept` are the rounds of the checkpoints that there are, which stay as they are. OSError if
        the disk is full.
        """
        if self.log is None:
            return {}
        self.place.settle()
        if not self._in_log:
            for ids in _pieces(np.flatnonzero(self.changed), self.width):
                self.log.write(ids, self.place.read(ids))
        self.changed[:] = False
        return {"clients": self.log.save(t, kept)}

    def restore(self, t: int, extra: dict) -> None:
        """Takes what `save` wrote for round t; ValueError if one bit of it changed since."""
        if self.log is None:
            return
        if not self._in_log:
            self.place.clear()
        for ids in _pieces(self.log.restore(t, extra["clients"]), self.width):
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
