"""A decoder of a few hundred weights in llama2.c's two files; letters are words."""

import struct
from pathlib import Path

import numpy as np

SIZES = (8, 12, 2, 2, 1, 271, 32)
"""Width, feed-forward width, depth, heads, groups, vocabulary, positions."""


def write(folder: Path, positions: int = SIZES[-1]) -> Path:
    """The folder, with tiny.bin and tok.bin; what is no letter from a to j becomes bytes."""
    width, hidden, depth, heads, groups, vocabulary, _ = SIZES
    shared = (
        2 * width + 2 * width * width + 2 * width * width // heads * groups + 3 * width * hidden
    )
    count = vocabulary * width + depth * shared + width + positions * width // heads
    weights = np.random.default_rng(0).normal(0, 0.3, count).astype("<f4")
    header = struct.pack("<7i", *SIZES[:-1], positions)
    (folder / "tiny.bin").write_bytes(header + weights.tobytes())
    special = ["<unk>", "\n<s>\n", "\n</s>\n"]
    pieces = special + [f"<0x{i:02X}>" for i in range(256)] + list(" abcdefghij|")
    entries = (struct.pack("<fi", 0.0, len(p)) + p.encode() for p in pieces)
    (folder / "tok.bin").write_bytes(struct.pack("<i", 6) + b"".join(entries))
    return folder
