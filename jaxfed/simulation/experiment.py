"""What is run: the settings that decide the result, checked as they are made."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxfed import values
from jaxfed.algorithm import Algorithm
from jaxfed.data.federated import Federated, length
from jaxfed.simulation import shown
from jaxfed.simulation.host import check_numbers
from jaxfed.tasks.task import Task


@dataclasses.dataclass(frozen=True, repr=False)
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
    server_measures: Callable[[Any, int], Mapping[str, float]] | None = None
    """(server, round) -> {name: number} of each evaluation, beside the task's measures."""
    participation: Callable | None = None
    """(rng, round, count [N], cohort) -> (ids [K], shares [K]); None: uniform, by examples. See
    jaxfed.simulation.participation, whose `weighted` and `available` make one."""

    def __post_init__(self) -> None:
        for name, kind in (("data", Federated), ("algorithm", Algorithm)):
            if not isinstance(given := getattr(self, name), kind):
                raise TypeError(f"{name} is a {type(given).__name__}; give a {kind.__name__}")
        if not isinstance(self.task, Task):
            raise TypeError(
                f"the algorithm's task is a {type(self.task).__name__}; make it with "
                "Algorithm(..., task=task), so that its model can be evaluated"
            )
        check_numbers(self, rounds=1, cohort=1, seed=0, evaluate_every=0, evaluate_batch=1)
        if self.cohort > self.data.clients:
            raise ValueError(
                f"cohort={self.cohort} clients a round out of {self.data.clients}; use at most that"
            )
        if self.algorithm.clients not in (None, self.data.clients):
            raise ValueError(
                f"the algorithm was made for {self.algorithm.clients} clients, as by `ranks`; the "
                f"data have {self.data.clients}: give one setting for each"
            )
        most = self.algorithm.rounds
        if most is not None and self.rounds > most:
            raise ValueError(
                f"rounds={self.rounds}, but the algorithm was made for {most} at most, as by "
                "`merges`; run fewer, or make it for more"
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
        if self.participation is not None:
            values.function("participation", self.participation, "a function, or None")
        at_evaluations = {
            "stop_when": "a function of the records, or None",
            "server_measures": "a function of server and round, or None",
        }
        for name, wanted in at_evaluations.items():
            if (given := getattr(self, name)) is not None:
                values.function(name, given, wanted)
                if not self.evaluate_every:
                    raise ValueError(
                        f"{name} is asked after each evaluation, and evaluate_every=0 has none; "
                        "give evaluate_every=1 or more"
                    )
        if self.evaluate_every and not length(self.data.test):
            raise ValueError("the test set is empty; give some rows, or evaluate_every=0")

    @property
    def task(self) -> Task:
        return self.algorithm.task

    def facts(self) -> dict[str, Any]:
        """Who takes part and for how long, as a notebook shows it."""
        return {
            "clients": self.data.clients,
            "examples": int(self.data.train.count.sum()),
            "cohort": self.cohort,
            "rounds": self.rounds,
            "seed": self.seed,
        }

    def __repr__(self) -> str:
        return shown.line("Experiment", self.facts())

    def _repr_html_(self) -> str:
        return shown.table("Experiment", self.facts())
