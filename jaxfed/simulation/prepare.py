"""Everything that must hold before the first round: checked, placed, measured and compiled."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import combine, trees
from jaxfed.algorithm import Algorithm
from jaxfed.data.federated import Federated, label_table
from jaxfed.simulation import (
    blocks,
    boards,
    checkpoint,
    compilation,
    engine,
    evaluate,
    identity,
    keys,
    ledger,
    lock,
    population,
    processes,
    run_folder,
)
from jaxfed.simulation.experiment import Experiment
from jaxfed.simulation.host import Host
from jaxfed.simulation.programs import Programs

log = logging.getLogger(__name__)


class State(NamedTuple):
    """What changes from round to round, beside what clients keep."""

    server: Any
    owed: np.ndarray  # int64 [N]; see ledger.lazy
    done: int  # rounds


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where an experiment comes from, if a config made it: kept in settings.json."""

    config: str | None = None  # its text
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # whatever else to keep


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that can start, or go on, once: its arrays are donated to its first round."""

    experiment: Experiment
    host: Host
    algorithm: Algorithm
    machine: engine.Machine  # with the clients at once
    form: compilation.Form
    population: population.Population
    supply: blocks.Supply
    state: State
    wire: ledger.Wire  # at most
    wire_is_exact: bool
    base_bytes: int  # see ledger
    step: Any  # jitted, or Shared; see engine.rounds
    evaluate: evaluate.Evaluation
    folder: Path | None
    checkpoints: checkpoint.Checkpoints | None
    held: lock.Lock | None
    sent: int = 0  # bytes, in the rounds that are done

    def ranges(self) -> Iterator[range]:
        """The rounds that are left, cut into calls."""
        return blocks.ranges(self.experiment, self.host, self.form.fuse, self.state.done)

    def is_due(self, every: int, done: int, *, at_end: bool = False) -> bool:
        """True if a thing due every so many rounds is due now; 0: never, or at the end only."""
        last = done == self.experiment.rounds
        return (last and (at_end or every > 0)) or (every > 0 and done % every == 0)

    def checkpointed(self, state: State) -> dict:
        """What a checkpoint holds; what clients keep, the population saves beside it."""
        return _checkpointed(state.server, state.owed, self.population)

    def close(self) -> None:
        """Returns when all that was saved is on disk; the folder is free for others."""
        with contextlib.ExitStack() as stack:
            if self.held is not None:
                stack.callback(self.held.release)
            if self.checkpoints is not None:
                stack.callback(self.checkpoints.close)
            self.population.close()


def prepare(
    experiment: Experiment,
    host: Host,
    directory: str | os.PathLike | None = None,
    *,
    resume: bool = False,
    allow: Sequence[str] = (),
    origin: Origin | None = None,
    compiling: bool = True,
    drawing: bool = True,
    programs: Programs | None = None,
) -> Prepared:
    """A run of the experiment, ready for its first round; `close` it, or run it to its end.

    With a directory, its lock is held, and nothing else is written before all is checked, measured
    and compiled. `compiling=False` leaves compilation to the first call. `drawing=False` is for a
    run that is not to start: its server is shapes, what clients keep is zeros. Runs that are given
    the same `programs` share what is compiled. Raises ValueError for what does not fit, and OSError
    for a folder that is in use, holds a run already, or has none to resume.
    """
    e, machine, origin = experiment, engine.machine(host.devices), origin or Origin()
    folder = None if directory is None else Path(directory)
    if resume and folder is None:
        raise ValueError("resume=True needs the directory of a run")
    boards.check(host.log, folder)
    compilation.check(host.low_rank, machine)
    with contextlib.ExitStack() as undo:
        held = None if folder is None else _claim(folder, resume, machine)
        if held is not None:
            undo.callback(held.release)
        saved = run_folder.resumed_settings(folder) if resume and folder else {}
        log.info("tracing a round")
        found = identity.identity(e, origin.settings, origin.config)
        values = {n: v for section in found.values() for n, v in section.items()}
        processes.check_same(values | dataclasses.asdict(host) | {"rounds": e.rounds})
        changed = identity.changes(saved, found)
        identity.check_allowed(changed, allow)

        algorithm = working(e.algorithm, host)
        init = algorithm.init if programs is None else programs.compiled(algorithm.init, machine)
        first = partial(first_server, init, e.seed)
        log.info("restoring the newest checkpoint" if resume else "drawing the first weights")
        server = first() if drawing and not resume else None
        people = _population(e, algorithm, host, machine, first, server, folder, resume, drawing)
        undo.callback(people.close)
        checkpoints, owed = None, np.zeros(e.data.clients, np.int64)
        state = State(server if drawing else jax.eval_shape(first), owed, 0)
        if resume and folder:
            if why := run_folder.why_lost(folder, host.checkpoint_every):
                raise ValueError(why)
            checkpoints = checkpoint.open_folder(folder / "checkpoints")
            undo.callback(checkpoints.close)
            state = _restored(e, checkpoints, people, first)
        placed = engine.place if drawing else engine.placed_shapes
        state = state._replace(server=placed(state.server, machine))
        del server  # else there are two
        supply = blocks.Supply(e, machine, people, blocks.placed(e, host, machine, programs))
        before = run_folder.read_host(folder) if resume and folder else {}
        shapes = trees.shapes(state.server)
        wire, exact = ledger.most(algorithm, shapes, supply.cohort())
        ledger.check_merges(algorithm, shapes, e.rounds)
        machine, form, step = compilation.chosen(
            algorithm, host, supply, state.server, state.done, before, programs
        )
        prepared = Prepared(
            experiment=e,
            host=host,
            algorithm=algorithm,
            machine=machine,
            form=form,
            population=people,
            supply=supply,
            state=state,
            wire=wire,
            wire_is_exact=exact,
            base_bytes=trees.nbytes(state.server.base),
            step=step,
            evaluate=evaluate.evaluation(e, algorithm, machine, people.at_once, programs),
            folder=folder,
            checkpoints=checkpoints,
            held=held,
        )
        compile_all(prepared, compiling)
        if folder is not None:
            prepared = _begin(prepared, folder, found, changed, saved, origin)
        undo.pop_all()
    return prepared


def working(algorithm: Algorithm, host: Host) -> Algorithm:
    """The algorithm as a run carries it out: keys held as numbers, and what to do with NaN."""
    algorithm = keys.as_numbers(algorithm)
    return combine.skip_nonfinite(algorithm) if host.nonfinite == "skip" else algorithm


def first_server(init: Callable, seed: int) -> Any:
    """The server before the first round, in arrays of our own: rounds donate them."""
    # Not jitted: weights that were read from a file would be constants of the program.
    leaves, structure = jax.tree.flatten(init(jax.random.key(seed)))
    for i, leaf in enumerate(leaves):  # one after the other, so that no second model is held
        leaves[i] = jnp.copy(leaf)
        del leaf
    return jax.tree.unflatten(structure, leaves)


# ---------------------------------------------------------------------- the folder


def _claim(folder: Path, resume: bool, machine: engine.Machine) -> lock.Lock | None:
    """The lock of the run's folder, on process 0; an OSError on all if one of them refuses it."""
    held, error = None, None
    try:
        if why := run_folder.why_not_begun(folder) if resume else "":
            raise FileNotFoundError(why)
        if jax.process_index() == 0:
            held = _locked(folder, resume)
    except OSError as refused:
        error = refused
    if engine.largest(error is not None, machine):
        if held is not None:
            held.release()
        raise error or FileExistsError(f"another process refuses {folder}; see process 0")
    return held


def _locked(folder: Path, resume: bool) -> lock.Lock:
    if not resume and (why := run_folder.why_not_new(folder)):
        raise FileExistsError(why)
    with run_folder.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    held = lock.take(folder)
    if not resume and (why := run_folder.why_not_new(folder)):  # a run was here and has ended
        held.release()
        raise FileExistsError(why)
    return held


def _begin(
    p: Prepared,
    folder: Path,
    found: dict[str, dict],
    changed: dict[str, list],
    saved: dict,
    origin: Origin,
) -> Prepared:
    """Writes what is known before the first round, or cuts off what a resumed run repeats."""
    sent, resume = 0, p.checkpoints is not None
    if jax.process_index() == 0:
        if resume:
            records = run_folder.keep_records(folder, p.state.done)
            sent = sum(r["down"] + r["up"] + r["broadcast"] for r in records)
        rounds = {"experiment": {**found["experiment"], "rounds": p.experiment.rounds}}
        settings = {**(saved or origin.about), **found, **rounds}
        if changed:
            now_changed = {"from_round": p.state.done + 1, **changed}
            settings["changes"] = [*settings.get("changes", []), now_changed]
        if p.state.done < p.experiment.rounds:
            now = compilation.bits(p.machine, p.form)
            now["population"] = p.population.name  # which has no part in the bits
            run_folder.write_json(folder / "host.json", now)
        labels = None if resume else _labels(p.experiment.data)
        if settings != saved:
            config = None if resume else origin.config
            run_folder.begin(folder, settings, config=config, labels=labels)
    checkpoints = p.checkpoints or checkpoint.open_folder(folder / "checkpoints")
    return dataclasses.replace(p, checkpoints=checkpoints, sent=sent)


def _labels(data: Federated) -> np.ndarray | None:
    """How many examples of each label each client has [N, classes], where there are labels."""
    label = data.train.examples.get("label")
    if label is None or label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        return None
    if label.min() < 0 or int(label.max()) * data.clients > 10**8:  # they number something else
        return None
    return label_table(data.train, int(label.max()) + 1)


# ---------------------------------------------------------------------- what is placed


def _population(
    e: Experiment,
    algorithm: Algorithm,
    host: Host,
    machine: engine.Machine,
    first: Callable[[], Any],
    server: Any,
    folder: Path | None,
    resume: bool,
    drawing: bool,
) -> population.Population:
    """What clients keep, none of them drawn yet; placed as it was before, if none is asked."""
    placement, devices = host.population, len(machine.devices)
    if resume and folder is not None and placement == "auto":
        placement = run_folder.read_host(folder).get("population", "auto")
    return population.open_population(
        algorithm.init_client if drawing else trees.zeros_in_place_of(algorithm.init_client),
        first if server is None else lambda: server,
        placement,
        clients=e.data.clients,
        width=-(-e.cohort // devices) * devices,
        seed=e.seed,
        machine=machine,
        directory=None if folder is None else folder / "clients",
    )


def _restored(
    e: Experiment,
    checkpoints: checkpoint.Checkpoints,
    people: population.Population,
    first: Callable[[], Any],
) -> State:
    """The state of the newest intact checkpoint, or the first one if there is none."""
    owed = np.zeros(e.data.clients, np.int64)
    found = checkpoints.restore(
        _checkpointed(jax.eval_shape(first), owed, people), also=people.restore
    )
    if found is None:
        return State(first(), owed, 0)
    done, state, _ = found
    if e.rounds < done:
        raise ValueError(f"rounds={e.rounds}, but {done} are done; use at least that")
    return State(state["server"], np.array(state["owed"]), done)


def _checkpointed(server: Any, owed: np.ndarray, people: population.Population) -> dict:
    return {"server": server, "states": people.kinds, "owed": owed}


def compile_all(p: Prepared, compiling: bool = True) -> None:
    """Traces the evaluation, which raises a task's errors; compiles all if rounds are left."""
    e, server = p.experiment, p.state.server
    if e.evaluate_every:
        p.evaluate.check(server, p.state.done)
    rounds = next(p.ranges(), None)
    if not compiling or rounds is None:
        return
    call = "a round" if len(rounds) == 1 else f"{len(rounds)} rounds in one call"
    log.info("compiling %s, %s clients at once", call, p.machine.chunk)
    block = p.supply.block(rounds)
    p.step.lower(server, block.states, block.examples, block.plan).compile()
    if e.evaluate_every:
        log.info("compiling the evaluation")
        p.evaluate.compile(server, p.population.states_of)
