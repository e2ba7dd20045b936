"""What is run, and how: the settings of a run, checked as they are made."""

import dataclasses
from typing import Any, Literal

import numpy as np

from jaxfed.algorithm import Algorithm
from jaxfed.data.federated import Federated, length
from jaxfed.simulation import ledger
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
        if self.evaluate_every and not length(self.data.test):
            raise ValueError("the test set is empty; give some rows, or evaluate_every=0")

    @property
    def task(self) -> Task:
        return self.algorithm.task


@dataclasses.dataclass(frozen=True)
class Host:
    """How it is run: nothing here changes the result beyond float rounding."""

    devices: int | None = None  # None: all
    chunk: int | Literal["auto"] = "auto"  # clients vmapped at once on a device
    fuse: int | Literal["auto"] = "auto"  # rounds in one call
    stream: bool | None = None  # prepare each cohort's examples on the host; None: if it must
    population: Literal["auto", "device", "host", "mapped"] = "auto"  # where clients' states lie
    checkpoint_every: int = 50  # rounds; 0: only at the end
    nonfinite: Literal["stop", "skip"] = "stop"  # what a client with NaN or infinity does
    merges: Literal["eager", "lazy"] = "eager"  # who pays for a merge, and when; see ledger.py

    def __post_init__(self) -> None:
        limits = {"checkpoint_every": 0, "chunk": 1, "fuse": 1, "devices": 1}
        named = {"chunk": "auto", "fuse": "auto", "devices": None}
        _check_numbers(self, **{n: v for n, v in limits.items() if _is_not(self, n, named)})
        if self.stream not in (None, True, False):
            raise ValueError(f"stream={self.stream!r}; use True, False, or None for when it must")
        choices = {
            "population": ("auto", "device", "host", "mapped"),
            "nonfinite": ("stop", "skip"),
            "merges": tuple(ledger.MERGES),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; use one of {known}")


def _is_not(settings: Any, name: str, named: dict) -> bool:
    return name not in named or getattr(settings, name) != named[name]


def _check_numbers(settings: Any, **least: int) -> None:
    """Raises TypeError if one of these settings is no int, ValueError if it is below `least`."""
    for name, low in least.items():
        value = getattr(settings, name)
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise TypeError(f"{name}={value!r} is a {type(value).__name__}; give a whole number")
        if value < low:
            raise ValueError(f"{name}={value}; use at least {low}")


def identity(experiment: Experiment) -> dict:
    """What must not change when a run is resumed, as far as JSON can tell it."""
    names = ("cohort", "seed", "evaluate_every", "evaluate_batch")
    return {**{n: getattr(experiment, n) for n in names}, "clients": experiment.data.clients}


def check_same(experiment: Experiment, settings: dict) -> None:
    """Raises ValueError if the run in these settings was begun with others."""
    before, now = settings.get("experiment", {}), identity(experiment)
    for name, value in now.items():
        if before.get(name, value) != value:
            raise ValueError(
                f"the run was begun with {name}={before[name]}, not {value}; resume it with that, "
                "or begin another in a new folder"
            )
