"""One line of a certificate."""

from typing import NamedTuple


class Line(NamedTuple):
    """What was looked at, whether the contract holds, what was measured and what that means."""

    name: str
    holds: bool | None  # None: a number that tells the algorithm's kind; the contract asks nothing
    measured: str
    meaning: str
