"""What makes a run this run and no other: kept in settings.json, compared when it is resumed.

Names and values that JSON can hold: numbers as they are, the rest as a checksum. Equal in every
process and on every computer that has the same versions.
"""

import dataclasses
import hashlib
import json
import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import jax
import numpy as np

from jaxfed import algorithm as contract
from jaxfed import values
from jaxfed.algorithm import Algorithm, Cohort, Data
from jaxfed.data.federated import Federated
from jaxfed.simulation import account
from jaxfed.simulation.experiment import Experiment

SAMPLE = 2**28  # bytes of an array; of a larger one, both ends and blocks between count
PACKAGES = ("jaxfed", "jax", "flax", "optax", "numpy")


def identity(e: Experiment, settings: Mapping[str, Any], config: str | None) -> dict[str, dict]:
    """{section: {name: value}} of an experiment, and of the config and settings that made it.

    The number of rounds is no part of it, as a run may be extended. Without a config, there are no
    settings.
    """
    names = ("cohort", "seed", "evaluate_every", "evaluate_batch")
    made = {} if config is None else {"settings": dict(settings)}
    found = {
        "versions": versions(),
        **made,
        "experiment": {**{n: getattr(e, n) for n in names}, "clients": e.data.clients},
        "hyperparameters": dict(hyperparameters(e.algorithm)),
        "checksums": {
            **({} if config is None else {"config": _checksum(config.encode())}),
            "data": data_checksum(e.data),
            "algorithm": algorithm_checksum(e),
            "participation": e.participation
            and draws_checksum(e.participation, e.data.train.count, e.cohort),
        },
    }
    return json.loads(json.dumps(found, default=str), parse_constant=lambda _: None)


def versions() -> dict[str, str]:
    python = ".".join(platform.python_version_tuple()[:2])
    return {**{n: metadata.version(n) for n in PACKAGES}, "python": python}


# ---------------------------------------------------------------------- changes


def changes(before: Mapping[str, Any], now: Mapping[str, dict]) -> dict[str, list]:
    """{name: [old, new]} of all that differs; what only one of them has is not compared.

    Hyperparameters and the traced algorithm follow from config and settings, so they are named
    only where those are as they were.
    """
    found: dict[str, list] = {}
    for section in ("settings", "experiment", "checksums"):
        found |= _differences(before.get(section), now.get(section))
    found.pop("rounds", None)
    traced = found.pop("algorithm", None)
    if versions := _differences(before.get("versions"), now["versions"]):
        found["versions"] = [
            ", ".join(f"{n} {v[i]}" for n, v in versions.items()) for i in range(2)
        ]
    if not {"versions", "config", *now.get("settings", {})} & set(found):
        found |= _differences(before.get("hyperparameters"), now["hyperparameters"], whole=True)
    return {"algorithm": traced} if traced and not found else found


def _differences(before: Any, now: Any, *, whole: bool = False) -> dict[str, list]:
    """{name: [old, new]} where they differ; `whole` counts what only one of them has."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return {}
    names = [*before, *(n for n in now if n not in before)]
    return {
        n: [before.get(n), now.get(n)]
        for n in names
        if json.dumps(before.get(n)) != json.dumps(now.get(n))
        and (whole or (n in before and n in now))
    }


def check_allowed(found: Mapping[str, list], allow: Sequence[str]) -> None:
    """ValueError, naming what changed and the remedy, unless all of it is allowed by name.

    A hyperparameter `client_optimizer.learning_rate` is allowed by its last word, too.
    """
    values.kind("allow", allow, list | tuple | set, 'several names, such as ("seed",)')
    allowed = {name.replace("-", "_") for name in allow}
    refused = {n: v for n, v in found.items() if not {n.replace("-", "_"), short(n)} & allowed}
    if not refused:
        return
    names = sorted({short(n) for n in refused})
    raise ValueError(
        f"the run was started with {_in_words(refused)}: resume it as it was, or allow the change "
        f"by name, `--allow {' '.join(names)}` (from Python allow={tuple(names)})"
    )


def check_same(e: Experiment, before: Mapping[str, Any]) -> None:
    """ValueError, naming what differs, if the run of these settings is not of this experiment."""
    found = changes(before, identity(e, {}, None))
    found.pop("versions", None)
    if found:
        raise ValueError(
            f"the run was started with {_in_words(found)}: give the experiment that it ran"
        )


def _in_words(found: Mapping[str, list]) -> str:
    alone = len({short(n) for n in found}) == len(found)
    return "; ".join(
        f"another {n}"
        if n in ("config", "data", "algorithm", "participation")
        else f"{short(n) if alone else n}={_shown(old)}, not {_shown(new)}"
        for n, (old, new) in found.items()
    )


def short(name: str) -> str:
    """The last word of a hyperparameter's name: "step_size" of "client_optimizer.0.step_size"."""
    words = [word for word in name.split(".") if not word.isdigit()]
    return words[-1] if words else name


def _shown(value: Any) -> str:
    return "nothing" if value is None else str(value)


# ---------------------------------------------------------------------- checksums


def _checksum(*parts: bytes | memoryview) -> str:
    made = hashlib.blake2b(digest_size=8)
    for part in parts:
        made.update(part)
    return made.hexdigest()


def data_checksum(data: Federated) -> str:
    """Of all examples and of whose they are; of a very large array, of a sample."""
    owned = [(split.examples, split.start, split.count) for split in (data.train, data.personal)]
    return _checksum(*_of_arrays((owned, data.test)))


def draws_checksum(drawn: Callable, count: np.ndarray, cohort: int) -> str:
    """Of ten draws of the first round's clients and of their shares."""
    draws = [drawn(np.random.default_rng(i), 0, count, cohort) for i in range(10)]
    return _checksum(*_of_arrays(draws))


def _of_arrays(tree: Any) -> Iterator[bytes | memoryview]:
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        yield f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode()
        yield from _sampled(array)


def _sampled(array: np.ndarray) -> Iterator[bytes | memoryview]:
    """The bytes of an array; of a large one those of 256 runs of rows, both ends among them."""
    if array.nbytes <= SAMPLE:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        return
    rows = max(1, len(array) * SAMPLE // array.nbytes // 256)
    for begin in np.linspace(0, len(array) - rows, 256).astype(int):
        yield np.ascontiguousarray(array[begin : begin + rows]).reshape(-1).view(np.uint8).data


def algorithm_checksum(e: Experiment) -> str:
    """Of one round as JAX traces it: of every operation, shape and constant.

    It does not depend on the devices, nor on how many clients run at once.
    """

    def verb(client, base, message, cohort):
        noted = partial(account.noted, client)
        return jax.vmap(noted, in_axes=(None, None, contract.axes(cohort)))(base, message, cohort)

    def one_round(server, cohort):
        return account.run_round(e.algorithm, server, cohort, verb)

    key = jax.eval_shape(lambda: jax.random.key(0))
    server = jax.eval_shape(e.algorithm.init, key)
    traced = jax.make_jaxpr(one_round)(server, _cohort(e, server, key))
    text = re.sub(r" at 0x[0-9a-f]+", "", str(traced.jaxpr))
    return _checksum(text.encode(), *_of_arrays(traced.consts))


def _cohort(e: Experiment, server: Any, key: Any) -> Cohort:
    """A cohort of this experiment, as shapes."""
    state = jax.eval_shape(e.algorithm.init_client, server, key)
    train, many = e.data.train, lambda x: jax.ShapeDtypeStruct((e.cohort, *x.shape), x.dtype)
    whole, real = jax.ShapeDtypeStruct((), np.int32), jax.ShapeDtypeStruct((), np.float32)
    examples = {  # in JAX's numbers, of what the host has in 64 bits
        name: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype))
        for name, x in train.examples.items()
    }
    return Cohort(
        state=jax.tree.map(many, state),
        data=Data(examples, many(whole), train.most),
        count=many(whole),
        weight=many(real),
        key=many(key),
        id=many(whole),
        round=whole,
        round_key=key,
    )


# ---------------------------------------------------------------------- hyperparameters


def hyperparameters(algorithm: Algorithm) -> Iterator[tuple[str, Any]]:
    """(name, value) of the numbers, words and flags that the algorithm's functions close over."""
    seen: set[int] = set()
    for function in (algorithm.run_round, algorithm.init, algorithm.init_client, algorithm.deploy):
        for name, value in _within("", function, seen):
            step = name.endswith("step_size")  # as optax calls a rate, with its sign turned
            yield (name[:-9] + "learning_rate", -value) if step else (name, value)


def _within(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool | int | float | str):
        yield name, value
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    for part, inner in _parts(value):
        yield from _within(f"{name}.{part}".strip("."), inner, seen)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The named parts of a closure, a partial, a NamedTuple, a dataclass or a collection."""
    if isinstance(value, partial):
        yield "", value.func
        yield from ((str(i), inner) for i, inner in enumerate(value.args))
        yield from value.keywords.items()
    elif callable(value) and getattr(value, "__closure__", None):
        for name, cell in sorted(zip(value.__code__.co_freevars, value.__closure__, strict=True)):
            yield name, cell.cell_contents
    elif hasattr(value, "_fields"):
        yield from zip(value._fields, value, strict=True)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f.name, getattr(value, f.name, None)) for f in dataclasses.fields(value))
    elif isinstance(value, tuple | list):
        yield from ((str(i), inner) for i, inner in enumerate(value))
    elif isinstance(value, dict):
        yield from ((str(n), inner) for n, inner in value.items())
