"""What is run, and how: the settings of a run, checked as they are made."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from jaxfed.algorithm import Algorithm
from jaxfed.data import values
from jaxfed.data.federated import Federated, length
from jaxfed.tasks.task import Task


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is run: everything that decides the result. The task is the algorithm's."""

    data: Federated
    algorithm: Algorithm
    _: dataclasses.KW_ONLY
    rounds: int
    cohort: int  # clients a round
    seed: int = 0
    evaluate_every: int = 10  # rounds, and after the last; 0: never
    evaluate_batch: int = 250
    stop_when: Callable[[Sequence[dict]], bool] | None = None
    """Sees all records so far after each evaluation, and ends the run by True; see `patience`."""

    def __post_init__(self) -> None:
        for name, kind in (("data", Federated), ("algorithm", Algorithm)):
            if not isinstance(given := getattr(self, name), kind):
                raise TypeError(f"{name} is a {type(given).__name__}; give a {kind.__name__}")
        if not isinstance(self.task, Task):
            raise TypeError(
                f"the algorithm's task is a {type(self.task).__name__}; make it with "
                "Algorithm(..., task=task), so that its model can be evaluated"
            )
        _check_numbers(self, rounds=1, cohort=1, seed=0, evaluate_every=0, evaluate_batch=1)
        if self.cohort > self.data.clients:
            raise ValueError(
                f"cohort={self.cohort} clients a round out of {self.data.clients}; use at most that"
            )
        if self.algorithm.clients not in (None, self.data.clients):
            raise ValueError(
                f"the algorithm was made for {self.algorithm.clients} clients, as by `ranks`; the "
                f"data have {self.data.clients}: give one setting for each"
            )
        if self.seed >= 2**32:  # beyond, JAX takes it modulo 2^32
            raise ValueError(f"seed={self.seed}; use a number below 2**32")
        for examples in (self.data.train.examples, self.data.personal.examples, self.data.test):
            if "mask" in examples:
                raise ValueError(
                    "the examples have an array 'mask', the name of the mask of padded examples in "
                    "a batch; rename it"
                )
            self.task.check(examples)
        if self.stop_when is not None:
            values.function("stop_when", self.stop_when, "a function of the records, or None")
            if not self.evaluate_every:
                raise ValueError(
                    "stop_when is asked after each evaluation, and evaluate_every=0 has none; give "
                    "evaluate_every=1 or more"
                )
        if self.evaluate_every and not length(self.data.test):
            raise ValueError("the test set is empty; give some rows, or evaluate_every=0")

    @property
    def task(self) -> Task:
        return self.algorithm.task


@dataclasses.dataclass(frozen=True)
class Host:
    """How a run is carried out: nothing here changes the result beyond float rounding.

    Args:
        devices: how many devices to use; by default all.
        chunk: clients vmapped at once on a device; auto measures.
        fuse: rounds in one call; auto measures.
        stream: prepare each cohort's examples on the host; by default only if they do not fit.
        population: where what clients keep lies; auto is the device if it fits there, then host
            memory, then a file.
        checkpoint_every: rounds between checkpoints; 0 is at the end only.
        nonfinite: stop at a client that returns NaN or infinity, or skip it (the weighted mean of
            the others takes its place, also where an algorithm averages uniformly).
        merges: who pays for a merge: all clients at once, or each when next drawn.
    """

    devices: int | None = None
    chunk: int | Literal["auto"] = "auto"
    fuse: int | Literal["auto"] = "auto"
    stream: bool | None = None
    population: Literal["auto", "device", "host", "mapped"] = "auto"
    checkpoint_every: int = 50
    nonfinite: Literal["stop", "skip"] = "stop"
    merges: Literal["eager", "lazy"] = "eager"

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, kinds = getattr(self, name), get_args(kind) or (kind,)
            words = [w for k in (kind, *kinds) if get_origin(k) is Literal for w in get_args(k)]
            if value in words or (value is None and type(None) in kinds):
                continue
            if int in kinds:
                _check_numbers(self, **{name: 0 if name == "checkpoint_every" else 1})
            elif bool not in kinds:
                raise ValueError(f"{name}={value!r}; use one of {tuple(words)}")
            elif not isinstance(value, bool):
                raise ValueError(f"{name}={value!r}; use True, False, or None for when it must")


def _check_numbers(settings: Any, **least: int) -> None:
    """Raises TypeError if one of these settings is no int, ValueError if it is below `least`."""
    for name, low in least.items():
        # A number of numpy's would be another one in settings.json.
        object.__setattr__(settings, name, values.whole(name, getattr(settings, name), low))
