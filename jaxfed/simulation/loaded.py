"""A run as it was after one of its rounds, read from its folder; nothing there is changed."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfed import lowrank
from jaxfed.algorithm import PyTree
from jaxfed.simulation import checkpoint, engine, identity, keys, population, run_folder, stored
from jaxfed.simulation.experiment import Experiment


class Model(NamedTuple):
    """The state of a run after one round."""

    round: int
    first: Any  # the server before the first round
    server: Any
    people: population.Population


def restored(e: Experiment, directory: Path, asked: int | None, machine: engine.Machine) -> Model:
    """The run after the round asked for (None: after the round of its newest checkpoint)."""
    first = e.algorithm.init(jax.random.key(e.seed))
    people = population.open_population(
        e.algorithm.init_client,
        lambda: first,
        "auto",
        clients=e.data.clients,
        width=-(-e.cohort // len(machine.devices)) * len(machine.devices),
        seed=e.seed,
        machine=machine,
        directory=directory / "clients",
        writes=False,
    )
    with contextlib.closing(checkpoint.look_into(directory / "checkpoints")) as kept:
        rounds = [0, *kept.rounds]
        t = rounds[-1] if asked is None else asked
        if t not in rounds:
            raise ValueError(
                f"{directory} has no checkpoint of round {t}; it has "
                f"{', '.join(map(str, rounds[1:])) or 'none'}, and 0 is before the first round"
            )
        if t == 0:
            return Model(0, first, first, people)
        owed = np.zeros(e.data.clients, np.int64)
        target = {"server": jax.eval_shape(lambda: first), "states": people.kinds, "owed": owed}
        state, extra = kept.load(t, target)
    people.restore(t, extra)
    return Model(t, first, state["server"], people)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A run's records, settings and config, and its model after round `round`.

    Without an experiment there are records and settings only, and `round` is the last one recorded.
    """

    directory: Path
    settings: dict
    records: list[dict]  # one a round
    config: str | None  # its text; None if the run was started from Python
    experiment: Experiment | None
    round: int
    model: Model | None

    @property
    def server(self) -> Any:
        """The server after that round, as the algorithm keeps it."""
        e, model = self._parts()
        return keys.keys(model.server, jax.eval_shape(e.algorithm.init, jax.random.key(0)))

    @property
    def theta(self) -> PyTree:
        """The trained part of the server's model."""
        return self.deployed()[1]

    def deployed(self, client: int | None = None) -> tuple[PyTree, PyTree]:
        """(base, theta) that this client would run; None is a client that was never drawn."""
        e, model = self._parts()
        algorithm = keys.as_numbers(e.algorithm)
        if client is None:
            state = algorithm.init_client(model.server, jax.random.key(0))
        elif 0 <= client < e.data.clients:
            states = model.people.states_of(np.array([client], np.int32))
            state = jax.tree.map(lambda x: x[0], states)
        else:
            raise ValueError(f"there is no client {client}; use 0 to {e.data.clients - 1}")
        return algorithm.deploy(model.server, state)

    def params(self, client: int | None = None) -> PyTree:
        """The model's parameters with the factors merged, as flax takes them: {"layer": {...}}."""
        base, theta = self.deployed(client)
        if not isinstance(theta, lowrank.Theta):
            raise TypeError(f"theta is a {type(theta).__name__}; only a lowrank.Theta is merged")
        return lowrank.merged(base, theta)

    def _parts(self) -> tuple[Experiment, Model]:
        if self.experiment is None or self.model is None:
            raise ValueError(
                f"{self.directory} has no config.py, so its model is known to its program only: "
                "give the experiment, load(directory, experiment=experiment)"
            )
        return self.experiment, self.model


def loaded(directory: Path, e: Experiment | None, asked: int | None) -> Loaded:
    """The run in this folder; ValueError if it has no such round, or is of another experiment."""
    if why := run_folder.why_not_begun(directory):
        raise FileNotFoundError(why)
    settings, path = run_folder.read_settings(directory), directory / "config.py"
    metrics = directory / "metrics.jsonl"
    records = [r for _, r in run_folder.records(metrics)] if metrics.exists() else []
    model = None
    if e is not None:
        identity.check_same(e, settings)
        numbered = dataclasses.replace(e, algorithm=keys.as_numbers(e.algorithm))
        model = restored(numbered, directory, asked, engine.machine())
    return Loaded(
        directory=directory,
        settings=settings,
        records=records,
        config=stored.read(path, stored.TEXT).decode() if path.exists() else None,
        experiment=e,
        round=len(records) if model is None else model.round,
        model=model,
    )
