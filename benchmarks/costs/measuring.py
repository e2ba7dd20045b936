"""What the cost scripts share: the workloads, rounds and timing of benchmarks/speed.

from measuring import RESULTS, ours, timing, workloads
"""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "speed"))

import ours
import timing
import workloads

__all__ = ["RESULTS", "memory", "ours", "timing", "workloads"]

RESULTS = pathlib.Path(__file__).parent / "results"


def memory(name: str) -> int:
    """Bytes of this process by a line of /proc/self/status (Linux), such as VmHWM, its peak."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s*(\d+) kB", status)[1]) * 1024
