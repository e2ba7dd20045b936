"""The record of a round: who took part, means over clients, bytes on the wire."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxfed import trees
from jaxfed.algorithm import ACCOUNT
from jaxfed.simulation.engine import Plan


def record(t: int, plan: Plan, metrics: dict) -> dict:
    """The record of round t (from 0), from the `plan` and `metrics` of that round alone.

    Scalars are recorded as they are, and a number per client [K] as the mean over clients weighted
    by their examples. "down" and "up" are the bytes of all clients together. Raises
    FloatingPointError, with the round and the clients, if a client's reply is not finite.
    """
    account = metrics[ACCOUNT]
    if not account.finite.all():
        raise FloatingPointError(
            f"round {t + 1}: the update or loss of clients "
            f"{sorted(plan.id[~account.finite].tolist())} is not finite; lower the learning rate, "
            "clip gradients, or leave such clients out with nonfinite=skip"
        )
    made: dict = {"round": t + 1, "clients": len(plan.id)}
    counted = ~account.skipped
    for name in sorted(set(metrics) - {ACCOUNT}):
        value = np.asarray(metrics[name], np.float64)
        if not value.ndim:
            made[name] = float(value)
        elif counted.any():
            made[name] = float(np.average(value[counted], weights=plan.count[counted]))
    if account.skipped.any():
        made["skipped"] = sorted(plan.id[account.skipped].tolist())
    for name in ("down", "up"):
        made[name] = int(trees.as_number(getattr(account, name)).sum())
    return made


def is_name(measure: str) -> bool:
    """True if a name can be a measure's: it stands in tables, in titles and in names of files."""
    return re.fullmatch(r"\w[\w .+-]{0,99}", measure) is not None


def falls(measure: str) -> bool:
    """True if less of a measure is better, as its name says."""
    return named(measure).endswith(("loss", "perplexity", "error", "mse", "mae"))


def at(record: Mapping, measure: str, absent: Any = None) -> Any:
    """What stands at record["personal"]["accuracy"]["mean"], and so on; `absent` if nothing does.

    A number that is not finite stands there as None.
    """
    value: Any = record
    for name in measure.split("/"):
        if not isinstance(value, Mapping) or name not in value:
            return absent
        value = value[name]
    return value


def named(measure: str) -> str:
    """What a measure is of, wherever it stands: "accuracy" for "personal/accuracy/mean"."""
    return measure.split("/")[1] if measure.startswith("personal/") else measure
