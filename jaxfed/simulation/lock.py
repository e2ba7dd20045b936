"""A lock on a run's folder, held by one program at a time; it outlives no program on its computer.

The lock is a file that names its holder: computer, process, and when that process started. It works
on every system and file system, also where locks of the operating system do not.
"""

import contextlib
import ctypes
import dataclasses
import json
import os
import secrets
import socket
import time
from pathlib import Path

from jaxfed.simulation import stored

HELD: dict[str, "Lock"] = {}  # the locks that this process holds, by their token


@dataclasses.dataclass(frozen=True)
class Lock:
    """A lock that this process holds, until it is released."""

    path: Path
    token: str

    def release(self) -> None:
        """Removes the lock, unless another program took it since."""
        if HELD.pop(self.token, None) is None:
            return
        with contextlib.suppress(OSError):
            if _holder(self.path).get("token") == self.token:
                self.path.unlink()


def take(folder: Path) -> Lock:
    """The lock of this folder, now held.

    FileExistsError, with holder and remedy, if a program has it that runs, or that may run on
    another computer. The lock of a process of this computer that has ended is replaced.
    """
    path, token = folder.absolute() / "lock", secrets.token_hex(8)
    HELD[token] = Lock(path, token)  # before others can see it
    try:
        for _ in range(200):
            if _is_ours(path, token):
                return HELD[token]
    except OSError:
        del HELD[token]
        raise
    del HELD[token]
    raise FileExistsError(f"{path} is taken again and again by other programs; try later")


def _is_ours(path: Path, token: str) -> bool:
    """True if the lock was free, or of a holder that has ended, and is ours now."""
    try:
        _create(path, token)
    except FileExistsError:
        with contextlib.suppress(FileNotFoundError):  # released meanwhile
            return _took_over(path, token)
        return False
    return True


def release_all() -> None:
    """Releases what this process holds, before it ends without unwinding."""
    for lock in list(HELD.values()):
        lock.release()


def _create(path: Path, token: str) -> None:
    content = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "started": _started(os.getpid()),
        "token": token,
    }
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        raise
    except OSError as error:
        raise OSError(
            f"{path.parent} cannot be written: {error.strerror}; put this right, and then run or "
            "resume"
        ) from error
    with open(descriptor, "w") as file:
        file.write(json.dumps(content))


def _holder(path: Path) -> dict:
    """What the lock says of its holder; {} if the holder ended while it wrote the lock."""
    for _ in range(20):
        with contextlib.suppress(ValueError):
            return stored.object_of(path)
        time.sleep(0.05)
    return {}


def _took_over(path: Path, token: str) -> bool:
    """True if the lock's holder has ended and it is ours now; FileExistsError if it may be at work.

    Of several that find a holder that has ended, the one that holds the lock named after it takes
    its place. That is a lock as well: if its holder was killed, it is taken over in the same way.
    """
    holder = _holder(path)
    _check_ended(path, holder)
    successor = path.with_name(f"{path.name}.{_name(holder)}")
    if not _is_ours(successor, token):
        return False
    found = None
    with contextlib.suppress(FileNotFoundError):
        found = _holder(path)
    if found != holder:  # another took its place before
        successor.unlink()
        return False
    os.replace(successor, path)
    return True


def _name(holder: dict) -> str:
    """The holder's token, unless the file is damaged."""
    token = holder.get("token")
    return token if isinstance(token, str) and token.isalnum() else "unknown"


def _check_ended(path: Path, holder: dict) -> None:
    """FileExistsError, with the remedy, unless the holder has ended."""
    here = socket.gethostname()
    host, process, token = holder.get("host", here), holder.get("process", -1), holder.get("token")
    if host != here:
        raise FileExistsError(
            f"{path.parent} is in use by process {process} on {host}; if that has ended, remove "
            f"{path}"
        )
    ours = process == os.getpid() and token in HELD
    if ours or (process != os.getpid() and _runs(process, holder.get("started"))):
        raise FileExistsError(
            f"{path.parent} is in use by process {process} of this computer; wait until it ends, "
            "close the run that holds it, or choose another folder"
        )


def _runs(process: object, started: str | None) -> bool:
    """True if this process of this computer runs, and is the one that started then."""
    if not isinstance(process, int) or process <= 0:
        return False
    if os.name == "nt":
        return _runs_on_windows(process)
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    now = _started(process)
    return now != "ended" and (started is None or now is None or now == started)


def _started(process: int) -> str | None:
    """When a process started, in the system's ticks; "ended" if only its entry is left.

    None where the system does not say.
    """
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return "ended" if fields[0] in "ZX" else fields[19]


def _runs_on_windows(process: int) -> bool:
    """os.kill(process, 0) would end it there."""
    query, still_active, code = 0x1000, 259, ctypes.c_ulong()
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]  # only on Windows
    handle = kernel.OpenProcess(query, False, process)
    if not handle:
        return False
    known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))
    kernel.CloseHandle(handle)
    return bool(known) and code.value == still_active
