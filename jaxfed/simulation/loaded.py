"""A run as it was after one of its rounds, read from its folder; nothing there is changed."""

import contextlib
import dataclasses
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxfed import lowrank
from jaxfed.algorithm import PyTree
from jaxfed.simulation import (
    by_client,
    checkpoint,
    engine,
    identity,
    keys,
    population,
    run_folder,
    shown,
    stored,
)
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


@dataclasses.dataclass(frozen=True, repr=False)
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

    def facts(self) -> dict[str, Any]:
        """Where the run is, how far it went, and its newest measures."""
        rounds = self.settings.get("experiment", {}).get("rounds", len(self.records))
        recorded = {"rounds": f"{len(self.records)} of {rounds}", **shown.measured(self.records)}
        return {"folder": self.directory, "model": f"after round {self.round}", **recorded}

    def __repr__(self) -> str:
        return shown.line("Loaded", self.facts())

    def _repr_html_(self) -> str:
        return shown.table("Loaded", self.facts())

    @property
    def server(self) -> Any:
        """The server after that round, as the algorithm keeps it."""
        e, model = self._parts()
        return keys.keys(model.server, jax.eval_shape(e.algorithm.init, jax.random.key(0)))

    @property
    def theta(self) -> PyTree:
        """The trained part of the server's model."""
        return self.deployed()[1]

    @property
    def clients(self) -> list[dict]:
        """Each evaluation by client: {"round", "client": [n], "examples": [n], measure: [n]}.

        Of more than 50,000 clients, several in turn have parts of one evaluation.
        """
        return [found for _, found in by_client.lines(self.directory)]

    def deployed(self, client: Hashable | None = None) -> tuple[PyTree, PyTree]:
        """(base, theta) that this client would run; None is a client that was never drawn.

        A client is given by its name, where the data have names, or by its number.
        """
        e, model = self._parts()
        algorithm = keys.as_numbers(e.algorithm)
        if client is None:
            state = algorithm.init_client(model.server, jax.random.key(0))
        else:
            states = model.people.states_of(np.array([e.data.number(client)], np.int32))
            state = jax.tree.map(lambda x: x[0], states)
        return algorithm.deploy(model.server, state)

    def params(self, client: Hashable | None = None) -> PyTree:
        """The model's parameters with the factors merged, as flax takes them: {"layer": {...}}."""
        base, theta = self.deployed(client)
        if not isinstance(theta, lowrank.Theta):
            raise TypeError(f"theta is a {type(theta).__name__}; only a lowrank.Theta is merged")
        return lowrank.merged(base, theta)

    def predict(self, inputs: Any, client: Hashable | None = None) -> np.ndarray:
        """The outputs [n, ...] of the model that this client would run, such as logits.

        `inputs` are n examples as the run's data hold them, arrays by name ({"image": [n, ...]};
        what the model does not read is left out), or one array for a model of one input. They are
        run in batches of the experiment's `evaluate_batch`. ValueError for arrays of another kind.
        """
        e, _ = self._parts()
        if e.task.predict is None:
            raise TypeError("the run's task has no `predict`; make it with Task(..., predict=...)")
        rows, model = _rows(e, inputs), self.deployed(client)
        count = len(next(iter(rows.values())))
        size, outputs = min(count, e.evaluate_batch), []
        predict = jax.jit(e.task.predict)
        for begin in range(0, count, size):
            batch = {name: x[begin : begin + size] for name, x in rows.items()}
            real = min(size, count - begin)
            batch = {name: _filled(x, size) for name, x in batch.items()}
            mask = (np.arange(size) < real).astype(np.float32)
            outputs.append(np.asarray(predict(*model, {**batch, "mask": mask}))[:real])
        return np.concatenate(outputs)

    def _parts(self) -> tuple[Experiment, Model]:
        if self.experiment is None or self.model is None:
            raise ValueError(
                f"{self.directory} has no config.py, so its model is known to its program only: "
                "give the experiment, load(directory, experiment=experiment)"
            )
        return self.experiment, self.model


def _rows(e: Experiment, inputs: Any) -> dict[str, np.ndarray]:
    """The arrays [n, ...] that the model reads; ValueError unless they are like the run's own."""
    names = e.task.inputs
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise ValueError(f"the model reads {', '.join(names)}; give these arrays by name")
        inputs = {names[0]: inputs}
    if missing := [name for name in names if name not in inputs]:
        raise ValueError(f"the inputs have no {missing[0]!r}; they have {sorted(inputs)}")
    rows = {name: np.asarray(inputs[name]) for name in names}
    for name, x in rows.items():
        like = e.data.train.examples[name]
        text = like.ndim == 2 and like.dtype.kind in "iu"  # of tokens: of any length
        fits = x.ndim == like.ndim and (text or x.shape[1:] == like.shape[1:])
        if not fits or (x.dtype.kind == "f") != (like.dtype.kind == "f"):
            raise ValueError(
                f"{name} is {x.dtype} {x.shape}; the run's own examples are {like.dtype} "
                f"{('n', *like.shape[1:])}: give arrays like them".replace("'", "")
            )
    if len(counts := {len(x) for x in rows.values()}) > 1 or 0 in counts:
        raise ValueError(f"the inputs have {sorted(counts)} rows; give as many of each, from 1 on")
    return rows


def _filled(x: np.ndarray, size: int) -> np.ndarray:
    """The rows, and as many copies of the first as make it `size` rows."""
    return np.concatenate([x, x[:1].repeat(size - len(x), axis=0)])


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
