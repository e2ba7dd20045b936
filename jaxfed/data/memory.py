"""How much of this computer's memory is free, on Linux, macOS and Windows; arrays in it."""

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

CGROUP = Path("/sys/fs/cgroup")  # a container's limits, as it sees them


def free() -> int:
    """Bytes of this computer's memory that are free; within a container, of what it may use.

    Where the system does not say how much is free, as on macOS, half of all its memory.
    """
    if sys.platform == "win32":
        return _windows()
    pages = {"SC_AVPHYS_PAGES": 1.0, "SC_PHYS_PAGES": 0.5}
    name = next(n for n in pages if n in os.sysconf_names)
    host = int(pages[name] * os.sysconf(name) * os.sysconf("SC_PAGE_SIZE"))
    return _within_container(host)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of such shape, not filled, which JAX's CPU devices use in place.

    It begins at a multiple of 64 bytes.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    space = np.empty(size + 64, np.uint8)
    begin = -space.ctypes.data % 64
    return space[begin : begin + size].view(dtype).reshape(shape)


def _within_container(host: int) -> int:
    """At most the bytes that the container's limit leaves, if there is one."""
    try:
        limit, used, stat = (
            (CGROUP / f"memory.{name}").read_text() for name in ("max", "current", "stat")
        )
        cached = dict(line.split() for line in stat.splitlines())["inactive_file"]
        return min(host, max(int(limit) - int(used) + int(cached), 1))
    except (OSError, ValueError):  # no such limit: no file, or the word "max"
        return host


def _windows() -> int:
    """Bytes that Windows calls available."""

    class Status(ctypes.Structure):  # MEMORYSTATUSEX of the Windows API
        _fields_ = [("length", ctypes.c_uint32), ("load", ctypes.c_uint32)] + [
            (name, ctypes.c_uint64)
            for name in ("total", "available", "page", "page_free", "own", "own_free", "extended")
        ]

    status = Status(length=ctypes.sizeof(Status))
    system: Any = ctypes
    system.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
    return status.available
