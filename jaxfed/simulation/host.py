"""How a run is carried out. This module needs no JAX: the command line's help reads it."""

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxfed import values


@dataclasses.dataclass(frozen=True)
class Host:
    """How a run is carried out: nothing here changes the result beyond float rounding.

    Args:
        devices: how many devices to use; by default all.
        chunk: clients vmapped at once on a device; auto measures.
        fuse: rounds in one call; auto measures.
        convolutions: their lowering (see models.conv); auto measures whether another one is faster
            than the platform's default.
        low_rank: how dense layers add low-rank terms: as products of matrices, or by one kernel on
            a GPU (see lowrank.fused), whose speed nobody has measured.
        stream: prepare each cohort's examples on the host; by default only if they do not fit.
        population: where what clients keep lies; auto is the device if it fits there, then host
            memory, then a file.
        checkpoint_every: rounds between checkpoints; 0 is at the end only.
        nonfinite: stop at a client that returns NaN or infinity, or skip it (the weighted mean of
            the others takes its place, also where an algorithm averages uniformly).
        merges: who pays for a merge: all clients at once, or each when next drawn.
        log: where records are shown beside metrics.jsonl: in TensorBoard's file, where tensorboardX
            is installed, or in W&B, too.
    """

    devices: int | None = None
    chunk: int | Literal["auto"] = "auto"
    fuse: int | Literal["auto"] = "auto"
    convolutions: Literal["auto", "default", "patches", "winograd", "xla"] = "auto"
    low_rank: Literal["products", "kernel"] = "products"
    stream: bool | None = None
    population: Literal["auto", "device", "host", "mapped"] = "auto"
    checkpoint_every: int = 50
    nonfinite: Literal["stop", "skip"] = "stop"
    merges: Literal["eager", "lazy"] = "eager"
    log: Literal["tensorboard", "wandb"] = "tensorboard"

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, kinds = getattr(self, name), get_args(kind) or (kind,)
            words = [w for k in (kind, *kinds) if get_origin(k) is Literal for w in get_args(k)]
            if value in words or (value is None and type(None) in kinds):
                continue
            if int in kinds:
                check_numbers(self, **{name: 0 if name == "checkpoint_every" else 1})
            elif bool not in kinds:
                raise ValueError(f"{name}={value!r}; use one of {tuple(words)}")
            elif not isinstance(value, bool):
                raise ValueError(f"{name}={value!r}; use True, False, or None for when it must")


def check_numbers(settings: Any, **least: int) -> None:
    """Raises TypeError if one of these settings is no int, ValueError if it is below `least`."""
    for name, low in least.items():
        # A number of numpy's would be another one in settings.json.
        object.__setattr__(settings, name, values.whole(name, getattr(settings, name), low))
