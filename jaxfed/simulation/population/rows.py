"""Rows of bytes, one per client: the layout of a state as a row, and stores of rows."""

import contextlib
import io
import os
import re
import tempfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxfed.algorithm import PyTree
from jaxfed.simulation import stored

LISTED = ("ids", "row", "checksum")  # the arrays of a checkpoint's list
BLOCK = 2**24  # bytes of memory that are allocated for rows at once


class Layout(NamedTuple):
    """The layout of one client's state as a row of bytes, leaf after leaf."""

    structure: Any
    leaves: tuple[jax.ShapeDtypeStruct, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of one row."""
        return sum(x.size * x.dtype.itemsize for x in self.leaves)

    def rows(self, states: PyTree) -> np.ndarray:
        """Rows [n, nbytes] of the states [n, ...]."""
        flat = [np.asarray(x) for x in jax.tree.leaves(states)]
        rows = np.empty((len(flat[0]), self.nbytes), np.uint8)
        for leaf, columns, like in zip(flat, self._columns(), self.leaves, strict=True):
            whole = np.ascontiguousarray(leaf).reshape(len(leaf), like.size)
            rows[:, columns] = whole.view(np.uint8)
        return rows

    def states(self, rows: np.ndarray) -> PyTree:
        """States [n, ...] of the rows [n, nbytes], in host memory."""
        leaves = [
            np.ascontiguousarray(rows[:, columns]).view(like.dtype).reshape(len(rows), *like.shape)
            for columns, like in zip(self._columns(), self.leaves, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def _columns(self) -> list[slice]:
        ends = np.cumsum([x.size * x.dtype.itemsize for x in self.leaves])
        return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


class Rows(Protocol):
    """A store of rows: one row of bytes for each client that was drawn."""

    row: np.ndarray  # [N] the client's row; -1: none

    def has(self, ids: np.ndarray) -> np.ndarray:
        """True for each client that has a row: ids [n] -> bool [n]."""

    def read(self, ids: np.ndarray) -> np.ndarray:
        """The rows [n, nbytes] of clients that have one."""

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Writes the rows [n, nbytes] of these clients."""

    def clear(self) -> None:
        """Removes all rows."""

    def close(self) -> None:
        """Closes the file, if there is one; rows in memory remain readable."""


class Memory:
    """Rows in this computer's memory, which grows when a client is written for the first time."""

    def __init__(self, clients: int, nbytes: int):
        self.row = np.full(clients, -1, np.int32)  # [N] the client's row; -1: none
        self.used = 0
        self.blocks: list[np.ndarray] = []  # each [rows, nbytes]
        self.nbytes, self.rows = nbytes, max(1, BLOCK // nbytes)

    def has(self, ids: np.ndarray) -> np.ndarray:
        """True for each client that has a row."""
        return self.row[ids] >= 0

    def read(self, ids: np.ndarray) -> np.ndarray:
        """A copy of these clients' rows [n, nbytes]."""
        rows = np.empty((len(ids), self.nbytes), np.uint8)
        for i, at in enumerate(self.row[ids]):
            rows[i] = self.blocks[at // self.rows][at % self.rows]
        return rows

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Copies the rows [n, nbytes] into the blocks."""
        new = ids[~self.has(ids)]
        self.row[new] = self.used + np.arange(len(new))
        self.used += len(new)
        while len(self.blocks) * self.rows < self.used:
            self.blocks.append(np.empty((self.rows, self.nbytes), np.uint8))
        for i, at in enumerate(self.row[ids]):
            self.blocks[at // self.rows][at % self.rows] = rows[i]

    def clear(self) -> None:
        """Removes all rows and frees their memory."""
        self.row[:], self.used = -1, 0
        self.blocks.clear()

    def close(self) -> None:
        """Does nothing: the rows remain readable."""


class File:
    """Rows in a file, and a list of the rows that each checkpoint needs.

    Rows are read and written by position. This is as cheap as a memory mapping, but a full disk
    raises an error instead of a signal, and the page cache does not count as this process's memory.
    A client's first write after `save` goes to a row that no checkpoint needs. With `directory`
    None the file is temporary. Every process knows where rows are; only one writes them.
    """

    def __init__(self, directory: Path | None, clients: int, nbytes: int, writes: bool = True):
        self.directory, self.nbytes, self.writes = directory, nbytes, writes
        self.file: Any = None  # opened by the first read or write
        self.row = np.full(clients, -1, np.int32)  # [N] the client's row; -1: none
        self.checksum = np.zeros(clients, np.uint32)  # [N] of that row
        self.changed = np.zeros(clients, bool)  # [N] written since the last checkpoint
        self.needed: dict[int, np.ndarray] = {}  # {round: the rows of its checkpoint}
        self.free = np.zeros(0, np.int32)  # rows below `used` that may be written
        self.used = 0

    def has(self, ids: np.ndarray) -> np.ndarray:
        """True for each client that has a row."""
        return self.row[ids] >= 0

    def read(self, ids: np.ndarray) -> np.ndarray:
        """These clients' rows [n, nbytes]; ValueError names clients whose rows changed on disk."""
        rows, changed = np.zeros((len(ids), self.nbytes), np.uint8), []
        for i in np.argsort(self.row[ids]):
            read = self._at(int(self.row[ids[i]])).readinto(rows[i].data)
            if read != self.nbytes or zlib.crc32(rows[i]) != self.checksum[ids[i]]:
                changed.append(int(ids[i]))
        if changed:
            noun = "states of clients" if changed[1:] else "state of client"
            names = ", ".join(map(str, sorted(changed)))
            raise ValueError(f"{self._rows}: the {noun} {names} changed on disk")
        return rows

    def write(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Writes the rows [n, nbytes] over no checkpoint's; OSError if the disk is full."""
        new = ids[~self.changed[ids]]
        self.row[new], self.changed[new] = self._unneeded(len(new)), True
        self.checksum[ids] = [zlib.crc32(row) for row in rows]
        if self.writes:
            with stored.writing(self.directory or Path(tempfile.gettempdir())):
                for at, row in zip(self.row[ids].tolist(), rows, strict=True):
                    _write_all(self._at(at, create=True), row)

    def save(self, t: int, kept: Collection[int]) -> int:
        """The checksum of the list of rows after round t, once rows and list are on disk.

        `kept` are the rounds of the existing checkpoints; rows that only others need become free.
        """
        ids = np.flatnonzero(self.row >= 0).astype(np.int32)
        buffer = io.BytesIO()
        np.savez(buffer, ids=ids, row=self.row[ids], checksum=self.checksum[ids])
        self.needed = {n: rows for n, rows in self.needed.items() if n in kept}
        self.needed[t] = self.row[ids]
        if self.writes and self.directory is not None:
            with stored.writing(self.directory):
                os.fsync(self._at(0, create=True).fileno())
                stored.replace(self._list(t), buffer.getvalue())
                for other, path in self._lists().items():
                    if other not in self.needed:
                        path.unlink()
        self.changed[:] = False
        self._free_the_rest()
        return zlib.crc32(buffer.getvalue())

    def restore(self, t: int, checksum: int) -> np.ndarray:
        """The clients [n] that have a row after round t; ValueError if their list was changed."""
        path = self._list(t)
        if not path.exists():
            raise ValueError(f"{path} is gone")
        if zlib.crc32(content := stored.read(path)) != checksum:
            raise ValueError(f"{path} changed on disk")
        listed = stored.arrays(content, LISTED, path)
        self.row[:], self.changed[:] = -1, False
        self.row[listed["ids"]] = listed["row"]
        self.checksum[listed["ids"]] = listed["checksum"]
        self.needed = {t: listed["row"]}
        for other, path in self._lists().items():
            with contextlib.suppress(ValueError):  # a damaged list: its checkpoint is damaged too
                rows = stored.arrays(stored.read(path), LISTED, path)["row"]
                self.needed.setdefault(other, rows.reshape(-1).astype(np.int32))
        self.used = 1 + max(int(rows.max(initial=-1)) for rows in self.needed.values())
        self._free_the_rest()
        return listed["ids"][np.argsort(listed["row"])]

    def clear(self) -> None:
        """Removes all rows; new ones may overwrite the content of the file."""
        self.row[:], self.changed[:] = -1, False
        self.needed, self.free, self.used = {}, self.free[:0], 0

    def close(self) -> None:
        """Closes the file, which deletes it if it is temporary."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def _list(self, t: int) -> Path:
        return (self.directory or Path()) / f"{t}.npz"

    def _lists(self) -> dict[int, Path]:
        """{round: the list of its checkpoint}, without files that are not such lists."""
        there = () if self.directory is None else self.directory.glob("*.npz")
        return {int(path.stem): path for path in there if re.fullmatch("[0-9]{1,9}", path.stem)}

    @property
    def _rows(self) -> Path:
        return (self.directory or Path(tempfile.gettempdir())) / "rows"

    def _at(self, row: int, create: bool = False) -> Any:
        """The file, positioned at the beginning of this row."""
        if self.file is None and self.directory is None:
            self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (closed by close)
        if self.file is None:
            if create:
                self._rows.parent.mkdir(exist_ok=True)
                self._rows.touch()
            if not self._rows.exists():
                raise ValueError(f"{self._rows} is gone")
            stored.check(self._rows, most=2**63)
            self.file = open(self._rows, "r+b" if self.writes else "rb", buffering=0)  # noqa: SIM115
        self.file.seek(row * self.nbytes)
        return self.file

    def _unneeded(self, count: int) -> np.ndarray:
        """Rows [count] that no checkpoint needs: free ones, then new ones."""
        taken, self.free = self.free[:count], self.free[count:]
        begin, self.used = self.used, self.used + count - len(taken)
        return np.concatenate([taken, np.arange(begin, self.used, dtype=np.int32)])

    def _free_the_rest(self) -> None:
        free = np.ones(self.used, bool)
        for rows in self.needed.values():
            free[rows] = False
        self.free = np.flatnonzero(free).astype(np.int32)


def _write_all(file: Any, row: np.ndarray) -> None:
    """Writes the whole row, although the system may write only a part of it at a time."""
    left = memoryview(row.data)
    while left:
        left = left[file.write(left) :]
