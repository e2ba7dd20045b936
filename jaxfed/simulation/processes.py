"""Several processes of one run: that they agree, before the first of them waits for another."""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def check_same(values: Mapping[str, Any]) -> None:
    """ValueError, on every process, naming the values that differ between processes."""
    if jax.process_count() == 1:
        return
    names = sorted(values)
    own = [_number(names), *(_number(values[n]) for n in names)]
    everyone = multihost_utils.process_allgather(np.array([own[0], len(own)], np.uint32))
    if (everyone != everyone[0]).any():
        raise ValueError(
            "the processes of this run have different settings; start all with one command"
        )
    everyone = multihost_utils.process_allgather(np.array(own, np.uint32))  # [P, 1 + names]
    differ = [n for n, column in zip(names, everyone.T[1:], strict=True) if len(set(column)) > 1]
    if differ:
        told = ", ".join(f"{n} (here {values[n]})" for n in differ)
        raise ValueError(f"the processes of this run differ in {told}; start all with one command")


def from_first(text: str) -> str:
    """Process 0's text of up to 4096 bytes, on every process."""
    if jax.process_count() == 1:
        return text
    row = np.frombuffer(text.encode().ljust(4096), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(row)).decode().rstrip()


def _number(value: Any) -> int:
    return zlib.crc32(json.dumps(value, default=str, sort_keys=True).encode())
