"""The host's loop: draw, run, evaluate, record, checkpoint.

A run is a function of its experiment and seed. Who is drawn in a round, and in which order a client
sees its examples, depends on (seed, round, client) alone, so a run that was killed and resumed
ends with the same bits as one that was not.
"""

import contextlib
import dataclasses
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxfed import combine, trees
from jaxfed.algorithm import Cohort, PyTree
from jaxfed.data.federated import Federated, label_table
from jaxfed.simulation import (
    checkpoint,
    engine,
    evaluate,
    flops,
    ledger,
    participation,
    population,
    records,
    run_folder,
    tuning,
)
from jaxfed.simulation.experiment import Experiment, Host, check_same, identity


def run(
    experiment: Experiment,
    directory: str | os.PathLike | None = None,
    host: Host | None = None,
    *,
    resume: bool = False,
) -> Iterator[dict]:
    """Yields one record a round; with a directory, also writes metrics and checkpoints there.

    A record is {"round" (from 1), "loss", "seconds", "down", "up", "broadcast" (bytes, all clients
    together), "clients"}, and after an evaluation also "accuracy", "test_loss" and, if clients
    have test examples of their own, "personal": {name: {mean, min, p10, p50, p90,
    union}}.

    Everything is checked before this returns. With `resume`, the run in the directory goes on from
    its newest intact checkpoint, to `rounds`; all else in the experiment must be as it was.
    Otherwise a directory that holds a run is refused. With a directory, SIGTERM and Ctrl-C let the
    rounds in progress end, and write a checkpoint before SystemExit(143) or KeyboardInterrupt.
    """
    return Simulation(experiment, host or Host(), directory, resume=resume).records()


class Block(NamedTuple):
    """Consecutive rounds that run in one call."""

    rounds: range
    plan: engine.Plan
    states: PyTree  # what the plan's `slot` points into
    examples: PyTree  # what the plan's `start` points into


class Simulation:
    """A run in progress: the host's state, and the compiled rounds.

    Nothing is written before everything is checked, measured and traced. `config` is the text of
    the config and `about` what else to keep in settings.json.
    """

    def __init__(
        self,
        experiment: Experiment,
        host: Host,
        directory: str | os.PathLike | None,
        *,
        resume: bool = False,
        about: dict | None = None,
        config: str | None = None,
    ):
        self.experiment, self.host = experiment, host
        self.machine = engine.machine(host.devices)
        self.folder = None if directory is None else self._claim(Path(directory), resume)
        if resume and self.folder is not None:
            check_same(experiment, run_folder.read_settings(self.folder))
        self.algorithm = experiment.algorithm
        if host.nonfinite == "skip":
            self.algorithm = combine.skip_nonfinite(self.algorithm)
        self.done = self.saved = self.sent = 0
        self.owed = np.zeros(experiment.data.clients, np.int64)  # see ledger.lazy
        self.checkpoints: checkpoint.Checkpoints | None = None
        server = None if resume else self._first()
        self.population = self._open_population(server, resume)
        self.server = engine.place(self._restored() if resume else server, self.machine)
        del server  # else there are two
        self._place_examples()
        self._count_bytes()
        self._choose_chunk_and_fuse(resume)
        self.evaluate = evaluate.evaluation(
            experiment, self.algorithm, self.machine, self.population.at_once
        )
        if experiment.evaluate_every:
            test = self.evaluate.examples["test"]
            sums = jax.eval_shape(self.evaluate.sums["test"], self.server, test)
            evaluate.check_measures(self.evaluate.summary, sums)
        if self.folder is not None:
            self._begin(self.folder, resume, about or {}, config)

    # ------------------------------------------------------------------ preparation

    def _claim(self, directory: Path, resume: bool) -> Path:
        """The run's folder, there and writable; an error if it holds a run, or none to resume."""
        why = run_folder.why_not_begun(directory) if resume else ""
        if jax.process_index() == 0 and not resume:
            why = run_folder.why_not_new(directory)
            if not why:
                with run_folder.writing(directory):
                    directory.mkdir(parents=True, exist_ok=True)
        refused = engine.largest(bool(why), self.machine)
        if refused and resume:
            raise FileNotFoundError(why or f"another process finds no run in {directory}")
        if refused:
            raise FileExistsError(why or f"no run can begin in {directory}; see process 0")
        return directory

    def _first(self) -> Any:
        """The server before the first round."""
        # Not jitted: weights that were read from a file would be constants of the program.
        return engine.distinct(self.algorithm.init(jax.random.key(self.experiment.seed)))

    def _open_population(self, server: Any, resume: bool) -> population.Population:
        """What clients keep, none of them drawn yet; placed as it was before, if none is asked."""
        e, placement, devices = self.experiment, self.host.population, len(self.machine.devices)
        if resume and self.folder is not None and placement == "auto":
            placement = run_folder.read_machine(self.folder).get("population", "auto")
        return population.open_population(
            self.algorithm.init_client,
            self._first if server is None else lambda: server,
            placement,
            clients=e.data.clients,
            width=-(-e.cohort // devices) * devices,
            seed=e.seed,
            machine=self.machine,
            directory=None if self.folder is None else self.folder / "clients",
        )

    def _restored(self) -> Any:
        """The server of the newest intact checkpoint, or the first one if there is none."""
        if self.folder is None:
            raise ValueError("resume=True needs the directory of a run")
        if why := run_folder.why_lost(self.folder, self.host.checkpoint_every):
            raise ValueError(why)
        self.checkpoints = checkpoint.open_folder(self.folder / "checkpoints")
        target = self._state(jax.eval_shape(self._first))
        found = self.checkpoints.restore(target, also=self.population.restore)
        if found is None:
            return self._first()
        self.done, state, _ = found
        self.saved, self.owed = self.done, np.array(state["owed"])
        if self.experiment.rounds < self.done:
            raise ValueError(
                f"rounds={self.experiment.rounds}, but {self.done} are done; use at least that"
            )
        return state["server"]

    def _state(self, server: Any) -> dict:
        """What a checkpoint holds; what clients keep, the population saves beside it."""
        return {"server": server, "states": self.population.kinds, "owed": self.owed}

    def _place_examples(self) -> None:
        """Puts the training examples on the devices, or decides to send each cohort's later."""
        examples = self.experiment.data.train.examples
        self.stream = self.host.stream
        if self.stream is None:
            self.stream = trees.nbytes(examples) > engine.memory_limit(self.machine) // 2
        self.examples = None if self.stream else engine.place(examples, self.machine)

    def _cohort(self) -> Cohort:
        """The first round's cohort, as shapes."""
        e, first = self.experiment, self._block(range(1))
        plan = jax.tree.map(lambda x: x[0], first.plan)
        made = partial(engine.cohort, seed=e.seed, most=e.data.train.most)
        return jax.eval_shape(made, first.states, first.examples, plan)

    def _count_bytes(self) -> None:
        server = trees.shapes(self.server)
        self.wire, self.exact_wire = ledger.most(self.algorithm, server, self._cohort())
        self.base_bytes = trees.nbytes(self.server.base)

    @property
    def _fuse(self) -> int | Literal["auto"]:
        """Rounds in one call, as asked for: one where each needs what the host has prepared."""
        return 1 if self.stream or self.population.moves else self.host.fuse

    def _rounds(self, machine: engine.Machine) -> jax.stages.Wrapped:
        """The jitted rounds on this machine; see engine.rounds."""
        train = self.experiment.data.train
        verb = engine.for_each_client(machine, uniform=train.uniform)
        rounds = engine.rounds(self.algorithm, verb, self.experiment.seed, train.most)
        return engine.compiled(rounds, machine, donate=(0, 1))

    def _choose_chunk_and_fuse(self, resume: bool) -> None:
        """Takes chunk and fuse as asked for, as remembered in the folder, or as measured."""
        remembered = self._remembered() if resume else {}
        chunk, fuse = (
            remembered.get(n, asked) if asked == "auto" else asked
            for n, asked in (("chunk", self.host.chunk), ("fuse", self._fuse))
        )
        # So that what was measured is not compiled again.
        made: dict[int | None, jax.stages.Wrapped] = {}

        def make(machine: engine.Machine) -> jax.stages.Wrapped:
            return made.setdefault(machine.chunk, self._rounds(machine))

        first = self._block(range(1))
        arguments = (self.server, first.states, first.examples, first.plan)
        if chunk == "auto" or fuse == "auto":
            here = first.plan.id.shape[1] // len(self.machine.devices)
            candidates = tuning.chunk_candidates(here) if chunk == "auto" else [chunk]
            ahead = self.experiment.rounds - self.done
            chunk, seconds = tuning.measured_chunk(make, self.machine, arguments, candidates, ahead)
            fuse = (
                participation.fuse(self.experiment, self.host, seconds) if fuse == "auto" else fuse
            )
        self.machine = dataclasses.replace(self.machine, chunk=chunk)
        self.fuse = int(fuse)
        self.step = make(self.machine)
        jax.eval_shape(self.step, *arguments)  # raises what an algorithm's code has to raise

    def _remembered(self) -> dict:
        """What machine.json says; a warning if this machine cannot end in the same bits."""
        if self.folder is None:
            return {}
        before = run_folder.read_machine(self.folder)
        now = _about_machine(self.machine, self.host.chunk, self._fuse)
        if changed := {
            n: f"{before[n]}, now {now[n]}"
            for n in now
            if n in before and before[n] != now[n] != "auto"
        }:
            warnings.warn(
                f"the run began with other {changed}: its results will agree with those of an "
                "unbroken run up to rounding, not to the bit",
                stacklevel=2,
            )
        return before if before.get("devices") == now["devices"] else {}

    def _begin(self, path: Path, resume: bool, about: dict, config: str | None) -> None:
        """Writes what is known before the first round, or cuts off what a resumed run repeats."""
        e = self.experiment
        settings = run_folder.read_settings(path) if resume else about
        lasting = identity(e) | {"rounds": e.rounds}
        if jax.process_index() == 0:
            if resume:
                records = run_folder.keep_records(path, self.done)
                self.sent = sum(r["down"] + r["up"] + r["broadcast"] for r in records)
            labels = None if resume else _labels(e.data)
            machine = _about_machine(self.machine, self.machine.chunk, self.fuse)
            machine["population"] = self.population.name  # which has no part in the bits
            run_folder.write_json(path / "machine.json", machine)
            settings = {"versions": _versions(), **settings, "experiment": lasting}
            run_folder.begin(path, settings, config=config, labels=labels)
            with run_folder.writing(path / "tensorboard"):
                self.board = run_folder.tensorboard(path, self.done)
        if self.checkpoints is None:
            self.checkpoints = checkpoint.open_folder(path / "checkpoints")

    # ------------------------------------------------------------------ blocks of rounds

    def _ranges(self) -> Iterator[range]:
        """Consecutive rounds to run in one call, cut where something else is due.

        The cuts depend on the schedule alone, not on where a run was resumed.
        """
        e, h = self.experiment, self.host
        every = [self.fuse, e.evaluate_every or e.rounds, h.checkpoint_every or e.rounds]
        begin = self.done
        while begin < e.rounds:
            end = min(e.rounds, *((begin // n + 1) * n for n in every))
            yield range(begin, end)
            begin = end

    def _block(self, rounds: range) -> Block:
        plan = participation.make(self.experiment, len(self.machine.devices), rounds)
        states, plan = self.population.lend(plan)
        if not self.stream:
            return Block(rounds, plan, states, self.examples)
        examples, plan = participation.packed(self.experiment, plan)
        return Block(rounds, plan, states, engine.place(examples, self.machine))

    def _run_blocks(self) -> Iterator[list[dict]]:
        """The records of block after block; the next is prepared while the devices work."""
        ranges = self._ranges()
        upcoming = next(map(self._block, ranges), None)
        begin = time.perf_counter()
        while (block := upcoming) is not None:
            self.server, states, metrics = self.step(
                self.server, block.states, block.examples, block.plan
            )
            self.population.keep(block.plan, states)
            upcoming = next(map(self._block, ranges), None)
            metrics = jax.device_get(metrics)
            seconds = (time.perf_counter() - begin) / len(block.rounds)
            yield self._records(block, metrics, seconds)
            begin = time.perf_counter()

    def _records(self, block: Block, metrics: dict, seconds: float) -> list[dict]:
        """One record a round; FloatingPointError if a client of one of them was not finite."""
        found = []
        for i, t in enumerate(block.rounds):
            here, told = jax.tree.map(lambda x, i=i: x[i], (block.plan, metrics))
            record = records.record(t, here, told)
            merge = self.algorithm.broadcast(self.server, t)
            pay = ledger.MERGES[self.host.merges]
            extra, self.owed = pay(self.owed, here.id, merge, self.base_bytes)
            found.append({**record, "seconds": seconds, "broadcast": extra})
        return found

    # ------------------------------------------------------------------ the loop

    def records(self) -> Iterator[dict]:
        """Runs what is left; yields one record a round, after it is on disk."""
        with _noted_signals(self.folder is not None) as noted:
            try:
                for block in self._run_blocks():
                    stop = int(engine.largest(noted[0] if noted else 0, self.machine))
                    self._finish(block, stopping=bool(stop))
                    yield from block
                    if stop and self.done < self.experiment.rounds:
                        self.close()
                        raise KeyboardInterrupt if stop == signal.SIGINT else SystemExit(128 + stop)
            except BaseException:
                with contextlib.suppress(OSError):  # what went wrong first is what to tell
                    self.close()
                raise
        self.close()

    def _finish(self, records: list[dict], *, stopping: bool) -> None:
        """Evaluates, writes and saves, as is due after the rounds of these records."""
        e, h = self.experiment, self.host
        self.done = records[-1]["round"]
        last = self.done == e.rounds
        if e.evaluate_every and (last or self.done % e.evaluate_every == 0):
            records[-1].update(self.evaluate(self.server, self.population.states_of))
        if self.folder is not None and jax.process_index() == 0:
            run_folder.append(self.folder, records)
            with run_folder.writing(self.folder / "tensorboard"):
                run_folder.show(self.board, records)
        due = last or stopping or (h.checkpoint_every and self.done % h.checkpoint_every == 0)
        if due and self.checkpoints is not None:
            self.checkpoints.wait()
            extra = self.population.save(self.done, self.checkpoints.rounds)
            score = records[-1].get("accuracy")
            self.checkpoints.save(self.done, self._state(self.server), score=score, extra=extra)
            self.saved = self.done

    def close(self) -> None:
        """Returns when all that was recorded and saved is on disk."""
        self.population.close()
        if self.checkpoints is not None:
            self.checkpoints.close()
        if self.folder is not None and jax.process_index() == 0:
            self.board.close()

    def compute(self) -> flops.Round:
        """FLOPs of a client and of the server in a round, means over all clients and rounds."""
        e = self.experiment
        counts, clients = np.unique(e.data.train.count, return_counts=True)
        pairs = np.meshgrid(counts, np.arange(e.rounds))  # [rounds, counts] each
        found = flops.counted_round(
            self.algorithm, trees.shapes(self.server), self._cohort(), *(x.ravel() for x in pairs)
        )
        share = np.tile(clients, e.rounds)
        return flops.Round(
            *(part._replace(flops=float(np.average(part.flops, weights=share))) for part in found)
        )

    def mean_wire(self) -> ledger.Wire:
        """Bytes that a client receives and sends, in the mean over the first round's clients."""
        if self.exact_wire:
            return self.wire
        one = dataclasses.replace(engine.machine(1), chunk=1)
        train, first = self.experiment.data.train, self._block(range(1))
        verb = engine.for_each_client(one, uniform=train.uniform)
        rounds = engine.rounds(self.algorithm, verb, self.experiment.seed, train.most)
        return ledger.mean(rounds, self.server, first.states, first.examples, first.plan)

    def memory(self, chunk: int) -> int:
        """Bytes that a device needs for one round beside its arguments, as compiled."""
        first = self._block(range(1))
        step = self._rounds(dataclasses.replace(self.machine, chunk=chunk))
        program = step.lower(self.server, first.states, first.examples, first.plan).compile()
        return tuning.temporary_bytes(program)


def _about_machine(machine: engine.Machine, chunk: Any, fuse: int | str) -> dict:
    """What runs must share to end in the same bits."""
    return {
        "chunk": chunk,
        "fuse": fuse,
        "devices": len(machine.devices),
        "device": machine.devices[0].device_kind,
        "processes": jax.process_count(),
        "jax": jax.__version__,
    }


def _labels(data: Federated) -> np.ndarray | None:
    """How many examples of each label each client has [N, classes], where there are labels."""
    label = data.train.examples.get("label")
    if label is None or label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        return None
    return label_table(data.train, int(label.max()) + 1)


def _versions() -> dict[str, str]:
    return {n: metadata.version(n) for n in ("jaxfed", "jax", "flax", "optax", "numpy")}


@contextlib.contextmanager
def _noted_signals(noting: bool) -> Iterator[list[int]]:
    """The SIGTERM and SIGINT that came meanwhile, which then do not end the process.

    A second Ctrl-C does. Only the main thread can note signals.
    """
    noted: list[int] = []
    if not noting or threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, _: Any) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {n: signal.signal(n, note) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
