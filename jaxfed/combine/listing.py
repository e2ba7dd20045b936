"""Accumulation kept as a list: W + s A_1 B_1 + ... + s A_m B_m + s A B, with W never touched.

The authors of FedLoRU keep a LLaMA so: the frozen model stays as it is shared with other tasks, and
the list is an adapter of rank m r. It computes what `accumulate` with `reinit` computes.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxfed import lowrank, values
from jaxfed.algorithm import Algorithm, PyTree
from jaxfed.combine.merging import accumulate
from jaxfed.lowrank import quantised
from jaxfed.lowrank.factors import Factors, Theta
from jaxfed.tasks.task import Task, through

LIST = "list/"  # base["list/PATH/a"] and b hold the list of the weight at PATH


def accumulate_list(
    make: Callable[[Task], Algorithm],
    task: Task,
    *,
    every: int | Sequence[int],
    merges: int,
) -> Algorithm:
    """`make(task)` whose factors join a list every `every` rounds and start anew, as by `reinit`.

    `make` is a function such as `lambda task: fedavg(task, work, client_optimizer=sgd)`. The list
    lies in the base and has room for so many merges; one more folds the oldest into W. Clients
    compute with the list beside their factors, at a rank of (merges + 1) r. What is deployed has
    the list folded in; beside quantised weights, which nothing is folded into, it stays in the
    factors, and an experiment in which it would overflow is refused.
    """
    values.function("make", make, "a function of a task, such as lambda task: fedavg(task, ...)")
    values.whole("merges", merges, 1)

    def init(key):
        base, theta = task.init(key)
        return {**base, **_listed(_empty(theta.factors, merges))}, theta

    def with_list(base, theta):
        weights, chain = parted(base, theta.factors)
        return weights, lowrank.joined(theta, chain)

    inner = make(through(task, with_list)._replace(init=init))
    fed = accumulate(inner, every=every, restart=append)

    def deploy(server, state):
        base, theta = fed.deploy(server, state)
        weights, chain = parted(base, theta.factors)
        beside = {p: f for p, f in chain.items() if quantised.is_quantised(weights.get(p))}
        folded = {p: f for p, f in chain.items() if p not in beside}
        return lowrank.merge(weights, Theta({}, folded)), lowrank.joined(theta, beside)

    base, theta = jax.eval_shape(task.init, jax.random.key(0))
    is_fixed = any(quantised.is_quantised(base[p]) for p in theta.factors if p in base)
    most = _rounds_of(every, merges) if is_fixed else None
    return fed._replace(task=task, deploy=deploy, rounds=most)


def _rounds_of(every: int | Sequence[int], merges: int) -> int | None:
    """The most rounds with so many merges: the next one is due after them; None: any number."""
    if not isinstance(every, Sequence):
        return every * (merges + 1)
    return sorted(every)[merges] if merges < len(every) else None


def append(base: PyTree, theta: Theta, start: Theta, key: jax.Array) -> tuple[PyTree, Theta]:
    """A restart: put the factors at the head of the list and draw new ones, down random, up zero.

    The function is unchanged. What falls off the end of a full list is folded into W, unless that
    is quantised: `accumulate_list` refuses a run that would fill such a list.
    """
    weights, chain = parted(base, theta.factors)
    longer = {p: lowrank.concat(f, chain[p]) for p, f in theta.factors.items()}
    kept = {p: _components(f, 0, chain[p].rank) for p, f in longer.items()}
    lost = {
        p: _components(f, chain[p].rank, f.rank)
        for p, f in longer.items()
        if not quantised.is_quantised(weights.get(p))
    }
    weights = lowrank.merge(weights, Theta({}, lost))
    return {**weights, **_listed(kept)}, lowrank.fresh(theta, key)


def parted(
    base: Mapping[str, jax.Array], factors: Mapping[str, Factors]
) -> tuple[dict[str, jax.Array], dict[str, Factors]]:
    """(the weights, {path: the list as one adapter of rank m r}) of a base with lists."""
    weights = {p: w for p, w in base.items() if not p.startswith(LIST)}
    chain = {
        p: Factors(base[f"{LIST}{p}/a"], base[f"{LIST}{p}/b"], f.scale, f.stack)
        for p, f in factors.items()
    }
    return weights, chain


def _listed(chain: Mapping[str, Factors]) -> dict[str, Any]:
    return {f"{LIST}{p}/{side}": getattr(f, side) for p, f in chain.items() for side in "ab"}


def _empty(factors: Mapping[str, Factors], merges: int) -> dict[str, Factors]:
    """Lists of zeros."""

    def wide(f: Factors) -> Factors:
        width = merges * f.rank
        a = jnp.zeros((*f.a.shape[:-1], width), f.a.dtype)
        return dataclasses.replace(f, a=a, b=jnp.zeros((width, *f.b.shape[1:]), f.b.dtype))

    return {p: lowrank.each_layer(wide, f) for p, f in factors.items()}


def _components(f: Factors, begin: int, end: int) -> Factors:
    def one(f: Factors) -> Factors:
        return dataclasses.replace(f, a=f.a[..., begin:end], b=f.b[begin:end])

    return lowrank.each_layer(one, f)
