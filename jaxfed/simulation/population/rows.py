"""Rows of bytes, one a client: how a state is laid out as one, and where rows are kept."""

import io
import os
import tempfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfed.algorithm import PyTree
from jaxfed.simulation import run_folder

BLOCK = 2**24  # bytes of memory that are taken for rows at once


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
            with run_folder.writing(self.directory or Path(tempfile.gettempdir())):
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
            with run_folder.writing(self.directory):
                os.fsync(self._descriptor())
                run_folder.replace(self._list(t), buffer.getvalue())
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
