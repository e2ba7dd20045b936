"""What a row of the zoo has, and what it is given to make a small run."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import optax

from jaxfed import local
from jaxfed.algorithm import Algorithm
from jaxfed.tasks.task import Task


class Setting(NamedTuple):
    """What a row needs beside the task: sizes and rates for a small run."""

    work: local.Work  # of a client in a round
    rate: float  # learning rate of all that clients train
    clients: int  # in the population
    rank: int  # of the task's factors
    rounds: int  # of the run; methods in stages divide them
    personal_work: local.Work | None = None  # on a client's own part; by default `work`

    @property
    def sgd(self) -> optax.GradientTransformation:
        return optax.sgd(self.rate)

    @property
    def own_work(self) -> local.Work:
        return self.personal_work or self.work

    @property
    def own(self) -> dict[str, Any]:
        """The arguments of methods that train a shared and a personal part."""
        return {
            "personal_work": self.own_work,
            "client_optimizer": self.sgd,
            "personal_optimizer": self.sgd,
        }

    @property
    def ranks(self) -> list[int]:
        """Ranks of the clients, from half of the task's to all of it, in turn."""
        return [max(1, self.rank // 2) if i % 2 == 0 else self.rank for i in range(self.clients)]


class Row(NamedTuple):
    """One method."""

    name: str  # on the command line and in tables
    function: Callable[..., Algorithm]
    trains: Literal["any", "factors", "scratch"]
    """What theta must be: anything; factors beside a kept base; factors beside a base of zeros."""
    make: Callable[[Task, Setting], Algorithm]
    sends: str  # what crosses the wire in a round, down and up
    keeps: str  # what a client keeps between rounds
    source: str

    @property
    def family(self) -> str:
        """general, shared or personal: the folder of its file."""
        return self.function.__module__.split(".")[-2]
