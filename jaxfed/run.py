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
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jaxfed import checkpoint, combine, engine, evaluate, folder, ledger, population
from jaxfed.algorithm import Algorithm, PyTree
from jaxfed.data.federated import Federated, capacity, label_table, pack
from jaxfed.task import Task


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is run: everything that decides the result."""

    task: Task
    data: Federated
    algorithm: Algorithm
    _: dataclasses.KW_ONLY
    rounds: int
    cohort: int  # clients a round
    seed: int = 0
    evaluate_every: int = 10  # rounds, and after the last; 0: never
    evaluate_batch: int = 250

    def __post_init__(self) -> None:
        for name, kind in (("task", Task), ("data", Federated), ("algorithm", Algorithm)):
            if not isinstance(given := getattr(self, name), kind):
                raise TypeError(f"{name} is a {type(given).__name__}; give a {kind.__name__}")
        _check_numbers(self, rounds=1, cohort=1, seed=0, evaluate_every=0, evaluate_batch=1)
        if self.cohort > self.data.clients:
            raise ValueError(
                f"cohort={self.cohort} clients a round out of {self.data.clients}; use at most that"
            )
        if self.seed >= 2**32:  # beyond, JAX takes it modulo 2^32
            raise ValueError(f"seed={self.seed}; use a number below 2**32")
        for examples in (self.data.train.examples, self.data.personal.examples, self.data.test):
            self.task.check(examples)
        if self.evaluate_every and not _length(self.data.test):
            raise ValueError("the test set is empty; give some rows, or evaluate_every=0")


@dataclasses.dataclass(frozen=True)
class Host:
    """How it is run: nothing here changes the result beyond float rounding."""

    devices: int | None = None  # None: all
    chunk: int | Literal["auto"] = "auto"  # clients vmapped at once on a device
    fuse: int | Literal["auto"] = "auto"  # rounds in one call
    stream: bool | None = None  # prepare each cohort's examples on the host; None: if it must
    checkpoint_every: int = 50  # rounds; 0: only at the end
    nonfinite: Literal["stop", "skip"] = "stop"  # what a client with NaN or infinity does
    merges: Literal["eager", "lazy"] = "eager"  # who pays for a merge, and when; see ledger.py

    def __post_init__(self) -> None:
        limits = {"checkpoint_every": 0, "chunk": 1, "fuse": 1, "devices": 1}
        named = {"chunk": "auto", "fuse": "auto", "devices": None}
        _check_numbers(self, **{n: v for n, v in limits.items() if _is_not(self, n, named)})
        if self.stream not in (None, True, False):
            raise ValueError(f"stream={self.stream!r}; use True, False, or None for when it must")
        for name, known in (("nonfinite", ("stop", "skip")), ("merges", tuple(ledger.MERGES))):
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


def draw(seed: int, t: int, clients: int, cohort: int) -> np.ndarray:
    """The ids [K] of the clients of round t (from 0), uniform without replacement."""
    return np.random.default_rng([seed, t]).choice(clients, cohort, replace=False)


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
    have test examples of their own, "personal": {name: {mean, min, p10, p50, p90}}.

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
            _check_same(experiment, folder.read_json(self.folder / "settings.json"))
        self.algorithm = experiment.algorithm
        if host.nonfinite == "skip":
            self.algorithm = combine.skip_nonfinite(self.algorithm)
        self.done = self.saved = self.sent = 0
        self.owed = np.zeros(experiment.data.clients, np.int64)  # see ledger.lazy
        self.checkpoints: checkpoint.Checkpoints | None = None
        self.server, self.states = self._restored() if resume else self._first()
        self.server, self.states = engine.place((self.server, self.states), self.machine)
        self._place_examples()
        self._count_bytes()
        self._choose_chunk_and_fuse(resume)
        self.evaluate = _evaluation(experiment, self.algorithm, self.machine)
        if experiment.evaluate_every:
            jax.eval_shape(self.evaluate.sums, self.server, self.states, self.evaluate.examples)
        if self.folder is not None:
            self._begin(self.folder, resume, about or {}, config)

    # ------------------------------------------------------------------ preparation

    def _claim(self, directory: Path, resume: bool) -> Path:
        """The run's folder, there and writable; an error if it holds a run, or none to resume."""
        why = folder.why_not_begun(directory) if resume else ""
        if jax.process_index() == 0 and not resume:
            why = folder.why_not_new(directory)
            if not why:
                with folder.writing(directory):
                    directory.mkdir(parents=True, exist_ok=True)
        refused = engine.largest(bool(why), self.machine)
        if refused and resume:
            raise FileNotFoundError(why or f"another process finds no run in {directory}")
        if refused:
            raise FileExistsError(why or f"no run can begin in {directory}; see process 0")
        return directory

    def _first(self) -> tuple[Any, PyTree]:
        """(server, states) before the first round."""
        e = self.experiment
        server = jax.jit(self.algorithm.init)(jax.random.key(e.seed))
        make = self.algorithm.init_client
        return server, population.on_device(make, server, e.data.clients, e.seed)

    def _restored(self) -> tuple[Any, PyTree]:
        """(server, states) of the newest intact checkpoint, or the first ones if there is none."""
        if self.folder is None:
            raise ValueError("resume=True needs the directory of a run")
        self.checkpoints = checkpoint.open_folder(self.folder / "checkpoints")
        server, states = jax.eval_shape(self._first)
        found = self.checkpoints.restore({"server": server, "states": states, "owed": self.owed})
        if found is None:
            return self._first()
        self.done, state, _ = found
        self.saved, self.owed = self.done, np.array(state["owed"])
        if self.experiment.rounds < self.done:
            raise ValueError(
                f"rounds={self.experiment.rounds}, but {self.done} are done; use at least that"
            )
        return state["server"], state["states"]

    def _place_examples(self) -> None:
        """Puts the training examples on the devices, or decides to send each cohort's later."""
        examples = self.experiment.data.train.examples
        self.stream = self.host.stream
        if self.stream is None:
            self.stream = ledger.nbytes(examples) > engine.memory_limit(self.machine) // 2
        self.examples = None if self.stream else engine.place(examples, self.machine)

    def _count_bytes(self) -> None:
        e, train = self.experiment, self.experiment.data.train
        first = self._block(range(1))
        plan = jax.tree.map(lambda x: x[0], first.plan)
        cohort = jax.eval_shape(
            partial(engine.cohort, seed=e.seed, most=train.most), self.states, first.examples, plan
        )
        self.wire = ledger.wire(self.algorithm, ledger.shapes(self.server), cohort)
        self.base_bytes = ledger.nbytes(self.server.base)

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
            for n, asked in (("chunk", self.host.chunk), ("fuse", self.host.fuse))
        )
        made: dict[
            int | None, jax.stages.Wrapped
        ] = {}  # so that what was measured is not compiled again

        def make(machine: engine.Machine) -> jax.stages.Wrapped:
            return made.setdefault(machine.chunk, self._rounds(machine))

        first = self._block(range(1))
        arguments = (self.server, self.states, first.examples, first.plan)
        if chunk == "auto" or fuse == "auto":
            here = first.plan.id.shape[1] // len(self.machine.devices)
            candidates = engine.chunk_candidates(here) if chunk == "auto" else [int(chunk)]
            ahead = self.experiment.rounds - self.done
            chunk, seconds = engine.measured_chunk(make, self.machine, arguments, candidates, ahead)
            fuse = _fuse(self.experiment, self.host, seconds) if fuse == "auto" else fuse
        self.machine = dataclasses.replace(self.machine, chunk=int(chunk))
        self.fuse = 1 if self.stream else int(fuse)
        self.step = make(self.machine)
        jax.eval_shape(self.step, *arguments)  # raises what an algorithm's code has to raise

    def _remembered(self) -> dict:
        """What machine.json says; a warning if this machine cannot end in the same bits."""
        if self.folder is None:
            return {}
        before = folder.read_json(self.folder / "machine.json")
        now = _about_machine(self.machine, self.host.chunk, self.host.fuse)
        if changed := {
            n: f"{before[n]}, now {now[n]}"
            for n in before
            if before[n] != now.get(n) and now.get(n) != "auto"
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
        settings = folder.read_json(path / "settings.json") if resume else about
        identity = _identity(e) | {"rounds": e.rounds}
        if jax.process_index() == 0:
            if resume:
                records = folder.keep_records(path, self.done)
                self.sent = sum(r["down"] + r["up"] + r["broadcast"] for r in records)
            labels = None if resume else _labels(e.data)
            machine = _about_machine(self.machine, self.machine.chunk, self.fuse)
            folder.write_json(path / "machine.json", machine)
            settings = {"versions": _versions(), **settings, "experiment": identity}
            folder.begin(path, settings, config=config, labels=labels)
            with folder.writing(path / "tensorboard"):
                self.board = folder.tensorboard(path, self.done)
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
        plan = make_plan(self.experiment, len(self.machine.devices), rounds)
        if not self.stream:
            return Block(rounds, plan, self.examples)
        packed, plan = _packed(self.experiment, plan)
        return Block(rounds, plan, engine.place(packed, self.machine))

    def _run_blocks(self) -> Iterator[list[dict]]:
        """The records of block after block; the next is prepared while the devices work."""
        ranges = self._ranges()
        upcoming = next(map(self._block, ranges), None)
        begin = time.perf_counter()
        while (block := upcoming) is not None:
            self.server, self.states, metrics = self.step(
                self.server, self.states, block.examples, block.plan
            )
            upcoming = next(map(self._block, ranges), None)
            metrics = jax.device_get(metrics)
            seconds = (time.perf_counter() - begin) / len(block.rounds)
            yield self._records(block, metrics, seconds)
            begin = time.perf_counter()

    def _records(self, block: Block, metrics: dict, seconds: float) -> list[dict]:
        """One record a round; FloatingPointError if a client of one of them was not finite."""
        found = []
        for i, t in enumerate(block.rounds):
            ids, record = _record(t, *jax.tree.map(lambda x, i=i: x[i], (block.plan, metrics)))
            merge = int(metrics["broadcast"][i]) if "broadcast" in metrics else 0
            pay = ledger.MERGES[self.host.merges]
            extra, self.owed = pay(self.owed, ids, merge, self.base_bytes)
            sent = {"down": self.wire.down * len(ids), "up": self.wire.up * len(ids)}
            found.append({**record, "seconds": seconds, **sent, "broadcast": extra})
        return found

    # ------------------------------------------------------------------ the loop

    def records(self) -> Iterator[dict]:
        """Runs what is left; yields one record a round, after it is on disk."""
        with _noted_signals(self.folder is not None) as noted:
            try:
                for records in self._run_blocks():
                    stop = int(engine.largest(noted[0] if noted else 0, self.machine))
                    self._finish(records, stopping=bool(stop))
                    yield from records
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
            records[-1].update(self.evaluate(self.server, self.states))
        if self.folder is not None and jax.process_index() == 0:
            folder.append(self.folder, records)
            with folder.writing(self.folder / "tensorboard"):
                folder.show(self.board, records)
        due = last or stopping or (h.checkpoint_every and self.done % h.checkpoint_every == 0)
        if due and self.checkpoints is not None:
            state = {"server": self.server, "states": self.states, "owed": self.owed}
            self.checkpoints.save(self.done, state, score=records[-1].get("accuracy"))
            self.saved = self.done

    def close(self) -> None:
        """Returns when all that was recorded and saved is on disk."""
        if self.checkpoints is not None:
            self.checkpoints.close()
        if self.folder is not None and jax.process_index() == 0:
            self.board.close()

    def memory(self, chunk: int) -> int:
        """Bytes that a device needs for one round beside its arguments, as compiled."""
        first = self._block(range(1))
        step = self._rounds(dataclasses.replace(self.machine, chunk=chunk))
        program = step.lower(self.server, self.states, first.examples, first.plan).compile()
        return engine.temporary_bytes(program)


def make_plan(experiment: Experiment, devices: int, rounds: range) -> engine.Plan:
    """Who takes part in these rounds, and where on the devices [R, K]."""
    e, train = experiment, experiment.data.train
    drawn = [draw(e.seed, t, e.data.clients, e.cohort) for t in rounds]
    order = [engine.deal(train.count[ids], devices) for ids in drawn]
    places = np.stack([np.where(o >= 0, ids[o], -1) for ids, o in zip(drawn, order, strict=True)])
    present = places >= 0  # [R, K]
    known = np.maximum(places, 0)
    slot = np.where(present, places, e.data.clients).astype(np.int32)
    # Where all have equally many examples the engine wants to see that, in padded places too.
    count = train.count[known] if train.uniform else np.where(present, train.count[known], 0)
    return engine.Plan(
        round=np.asarray(rounds, np.int32),
        id=slot,
        slot=slot,
        start=train.start[known].astype(np.int32),
        count=count.astype(np.int32),
        present=present.astype(np.float32),
    )


def _about_machine(machine: engine.Machine, chunk: int | str | None, fuse: int | str) -> dict:
    """What runs must share to end in the same bits."""
    return {
        "chunk": chunk,
        "fuse": fuse,
        "devices": len(machine.devices),
        "device": machine.devices[0].device_kind,
        "processes": jax.process_count(),
        "jax": jax.__version__,
    }


def _fuse(e: Experiment, h: Host, seconds: float) -> int:
    """As many rounds in one call as take a quarter of a second, in step with the schedule."""
    step = np.gcd(e.evaluate_every or e.rounds, h.checkpoint_every or e.rounds)
    fits = [n for n in range(1, int(step) + 1) if step % n == 0 and n * seconds <= 0.25]
    return max(fits, default=1)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """(server, states) -> {"accuracy", "test_loss", "personal"?}; made by `_evaluation`."""

    sums: Callable  # (server, states, examples) -> sums over the test set's pieces, and clients'
    examples: dict[str, PyTree]  # {"test": ..., "personal": ...} on the devices
    count: int  # test examples
    own: np.ndarray  # [K] each client's own, in the order of the sums

    def __call__(self, server: Any, states: PyTree) -> dict:
        sums = self.sums(server, states, self.examples)
        found = evaluate.means(sums["test"], self.count)
        found["test_loss"] = found.pop("loss")
        if "personal" in sums:
            found["personal"] = evaluate.spread(sums["personal"], self.own)
        return found


def _evaluation(e: Experiment, algorithm: Algorithm, machine: engine.Machine) -> Evaluation:
    """The evaluation of this experiment, with test examples placed and nothing compiled yet."""
    count, devices, personal = _length(e.data.test), len(machine.devices), e.data.personal
    order = engine.deal(personal.count, devices)
    batch = max(1, min(e.evaluate_batch, personal.most))
    chunk = max(1, 2000 // batch)  # clients, so that some 2000 examples are evaluated at once
    one, some = (engine.for_each_client(dataclasses.replace(machine, chunk=n)) for n in (1, chunk))
    sums = {"test": evaluate.global_model(algorithm, e.task, one, count, devices, e.evaluate_batch)}
    examples = {"test": e.data.test}
    if personal.count.any():
        own = evaluate.personal_models(algorithm, e.task, some, personal, order, batch)
        sums["personal"], examples["personal"] = own, personal.examples

    def all_sums(server, states, examples):
        return {name: of(server, states, examples[name]) for name, of in sums.items()}

    return Evaluation(
        engine.compiled(all_sums, machine),
        engine.place(examples, machine),
        count,
        evaluate.counts(personal.count, order),
    )


def _packed(experiment: Experiment, plan: engine.Plan) -> tuple[PyTree, engine.Plan]:
    """(the examples of one round's clients, the plan with where they stand in these)."""
    train, present = experiment.data.train, plan.present > 0
    room = capacity(train, experiment.cohort)
    examples, offsets = pack(train, plan.id[present], room)
    start = np.zeros_like(plan.start)
    start[present] = offsets
    return examples, plan._replace(start=start)


def _record(t: int, plan: engine.Plan, metrics: dict) -> tuple[np.ndarray, dict]:
    """(who took part [K], the algorithm's metrics in round t as means over them)."""
    present = plan.present > 0
    finite, skipped = metrics["finite"], metrics.get("skipped", np.zeros_like(present))
    if not finite[present].all():
        raise FloatingPointError(
            f"round {t + 1}: the update or loss of clients "
            f"{sorted(plan.id[present & ~finite].tolist())} is not finite; lower the learning "
            "rate, clip gradients, or leave such clients out with nonfinite=skip"
        )
    record: dict[str, Any] = {"round": t + 1, "clients": int(present.sum())}
    counted = present & ~skipped
    for name in sorted(set(metrics) - {"finite", "broadcast", "skipped"}):
        value = np.asarray(metrics[name], np.float64)
        if not value.ndim:
            record[name] = float(value)
        elif counted.any():
            record[name] = float(np.average(value[counted], weights=plan.count[counted]))
    if (present & skipped).any():
        record["skipped"] = sorted(plan.id[present & skipped].tolist())
    return plan.id[present], record


def _identity(experiment: Experiment) -> dict:
    """What must not change when a run is resumed, as far as JSON can tell it."""
    names = ("cohort", "seed", "evaluate_every", "evaluate_batch")
    return {**{n: getattr(experiment, n) for n in names}, "clients": experiment.data.clients}


def _check_same(experiment: Experiment, settings: dict) -> None:
    """Raises ValueError if the run in these settings was begun with others."""
    before, now = settings.get("experiment", {}), _identity(experiment)
    for name, value in now.items():
        if before.get(name, value) != value:
            raise ValueError(
                f"the run was begun with {name}={before[name]}, not {value}; resume it with that, "
                "or begin another in a new folder"
            )


def _labels(data: Federated) -> np.ndarray | None:
    """How many examples of each label each client has [N, classes], where there are labels."""
    label = data.train.examples.get("label")
    if label is None or label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
        return None
    return label_table(data.train, int(label.max()) + 1)


def _versions() -> dict[str, str]:
    return {n: metadata.version(n) for n in ("jaxfed", "jax", "flax", "optax", "numpy")}


def _length(examples: PyTree) -> int:
    return len(jax.tree.leaves(examples)[0])


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
