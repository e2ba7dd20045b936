"""Arrays that take long to make, kept in the user's cache folder for the next time.

A file's name is a checksum of all that its arrays are made from, so that a change of content or
settings is another file. It appears whole or not at all, and of two processes that want the same
arrays at once, one makes them while the other waits.
"""

import contextlib
import hashlib
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from jaxfed.data.sources import Examples

MOST = 2**32  # bytes of all files; those that were not used for longest go first
BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


def user_folder(environment: Mapping[str, str], system: str) -> Path:
    """Where this user's programs keep what can be made again, as the system has it."""
    home = Path.home()
    places = {
        "win32": ("LOCALAPPDATA", home / "AppData" / "Local"),
        "darwin": ("", home / "Library" / "Caches"),
    }
    name, otherwise = places.get(system, ("XDG_CACHE_HOME", home / ".cache"))
    given = Path(environment.get(name, ""))
    return (given if given.is_absolute() else otherwise) / "jaxfed"


def kept(
    name: str, content: Iterable[bytes], make: Callable[[], Examples], *, folder: Path | None = None
) -> Examples:
    """The arrays that `make` returns, from a file if they were made from this content before.

    `content` is all that decides them, settings and versions of packages included. Where nothing
    can be written, and for arrays above MOST, they are made each time.
    """
    try:
        place = folder or user_folder(os.environ, sys.platform) / "data"
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no place to write, or no home
        return make()
    key = checksum(content)
    path = place / f"{name}-{key}.npz"
    with _alone(place / f"lock-{key[:2]}"):
        if (found := _read(path)) is None:
            found = make()
            _write(path, found)
    return found


def checksum(parts: Iterable[bytes]) -> str:
    """Of several byte strings; the same bytes divided otherwise have another."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.hexdigest()


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """A lock that the system frees when its process dies; none where the system has none."""
    held = filelock.FileLock(lock)
    try:
        held.acquire()
    except (OSError, NotImplementedError):
        yield
        return
    try:
        yield
    finally:
        held.release()


def _read(path: Path) -> Examples | None:
    """The arrays of a file, which counts as used now; None if it is not there or damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        os.utime(path)
    except BROKEN:
        return None
    return found


def _write(path: Path, arrays: Examples) -> None:
    """Writes the file whole or not at all, and makes room for it. A full disk is no error."""
    needed = sum(x.nbytes for x in arrays.values())
    if needed > MOST:
        return
    part = path.with_suffix(".part")
    try:
        _make_room(path.parent, MOST - needed)
        with open(part, "wb") as file:
            save: Any = np.savez  # its stub takes every name of an array for an option's
            save(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _make_room(folder: Path, left: int) -> None:
    """Removes the files that were not used for longest, until the others have `left` bytes."""
    files = [(p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.npz")]
    files += [(0.0, p.stat().st_size, p) for p in folder.glob("*.part")]  # of killed processes
    held = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if held <= left:
            return
        with contextlib.suppress(OSError):  # another process reads it, or has removed it
            path.unlink()
            held -= size
