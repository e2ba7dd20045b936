"""Stands before torch on the path of processes that need none."""

raise ImportError("torch is left out")
