"""Checkpoints of a run: saved while it goes on, restored bit for bit.

A checkpoint is one folder, named by its round, that orbax writes beside its place and moves there
when complete. It holds the state's arrays and a record of them: paths, shapes, checksums. So what
is restored was saved, in every bit, or is refused, and then the checkpoint before takes its place.
"""

import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import re
import shutil
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxfed.algorithm import PyTree


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in one folder: the newest two and the best. Made by `open_folder`.

    Not for two programs at once. `close` it, or stand it in `contextlib.closing`.
    """

    manager: ocp.CheckpointManager
    scores: dict[int, float]  # of the rounds that were scored

    @property
    def rounds(self) -> list[int]:
        """The rounds that have a checkpoint, ascending."""
        return sorted(self.manager.all_steps())

    @property
    def best(self) -> int | None:
        """The round with the highest score of those kept, the earliest of equals."""
        return _best(self.rounds, self.scores)

    def save(
        self, t: int, state: PyTree, *, score: float | None = None, extra: dict | None = None
    ) -> None:
        """Starts to save the state after round t, and returns once orbax has copied it.

        The state may be donated right away. `extra` is what else a run must know, as JSON; the best
        checkpoint is that of the highest `score`. Waits for the save before this one, and raises
        its OSError if that failed.
        """
        leaves = _on_host(state)
        record = {
            "round": t,
            "score": score,
            "extra": extra or {},
            "leaves": {path: [*_kind(x), _checksum(x)] for path, x in leaves.items()},
        }
        items: dict[str, Any] = {"record": ocp.args.JsonSave(_sealed(record))}
        if filled := {path: x for path, x in leaves.items() if x.size}:  # orbax takes no empty ones
            items["state"] = ocp.args.PyTreeSave(filled)
        if score is not None and math.isfinite(score):
            self.scores[t] = score
        with _one_sentence(self.manager.directory):
            self.manager.save(t, args=ocp.args.Composite(**items), force=True)

    def restore(
        self, target: PyTree, also: Callable[[int, dict], None] = lambda t, extra: None
    ) -> tuple[int, PyTree, dict] | None:
        """(t, state, extra) of the newest intact checkpoint; None if there is none at all.

        `target` is a state, or the ShapeDtypeStructs of one: the structure, what is static in it,
        and where the arrays go come from there. A damaged checkpoint is passed over with a warning,
        and renamed so that its round can be saved again. `also(t, extra)` takes what stands beside
        the checkpoint, and may raise to say that this is damaged. ValueError if all are damaged, or
        if the checkpoint does not fit the target; OSError if the system does not let one be read,
        which is no damage.
        """
        self.wait()
        damaged: dict[int, Exception] = {}
        for t in reversed(self.rounds):
            try:
                record, leaves = self._read(t)
            except Exception as error:  # whatever orbax meets in a damaged folder
                _check_readable(error, self.manager.directory)
                damaged[t] = error
                continue
            state = _fit(target, leaves, t)
            try:
                also(t, record["extra"])
            except Exception as error:
                _check_readable(error, self.manager.directory)
                damaged[t] = error
                continue
            self._set_aside(damaged, t)
            return t, state, record["extra"]
        if damaged:
            raise ValueError(
                f"no checkpoint in {self.manager.directory} is intact: {_in_short(damaged)}; "
                "bring back a copy of what is damaged, or start again in a new folder"
            )
        return None

    def load(self, t: int, target: PyTree) -> tuple[PyTree, dict]:
        """(state, extra) after round t, such as `best`; ValueError if it is damaged or unfit."""
        self.wait()
        record, leaves = self._read(t)
        return _fit(target, leaves, t), record["extra"]

    def wait(self) -> None:
        """Returns when everything is on disk; OSError if it could not be written."""
        with _one_sentence(self.manager.directory):
            self.manager.wait_until_finished()

    def close(self) -> None:
        """As `wait`; the threads that write are gone afterwards."""
        with _one_sentence(self.manager.directory):
            self.manager.close()
        logging.getLogger("absl").removeFilter(_is_not_of_orbax)

    def _read(self, t: int) -> tuple[dict, dict[str, np.ndarray]]:
        """The record of a checkpoint and its arrays {path: array}; an error if one bit is off."""
        record = _read_record(self.manager, t)
        leaves = {
            path: np.zeros(shape, jnp.dtype(dtype))
            for path, (dtype, shape, _) in record["leaves"].items()
        }
        if any(x.size for x in leaves.values()):
            items = ocp.args.Composite(state=ocp.args.PyTreeRestore())
            leaves |= self.manager.restore(t, args=items)["state"]
        for path, (dtype, shape, checksum) in record["leaves"].items():
            if [*_kind(leaves[path]), _checksum(leaves[path])] != [dtype, shape, checksum]:
                raise ValueError(f"the bits of {path} changed on disk")
        return record, leaves

    def _set_aside(self, damaged: dict[int, Exception], intact: int) -> None:
        """Renames the damaged, on one process and when all have read them, and says so."""
        if not damaged:
            return
        ocp.multihost.sync_global_processes("checkpoints:all_read")
        for t in damaged:
            if ocp.multihost.process_index() == 0:
                aside = Path(self.manager.directory) / f"{t}.damaged"
                shutil.rmtree(aside, ignore_errors=True)  # of an earlier time
                aside.with_name(str(t)).rename(aside)
            self.scores.pop(t, None)
        ocp.multihost.sync_global_processes("checkpoints:renamed")
        self.manager.reload()
        warnings.warn(
            f"damaged checkpoints in {self.manager.directory}: {_in_short(damaged)}; they were "
            f"renamed to ROUND.damaged, and the run goes on from round {intact}",
            stacklevel=3,
        )


def open_folder(directory: str | Path) -> Checkpoints:
    """The checkpoints in `directory`, which is made if need be. A half-written one is removed."""
    directory = Path(directory).absolute()
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    for place in directory.glob(f"*{ocp.path.step.TMP_DIR_SUFFIX}*"):
        warnings.warn(
            f"the checkpoint {place.name} was being written when its run stopped; the one before "
            "it stands",
            stacklevel=2,
        )
    scores: dict[int, float] = {}
    policies = ocp.checkpoint_managers
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(2), Best(scores)]),
        cleanup_tmp_directories=True,
    )
    manager = ocp.CheckpointManager(directory, options=options)
    for t in manager.all_steps():
        with contextlib.suppress(Exception):  # damaged, as `restore` will report
            score = _read_record(manager, t)["score"]
            if score is not None and math.isfinite(score):
                scores[t] = score
    return Checkpoints(manager, scores)


def look_into(directory: str | Path) -> Checkpoints:
    """The checkpoints in `directory`, to `load` only: also while a run writes there."""
    logging.getLogger("absl").addFilter(_is_not_of_orbax)
    options = ocp.CheckpointManagerOptions(create=False, read_only=True)
    return Checkpoints(ocp.CheckpointManager(Path(directory).absolute(), options=options), {})


@dataclasses.dataclass(frozen=True)
class Best:
    """An orbax preservation policy: keeps the round with the highest score, where any has one."""

    scores: dict[int, float]

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        rounds = [checkpoint.step for checkpoint in checkpoints]
        best = _best(rounds, self.scores)
        return [t == best for t in rounds]


def _best(rounds: list[int], scores: dict[int, float]) -> int | None:
    scored = [t for t in rounds if t in scores]
    return max(scored, key=scores.__getitem__, default=None)


def _on_host(state: PyTree) -> dict[str, np.ndarray]:
    """{path: array}; on a CPU these may be views of the state, which orbax copies in `save`."""
    leaves, _ = jax.tree.flatten_with_path(jax.device_get(state))
    return {jax.tree_util.keystr(path): np.asarray(leaf, order="C") for path, leaf in leaves}


def _kind(leaf: Any) -> tuple[str, list[int]]:
    return np.dtype(leaf.dtype).name, list(leaf.shape)


def _checksum(leaf: np.ndarray) -> int:
    return zlib.crc32(leaf.reshape(-1).view(np.uint8).data)


def _sealed(record: dict) -> dict:
    """The record as text with its checksum, so that a flipped digit is no valid record."""
    text = json.dumps(record)
    return {"text": text, "checksum": zlib.crc32(text.encode())}


def _read_record(manager: ocp.CheckpointManager, t: int) -> dict:
    items = ocp.args.Composite(record=ocp.args.JsonRestore())
    sealed = manager.restore(t, args=items)["record"]
    if zlib.crc32(sealed["text"].encode()) != sealed["checksum"]:
        raise ValueError("the record of its arrays changed on disk")
    return json.loads(sealed["text"])


def _fit(target: PyTree, leaves: dict[str, np.ndarray], t: int) -> PyTree:
    """The target's tree with the stored leaves; ValueError naming the first that does not fit."""
    wanted, structure = jax.tree.flatten_with_path(target)
    makes = {
        jax.tree_util.keystr(path): leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        for path, leaf in wanted
    }
    for path in makes | leaves:
        here, there = (
            "{}{}".format(*_kind(tree[path])) if path in tree else "nothing"
            for tree in (makes, leaves)
        )
        if here != there:
            raise ValueError(
                f"the checkpoint of round {t} holds {path} as {there}, and these settings make it "
                f"{here}; resume with the settings of the run, or start a new folder"
            )
    return jax.tree.unflatten(structure, [_place(leaves[p], like) for p, like in makes.items()])


def _place(leaf: np.ndarray, like: Any) -> jax.Array | np.ndarray:
    """The leaf where `like` is: on its devices, on JAX's own choice, or in host memory."""
    if isinstance(like, np.ndarray):
        return leaf
    return jax.device_put(leaf, getattr(like, "sharding", None))


def _in_short(damaged: dict[int, Exception]) -> str:
    return "; ".join(
        f"round {t} ({textwrap.shorten(str(error), 160) or type(error).__name__})"
        for t, error in damaged.items()
    )


def _is_not_of_orbax(record: logging.LogRecord) -> bool:
    """Whether a line of the log is another's: what orbax has to say, we raise in one sentence."""
    return "orbax" not in Path(record.pathname).parts


def _system_code(error: BaseException) -> int | None:
    """The system's number of what went wrong, raised by Python or written by tensorstore."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return int(code[1]) if code else None


def _check_readable(error: Exception, directory: Any) -> None:
    """Raises OSError if the system refused to read what may be intact: that is no damage."""
    code = _system_code(error)
    if code is not None and code != errno.ENOENT:
        raise OSError(
            f"a checkpoint in {directory} could not be read: {os.strerror(code)}; put this right, "
            "and then resume"
        ) from error


@contextlib.contextmanager
def _one_sentence(directory: Any) -> Iterator[None]:
    """Turns what went wrong in writing, often in a thread and a round ago, into one OSError."""
    try:
        yield
    except Exception as error:
        code = _system_code(error)
        cause = os.strerror(code) if code else textwrap.shorten(str(error), 200)
        raise OSError(
            f"a checkpoint could not be written to {directory}: {cause}; earlier ones are intact, "
            "so put this right and resume the run from there"
        ) from error
