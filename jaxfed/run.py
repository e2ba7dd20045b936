"""The host's loop: draw, run, evaluate, record, checkpoint.

A run is a function of its experiment and seed. Who is drawn in a round, and in which order a client
sees its examples, depends on (seed, round, client) alone, so a run that was killed and resumed
ends with the same bits as one that was not.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any, Literal

import jax
import numpy as np
import tensorboardX

from jaxfed import checkpoint, combine, engine, evaluate, ledger, population
from jaxfed.algorithm import Algorithm, Cohort, Data
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
    evaluate_every: int = 10  # rounds; 0: never
    evaluate_batch: int = 250

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds={self.rounds}; run at least 1")
        if not 1 <= self.cohort <= self.data.clients:
            raise ValueError(
                f"cohort={self.cohort} clients a round out of {self.data.clients}; use 1 to "
                f"{self.data.clients}"
            )
        if self.evaluate_every < 0 or self.evaluate_batch < 1:
            raise ValueError(
                f"evaluate_every={self.evaluate_every} (0: never) and "
                f"evaluate_batch={self.evaluate_batch} must not be negative"
            )


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
        for name in ("chunk", "fuse"):
            value = getattr(self, name)
            if value != "auto" and (not isinstance(value, int) or value < 1):
                raise ValueError(f'{name}={value!r}; use "auto" or a number from 1')
        if self.checkpoint_every < 0:
            raise ValueError(f"checkpoint_every={self.checkpoint_every}; use 0 for the end only")
        for name, known in (("nonfinite", ("stop", "skip")), ("merges", tuple(ledger.MERGES))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}; use one of {known}")


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
    its newest intact checkpoint; otherwise a directory that holds a run is refused. On SIGTERM the
    round is finished, a checkpoint written, and SystemExit raised.
    """
    simulation = Simulation(experiment, host or Host(), directory, resume=resume)
    return simulation.records()


class Simulation:
    """A run in progress: the host's state, and the compiled round."""

    def __init__(
        self,
        experiment: Experiment,
        host: Host,
        directory: str | os.PathLike | None,
        *,
        resume: bool,
        about: dict | None = None,
    ):
        self.experiment, self.host = experiment, host
        self.folder = None if directory is None else _open_folder(directory, resume)
        self.machine = engine.machine(host.devices)
        self.algorithm = experiment.algorithm
        if host.nonfinite == "skip":
            self.algorithm = combine.skip_nonfinite(self.algorithm)

        data, machine = experiment.data, self.machine
        self.stream = _must_stream(data, machine) if host.stream is None else host.stream
        self.examples = None if self.stream else engine.place(data.train.examples, machine)
        self.done, self.sent = 0, 0
        self.server = jax.jit(self.algorithm.init)(jax.random.key(experiment.seed))
        self.states = population.on_device(
            self.algorithm.init_client, self.server, data.clients, experiment.seed
        )
        self.owed = np.zeros(data.clients, np.int64)  # see ledger.lazy
        self.checkpoints = None
        if self.folder is not None:
            self.checkpoints = checkpoint.open_folder(self.folder / "checkpoints")
            if resume:
                self._restore()
            if jax.process_index() == 0:
                self.sent = _keep_metrics(self.folder / "metrics.jsonl", self.done)
                self._write_about(about)
                self.board = tensorboardX.SummaryWriter(
                    str(self.folder / "tensorboard"), purge_step=self.done + 1
                )
        self.server, self.states = engine.place((self.server, self.states), machine)
        self.wire = self._wire()
        self.base_bytes = ledger.nbytes(self.server.base)
        self._choose_chunk_and_fuse()
        self._prepare_evaluation()

    # ------------------------------------------------------------------ preparation

    def _write_about(self, about: dict | None) -> None:
        """settings.json, and who has which labels; once, when the run begins."""
        if (self.folder / "settings.json").exists():
            return
        e = self.experiment
        if "label" in e.data.train.examples:
            classes = int(e.data.train.examples["label"].max()) + 1
            np.savez(self.folder / "clients.npz", labels=label_table(e.data.train, classes))
        schedule = {n: getattr(e, n) for n in ("rounds", "cohort", "seed", "evaluate_every")}
        versions = {n: metadata.version(n) for n in ("jaxfed", "jax", "flax", "optax", "numpy")}
        about = about or {"config": None, "settings": schedule}
        _write_json(self.folder / "settings.json", {**about, "versions": versions})

    def _state(self) -> dict:
        return {"server": self.server, "states": self.states, "owed": self.owed}

    def _restore(self) -> None:
        found = self.checkpoints.restore(self._state())
        if found is not None:
            self.done, state, _ = found
            self.server, self.states = state["server"], state["states"]
            self.owed = np.array(state["owed"])

    def _plan(self, rounds: range) -> tuple[engine.Plan, Any]:
        """(the plan of these rounds, the examples to run them on)."""
        e, train = self.experiment, self.experiment.data.train
        rows = [self._drawn(r) for r in rounds]
        ids = np.stack(rows)  # [R, K], -1 where padded
        present = ids >= 0
        known = np.where(present, ids, 0)
        count = train.count[known]
        if not train.uniform:
            count = np.where(present, count, 0)
        examples, start = self.examples, train.start[known]
        if self.stream:
            block, offsets = pack(train, ids[0][present[0]], capacity(train, e.cohort))
            examples, start = engine.place(block, self.machine), np.zeros_like(start)
            start[present] = offsets
        slot = np.where(present, ids, e.data.clients)
        return (
            engine.Plan(
                np.asarray(rounds, np.int32),
                slot.astype(np.int32),
                slot.astype(np.int32),
                start.astype(np.int32),
                count.astype(np.int32),
                present.astype(np.float32),
            ),
            examples,
        )

    def _drawn(self, t: int) -> np.ndarray:
        """The ids of a round's clients in the order in which they lie on the devices [K']."""
        e = self.experiment
        ids = draw(e.seed, t, e.data.clients, e.cohort)
        order = engine.deal(e.data.train.count[ids], len(self.machine.devices))
        return np.where(order >= 0, ids[order], -1)

    def _wire(self) -> ledger.Wire:
        plan, examples = self._plan(range(1))
        shape = partial(jax.tree.map, lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype))
        k = len(plan.id[0])
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), k))
        cohort = Cohort(
            state=jax.tree.map(
                lambda s: jax.ShapeDtypeStruct((k, *s.shape[1:]), s.dtype), self.states
            ),
            data=Data(ledger.shapes(examples), shape(plan.start), self.experiment.data.train.most),
            count=shape(plan.count),
            weight=shape(plan.present),
            key=keys,
            id=shape(plan.id),
            round=shape(plan.round),
            round_key=jax.eval_shape(lambda: jax.random.key(0)),
        )
        return ledger.wire(self.algorithm, ledger.shapes(self.server), cohort)

    def memory(self) -> dict[str, int]:
        """Bytes that a device needs for one round, as compiled: arguments, results, in between."""
        plan, examples = self._plan(range(1))
        program = self.step.lower(self.server, self.states, examples, plan).compile()
        analysis = program.memory_analysis()
        return {
            "arguments": analysis.argument_size_in_bytes,
            "results": analysis.output_size_in_bytes,
            "temporary": analysis.temp_size_in_bytes,
        }

    def _make(self, machine: engine.Machine) -> Callable:
        train = self.experiment.data.train
        verb = engine.for_each_client(machine, uniform=train.uniform)
        rounds = engine.rounds(self.algorithm, verb, self.experiment.seed, train.most)
        return engine.compiled(rounds, machine, donate=(0, 1))

    def _choose_chunk_and_fuse(self) -> None:
        """Takes chunk and fuse as asked for, as remembered in the folder, or as measured."""
        chunk, fuse = self.host.chunk, self.host.fuse
        remembered = self._remembered()
        chunk = remembered.get("chunk", chunk) if chunk == "auto" else chunk
        fuse = remembered.get("fuse", fuse) if fuse == "auto" else fuse
        if chunk == "auto" or fuse == "auto":
            plan, examples = self._plan(range(1))
            arguments = (self.server, self.states, examples, plan)
            here = plan.id.shape[1] // len(self.machine.devices)
            candidates = engine.chunk_candidates(here) if chunk == "auto" else [int(chunk)]
            ahead = self.experiment.rounds - self.done
            best, seconds = engine.measured_chunk(
                self._make, self.machine, arguments, candidates, ahead
            )
            chunk = best if chunk == "auto" else chunk
            fuse = self._fuse(seconds) if fuse == "auto" else fuse
        self.machine = dataclasses.replace(self.machine, chunk=int(chunk))
        self.fuse = 1 if self.stream else int(fuse)
        self.step = self._make(self.machine)
        if self.folder is not None and jax.process_index() == 0:
            _write_json(
                self.folder / "machine.json",
                {
                    "chunk": self.machine.chunk,
                    "fuse": self.fuse,
                    "devices": len(self.machine.devices),
                    "device": self.machine.devices[0].device_kind,
                    "processes": jax.process_count(),
                },
            )

    def _remembered(self) -> dict:
        path = None if self.folder is None else self.folder / "machine.json"
        if path is None or not path.exists():
            return {}
        remembered = json.loads(path.read_text())
        if remembered["devices"] != len(self.machine.devices):
            warnings.warn(
                f"this run began on {remembered['devices']} devices and goes on with "
                f"{len(self.machine.devices)}: results will agree up to rounding, not to the bit",
                stacklevel=2,
            )
            return {}
        return remembered

    def _fuse(self, seconds: float) -> int:
        """As many rounds in one call as take a quarter of a second, in step with the schedule."""
        e, h = self.experiment, self.host
        step = np.gcd(e.evaluate_every or e.rounds, h.checkpoint_every or e.rounds)
        fits = [n for n in range(1, int(step) + 1) if step % n == 0 and n * seconds <= 0.25]
        return max(fits, default=1)

    # ------------------------------------------------------------------ evaluation

    def _prepare_evaluation(self) -> None:
        e, machine, devices = self.experiment, self.machine, len(self.machine.devices)
        examples = len(next(iter(e.data.test.values())))
        start, size = evaluate.pieces(examples, devices, e.evaluate_batch)
        everywhere = dataclasses.replace(machine, chunk=1)
        sums = evaluate.sums(
            self.algorithm, e.task, engine.for_each_client(everywhere), e.evaluate_batch
        )

        def whole(server, test):
            keys = jax.random.split(jax.random.key(0), devices)
            fresh = jax.vmap(self.algorithm.init_client, in_axes=(None, 0))(server, keys)
            return sums(server, fresh, Data(test, start, examples), jax.numpy.asarray(size))

        self.test = engine.place(e.data.test, machine)
        self.evaluate_whole = engine.compiled(whole, machine)

        personal = e.data.personal
        self.has_personal = bool(personal.count.sum())
        if not self.has_personal:
            return
        order = engine.deal(personal.count, devices)
        known = np.where(order >= 0, order, 0)
        count = np.where(order >= 0, personal.count[known], 0)
        batch = min(e.evaluate_batch, personal.most)
        here = len(order) // devices
        fits = [n for n in range(1, here + 1) if here % n == 0 and n * batch <= 2000]
        some = dataclasses.replace(machine, chunk=max(fits, default=1))
        own = evaluate.sums(self.algorithm, e.task, engine.for_each_client(some), batch)

        def everyone(server, states, examples):
            mine = jax.tree.map(lambda s: s[known], states)
            data = Data(examples, jax.numpy.asarray(personal.start[known]), personal.most)
            return own(server, mine, data, jax.numpy.asarray(count))

        self.personal = engine.place(personal.examples, machine)
        self.personal_count = count
        self.evaluate_everyone = engine.compiled(everyone, machine)

    def evaluate(self) -> dict:
        """{"accuracy", "test_loss", "personal"?} of the server as it stands."""
        examples = len(next(iter(self.experiment.data.test.values())))
        found = evaluate.means(self.evaluate_whole(self.server, self.test), examples)
        found["test_loss"] = found.pop("loss")
        if self.has_personal:
            sums = self.evaluate_everyone(self.server, self.states, self.personal)
            found["personal"] = evaluate.spread(sums, self.personal_count)
        return found

    # ------------------------------------------------------------------ the loop

    def records(self) -> Iterator[dict]:
        """Runs what is left; yields one record a round, after it is on disk."""
        asked_to_stop = threading.Event()
        with _on_sigterm(asked_to_stop if self.folder is not None else None):
            try:
                for rounds in self._blocks():
                    yield from self._block(rounds, stopping=asked_to_stop)
                    if asked_to_stop.is_set():
                        raise SystemExit(143)
            finally:
                if self.checkpoints is not None:
                    self.checkpoints.close()

    def _blocks(self) -> Iterator[range]:
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

    def _block(self, rounds: range, stopping: threading.Event) -> list[dict]:
        e, h = self.experiment, self.host
        begin = time.perf_counter()
        plan, examples = self._plan(rounds)
        self.server, self.states, metrics = self.step(self.server, self.states, examples, plan)
        metrics = jax.device_get(metrics)
        seconds = (time.perf_counter() - begin) / len(rounds)
        records = [self._record(r, plan, metrics, i, seconds) for i, r in enumerate(rounds)]
        self.done = rounds.stop
        last = self.done == e.rounds
        if (e.evaluate_every and self.done % e.evaluate_every == 0) or last:
            records[-1].update(self.evaluate())
        if self.folder is not None and jax.process_index() == 0:
            self._write(records)
        due = (
            last
            or stopping.is_set()
            or (h.checkpoint_every and self.done % h.checkpoint_every == 0)
        )
        if due and self.checkpoints is not None:
            self.checkpoints.save(self.done, self._state(), score=records[-1].get("accuracy"))
        return records

    def _record(self, t: int, plan: engine.Plan, metrics: dict, i: int, seconds: float) -> dict:
        present = plan.present[i] > 0
        ids = plan.id[i][present]
        finite = metrics["finite"][i][present]
        if not finite.all():
            raise FloatingPointError(
                f"round {t + 1}: the update or loss of clients {sorted(ids[~finite].tolist())} "
                "is not finite; lower the learning rate, clip gradients, or leave such clients out "
                "with nonfinite=skip"
            )
        weight = (plan.count[i] * plan.present[i])[present]
        extra, self.owed = ledger.MERGES[self.host.merges](
            self.owed,
            ids,
            int(metrics["broadcast"][i]) if "broadcast" in metrics else 0,
            self.base_bytes,
        )
        record = {
            "round": t + 1,
            "seconds": seconds,
            "clients": len(ids),
            "down": self.wire.down * len(ids),
            "up": self.wire.up * len(ids),
            "broadcast": extra,
        }
        for name in sorted(set(metrics) - {"finite", "broadcast", "skipped"}):
            value = np.asarray(metrics[name][i], np.float64)
            if value.ndim:
                value = np.average(value[present], weights=weight)
            record[name] = float(value)
        if "skipped" in metrics and metrics["skipped"][i].any():
            record["skipped"] = sorted(plan.id[i][metrics["skipped"][i] & present].tolist())
        return record

    def _write(self, records: list[dict]) -> None:
        with open(self.folder / "metrics.jsonl", "a") as file:
            file.writelines(json.dumps(r) + "\n" for r in records)
            file.flush()
            os.fsync(file.fileno())
        for r in records:
            for name, value in _flat(r):
                self.board.add_scalar(name, value, r["round"])


def _flat(record: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "round":
            yield prefix + name, value


def _open_folder(directory: str | os.PathLike, resume: bool) -> pathlib.Path:
    """The run's folder, made if need be; an error if it holds a run, or none to resume."""
    folder = pathlib.Path(directory)
    begun = any((folder / n).exists() for n in ("metrics.jsonl", "checkpoints", "settings.json"))
    if begun and not resume:
        raise FileExistsError(
            f"{folder} holds a run already; go on with `jaxfed resume {folder}`, or choose another "
            "folder"
        )
    if resume and not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no run's folder; there is nothing to resume")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _keep_metrics(path: pathlib.Path, rounds: int) -> int:
    """Leaves the lines of the first `rounds` rounds, so that each round is written once.

    Returns the bytes sent in them.
    """
    lines = path.read_text().splitlines(keepends=True)[:rounds] if path.exists() else []
    if len(lines) < rounds:
        raise ValueError(
            f"{path} has {len(lines)} rounds, but the checkpoint was written after {rounds}; the "
            "file was changed since: put it back, or start a new run"
        )
    _replace(path, "".join(lines))
    records = [json.loads(line) for line in lines]
    return sum(r["down"] + r["up"] + r["broadcast"] for r in records)


def _write_json(path: pathlib.Path, content: dict) -> None:
    _replace(path, json.dumps(content, indent=2) + "\n")


def _replace(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all."""
    new = path.with_name(path.name + ".new")
    with open(new, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


def _must_stream(data: Federated, machine: engine.Machine) -> bool:
    """Whether the training examples would take more than half of what a device has free."""
    return ledger.nbytes(data.train.examples) > engine.memory_limit(machine) // 2


@contextlib.contextmanager
def _on_sigterm(event: threading.Event | None) -> Iterator[None]:
    """Sets the event on SIGTERM instead of ending the process; only the main thread can."""
    if event is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
