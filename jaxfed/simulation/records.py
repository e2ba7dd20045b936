"""What is recorded of a round: who took part, means over them, bytes on the wire."""

import numpy as np

from jaxfed.simulation.engine import Plan
from jaxfed.simulation.ledger import Wire

BYTES = ("down", "up")


def of_round(t: int, plan: Plan, metrics: dict, wire: Wire) -> tuple[np.ndarray, dict]:
    """(who took part in round t [K], its record); `plan` and `metrics` are of that round alone.

    Scalars stand as they are; of [K] numbers, the mean over clients by their examples. "down" and
    "up" are bytes of all clients together: `wire` for each, or what the algorithm's metrics of
    that name [K] say where clients receive or send less than their arrays hold. Raises
    FloatingPointError, with round and clients, if a client's reply is not finite.
    """
    present = plan.weight > 0
    finite, skipped = metrics["finite"], metrics.get("skipped", np.zeros_like(present))
    if not finite[present].all():
        raise FloatingPointError(
            f"round {t + 1}: the update or loss of clients "
            f"{sorted(plan.id[present & ~finite].tolist())} is not finite; lower the learning "
            "rate, clip gradients, or leave such clients out with nonfinite=skip"
        )
    record: dict = {"round": t + 1, "clients": int(present.sum())}
    counted = present & ~skipped
    for name in sorted(set(metrics) - {"finite", "broadcast", "skipped", *BYTES}):
        value = np.asarray(metrics[name], np.float64)
        if not value.ndim:
            record[name] = float(value)
        elif counted.any():
            record[name] = float(np.average(value[counted], weights=plan.count[counted]))
    if (present & skipped).any():
        record["skipped"] = sorted(plan.id[present & skipped].tolist())
    for name, each in zip(BYTES, wire, strict=True):
        mine = np.asarray(metrics.get(name, np.full(present.shape, each)), np.int64)
        record[name] = int(mine[present].sum())
    return plan.id[present], record
