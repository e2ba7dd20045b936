"""By what the trials of a sweep are compared: as is asked for, or by what clients deploy."""

import math
import re
import warnings
from collections.abc import Sequence

from jaxfed.cli import recorded
from jaxfed.simulation import records

COMMON = ("accuracy", "test_loss")  # the first that a run has counts
OWN = ("personal/accuracy/mean", "personal/loss/mean")


def measure(words: list[str] | None) -> str | None:
    """The measure after --measure, in the form of a record's; None for the default."""
    if words is None:
        return None
    asked = " ".join(words[1:])
    parts = asked.split("/")
    own = re.fullmatch("personal/[^/]+/(mean|min|p[0-9]+|union)", asked)
    if not (len(parts) == 1 or own) or not all(map(records.is_name, parts)):
        raise ValueError(
            f"--measure {asked}: give one measure of the records, such as accuracy or, for "
            "clients' own models, personal/accuracy/mean"
        )
    return asked


def measures(asked: str | None, own: bool) -> tuple[str, ...]:
    """Those that trials are scored by: the first that a run has.

    If clients deploy models of their `own`, the mean over clients comes before the common model's.
    """
    if asked is not None:
        return (asked,)
    return (*OWN, *COMMON) if own else COMMON


def score(run: recorded.Run, by: Sequence[str], until: int | None = None) -> float:
    """The newest value up to a round, negative if less of it is better; -inf if none is finite.

    ValueError if the run was evaluated, but not by such a measure.
    """
    found = [*recorded.measures(run), *recorded.personal(run)]
    if found and not set(by) & set(found):
        raise ValueError(
            f"--measure {by[0]}: {run.name} has no such measure; it has {', '.join(found)}"
        )
    if found and by[0] in OWN and not recorded.personal(run):
        warnings.warn(
            "clients deploy models of their own, but have no test examples of their own: trials "
            "are compared by the common model; give federate a personal_fraction",
            stacklevel=1,
        )
    for name in by:
        rounds, values = recorded.series(run, name)
        seen = values if until is None else values[rounds <= until]
        if seen.size:
            value = -float(seen[-1]) if records.falls(name) else float(seen[-1])
            return value if math.isfinite(value) else -math.inf
    return -math.inf
