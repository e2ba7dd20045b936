"""The form of a row of the zoo, and the setting from which it makes a small run."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import optax

from jaxfed import local, lowrank
from jaxfed.algorithm import Algorithm
from jaxfed.lowrank import mixed, restarts
from jaxfed.tasks.task import Task


class Setting(NamedTuple):
    """The sizes and rates of a small run, which a row needs beside the task."""

    work: local.Work  # of a client in a round
    rate: float  # learning rate of all that clients train
    clients: int  # in the population
    cohort: int  # clients of a round
    rank: int  # of the task's factors
    rounds: int  # of the run; algorithms with stages divide them
    personal_work: local.Work | None = None  # on a client's own part; by default `work`
    update: Callable[[float], optax.GradientTransformation] = optax.sgd
    """learning rate -> the clients' optimizer, of those methods that leave it open."""
    personal_rank: int = 1  # of the factors that clients keep beside the task's
    personal_rate: float | None = None  # learning rate of a client's own part; by default `rate`
    mixture: Callable[[int], np.ndarray] | None = None
    """How many clients have which rank, of `lowrank.mixed`; by default see `ranks`. With one, the
    clients of FLoRA and FlexLoRA have unequal ranks, too."""

    personal: str = "head/bias"  # pattern of the paths of what FedPer's and FedRep's clients keep
    merge_every: int = 2  # rounds between the merges of methods that merge

    @classmethod
    def of_adamw(
        cls, work: local.Work, rate: float, *, clients: int, weight_decay: float, **more: Any
    ) -> "Setting":
        """All clients in every round, with AdamW where a method leaves the optimizer open.

        `more` are further fields: rank, rounds, personal_rank, ...
        """
        update = partial(optax.adamw, weight_decay=weight_decay)
        return cls(work, rate, clients=clients, cohort=clients, update=update, **more)

    @property
    def optimizer(self) -> optax.GradientTransformation:
        """The clients' optimizer, with the learning rate of the run."""
        return self.update(self.rate)

    @property
    def own_rate(self) -> float:
        """The learning rate of a client's own part."""
        return self.rate if self.personal_rate is None else self.personal_rate

    @property
    def own_work(self) -> local.Work:
        """The local work on a client's own part."""
        return self.work if self.personal_work is None else self.personal_work

    @property
    def own(self) -> dict[str, Any]:
        """The arguments of an algorithm that trains a shared and a personal part."""
        return {
            "personal_work": self.own_work,
            "client_optimizer": self.optimizer,
            "personal_optimizer": self.update(self.own_rate),
        }

    @property
    def merges(self) -> dict[str, Any]:
        """The arguments of FedLoRU's merges."""
        return {"every": self.merge_every, "restart": restarts.reinit}

    @property
    def ranks(self) -> list[int]:
        """The clients' ranks: from 1 to the task's by `mixture`, or by turns half of it and all."""
        if self.mixture is not None:
            levels = range(1, self.rank + 1)
            return mixed.client_ranks(self.clients, levels, self.mixture, seed=0)
        return [max(1, self.rank // 2) if i % 2 == 0 else self.rank for i in range(self.clients)]


class Oracle(NamedTuple):
    """What a method is held against: a loop over clients, a closed form, or another row."""

    kind: Literal["loop", "closed form", "another row"]
    file: str  # in the folder tests
    test: str  # its name there


PARTS = {"biases": "bias", "adapters": "adapter", "prefixes": "prefix"}
"""Parts of an encoder, and the pattern of their paths."""


class Row(NamedTuple):
    """One method of the zoo."""

    name: str  # on the command line and in tables
    function: Callable[..., Algorithm]
    trains: Literal["any", "factors", "scratch", "norms", "biases", "adapters", "prefixes"]
    """The theta that it needs: any; factors beside a kept base; factors beside a base of zeros; all
    weights of a model with batch norms at "norm", and their running statistics; or the head and one
    of PARTS of an encoder."""
    make: Callable[[Task, Setting], Algorithm]
    sends: str  # the message and the upload of a round
    keeps: str  # a client's state between rounds
    source: str
    oracle: Oracle  # beside the engine's loop, against which every row is held
    exact: bool = False
    """True if the model changes by the mean of the products that clients upload, and no other."""
    beside: Any = None
    """The module or function that makes the method of `function`; `jaxfed zoo NAME` shows both."""
    merges: bool = False
    """True if it merges factors into a base of zeros, which may as well be of given weights."""

    @property
    def family(self) -> str:
        """The folder of its algorithm: general, shared or personal."""
        return self.function.__module__.split(".")[-2]

    @property
    def fine_tunes(self) -> bool:
        """Whether it may begin at given weights, which it trains, or beside which it trains."""
        return self.merges or self.trains in ("any", "factors")

    def select(self, given: bool = False, **factors: Any) -> lowrank.Select:
        """What of a model it trains: all weights, or what lowrank.Select(**factors) selects.

        Beside `given` weights the base is theirs, whatever the method does from scratch.
        """
        if self.trains in ("any", "norms"):
            return lowrank.everything
        if self.trains in PARTS:
            return lowrank.Select(full=f"{PARTS[self.trains]}|^head")
        if self.trains == "scratch" and not given:
            factors |= {"base": "zero", "up": "random"}
        return lowrank.Select(**factors)
