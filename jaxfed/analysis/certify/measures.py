"""Numbers that tell an algorithm's kind: its mean, its gauge, its merges, its fixed point."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed.analysis.certify.line import Line
from jaxfed.analysis.certify.subject import (
    Round,
    Subject,
    is_whole,
    model,
    theta_of,
    tolerance,
)
from jaxfed.analysis.certify.world import CLIENTS, COUNT, QUADRATICS, WORLD, optimum
from jaxfed.combine.measure import after_training
from jaxfed.lowrank.factors import Factors, product
from jaxfed.simulation import loop

# ---------------------------------------------------------------------- the mean of the products


class Step(NamedTuple):
    """A server's step in one round at one path: products [in, out] on the host."""

    scale: float
    base: np.ndarray  # W as clients had it
    taken: np.ndarray  # what W took in this round
    start: np.ndarray  # s A B as clients received it
    end: np.ndarray  # s A' B'
    clients: np.ndarray  # s A_k B_k [K, in, out]
    separate: np.ndarray  # s times the product of the means of A_k and B_k
    weight: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean of the clients' products."""
        return np.tensordot(self.weight, self.clients, axes=1)


def _steps(r: Round) -> dict[str, Step]:
    """{path: the server's step} if clients upload a change of factors in one exchange; else {}."""
    if len(r.exchanges) != 1:
        return {}
    base, message, upload, _ = r.exchanges[0]
    before, change, after = (theta_of(x) for x in (message, upload, r.after))
    if before is None or change is None or after is None or not before.factors:
        return {}
    w = getattr(base, "base", base)
    if not isinstance(w, Mapping) or set(before.factors) != set(change.factors):
        return {}
    trained, found = after_training(before, change), {}
    for p, f in before.factors.items():
        mean = jax.tree.map(lambda x: jnp.tensordot(r.weight, x, axes=1), trained[p])
        products = jax.vmap(product)(trained[p]), product(mean)
        parts = (w[p], r.after.base[p] - w[p], product(f), product(after.factors[p]), *products)
        arrays = [np.asarray(x) for x in (*parts, r.weight)]
        found[p] = Step._make((f.scale, *arrays))
    return found


def _size(parts: Sequence[np.ndarray]) -> float:
    return float(np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in parts)))


def products(s: Subject) -> Line:
    """The model's change beside the mean of the clients' products."""
    name = "mean of the products"
    if not s.algorithm().sends_change:
        return Line(name, None, "not measured", "clients upload no change of what they received")
    steps = [found for r in s.looped.rounds if (found := list(_steps(r).values()))]
    if not steps:
        return Line(name, None, "not measured", "no exchange has factors both ways")
    exact, apart, first, taken, first_rest = 0.0, 0.0, 0.0, 0.0, 0.0
    for found in steps:
        size = _size([x.mean - x.start for x in found]) or 1.0
        ends = [x.taken + x.end for x in found]
        rows = list(zip(found, ends, strict=True))
        exact = max(exact, _size([end - x.mean for x, end in rows]) / size)
        apart = max(apart, _size([x.separate - x.mean for x in found]) / size)
        first = max(first, _size([end - x.clients[0] for x, end in rows]) / size)
        first_rest = max(first_rest, _size([end - x.separate for x, end in rows]) / size)
        taken = max(taken, _size([x.taken for x in found]) / size)
    measured = f"the model misses it by {exact:.1e} of the change"
    if exact <= tolerance():
        return Line(name, True, measured, "exact: the model changes by the mean of the products")
    if first <= tolerance():
        return Line(name, False, measured, "only the first client's factors are averaged")
    if taken > tolerance():
        return Line(name, False, measured, f"W does not take the residual: {_instead(steps)}")
    if first_rest <= tolerance():
        return Line(name, None, measured, "A and B are averaged apart: this is the discrepancy")
    meaning = f"another step than the means of A and B, whose discrepancy is {apart:.1e}"
    return Line(name, None, measured, meaning)


def _instead(steps: Sequence[Sequence[Step]]) -> str:
    """In words, what W takes in place of the mean of the products less s A' B'."""
    candidates: dict[str, Callable[[Step], np.ndarray]] = {
        "the residual": lambda x: x.mean - x.end,
        "the transposed residual": lambda x: (x.mean - x.end).T,
        "the first client's residual": lambda x: x.clients[0] - x.end,
        "the residual of an unweighted mean": lambda x: x.clients.mean(axis=0) - x.end,
    }
    flat = [x for found in steps for x in found]
    taken = np.concatenate([x.taken.ravel() for x in flat])
    for words, residual in candidates.items():
        if any(residual(x).shape != x.taken.shape for x in flat):
            continue
        wanted = np.concatenate([residual(x).ravel() for x in flat])
        times = float(taken @ wanted / max(wanted @ wanted, 1e-30))
        if _size([taken - times * wanted]) <= 1e-2 * _size([taken]):
            forgotten = abs(times * flat[0].scale - 1) < 1e-2 and abs(times - 1) > 1e-2
            return f"it takes {times:.3g} times {words}" + (
                f", alpha / r = {flat[0].scale:.3g} is forgotten" if forgotten else ""
            )
    return "it takes something else"


# ---------------------------------------------------------------------- gauge


def gauge(s: Subject) -> Line:
    """How far the model moves elsewhere if the same product is written as (A R) (R^-1 B)."""
    name, begin = "gauge (A R, R^-1 B)", s.on_engine.server
    if not any(map(is_whole, _factors(begin))):
        return Line(name, None, "no factors", "nothing to write otherwise")
    start, end = (_weights(server) for server in (begin, s.engined[0]))
    moved = _distance(end, start) or 1.0
    far = []
    for turn in (_rotation, _stretch):
        other = jax.tree.map(lambda f, t=turn: _turned(f, t), begin, is_leaf=_is_factors)
        far.append(_distance(_weights(s.from_server(other)[0]), end) / moved)
    measured = f"{far[0]:.1e} of the model's way for a rotation R, {far[1]:.1e} for a stretch"
    if far[1] <= tolerance():
        return Line(name, None, measured, "only the product counts")
    if far[0] <= tolerance():
        return Line(name, None, measured, "rotations are free; the balance of A and B counts")
    return Line(name, None, measured, "which factors write the product counts, not it alone")


def _is_factors(tree: Any) -> bool:
    return isinstance(tree, Factors)


def _factors(tree: Any) -> list[Factors]:
    return [f for f in jax.tree.leaves(tree, is_leaf=_is_factors) if _is_factors(f)]


def _turned(f: Any, turn: Callable[[int], np.ndarray]) -> Any:
    if not is_whole(f):
        return f
    r = turn(f.rank)
    a, b = f.a @ jnp.asarray(r, f.a.dtype), jnp.asarray(np.linalg.inv(r), f.b.dtype) @ f.b
    return dataclasses.replace(f, a=a, b=b)


def _rotation(rank: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(rank).normal(size=(rank, rank)))[0]


def _stretch(rank: int) -> np.ndarray:
    return _rotation(rank) @ np.diag(np.where(np.arange(rank) % 2, 0.5, 2.0))


def _weights(server: Any) -> Any:
    return model(server.base, server.theta)


def _distance(x: Any, y: Any) -> float:
    pairs = zip(jax.tree.leaves(x), jax.tree.leaves(y), strict=True)
    return _size([np.asarray(a, np.float64) - np.asarray(b, np.float64) for a, b in pairs])


# ---------------------------------------------------------------------- merges


def merges(s: Subject) -> Line:
    """Whether clients start a round with the model that the server ended the last one with."""
    name, far, times = "function kept at a merge", 0.0, 0
    for before, now in zip(s.looped.rounds, s.looped.rounds[1:], strict=False):
        if not now.exchanges:
            continue
        base, message = now.exchanges[0][:2]
        base = getattr(base, "base", base)
        whole = theta_of(message)
        if whole is None or not isinstance(base, Mapping) or set(whole.factors) - set(base):
            continue
        folded = [base[p] - before.after.base[p] for p in whole.factors]
        if not (size := _size(list(map(np.asarray, folded)))):
            continue
        times += 1
        ended = before.after.theta
        if isinstance(message, Mapping):  # clients have the other weights
            ended = ended._replace(full={})
        kept = model(base, whole), model(before.after.base, ended)
        far = max(far, _distance(*kept) / size)
    if not times:
        return Line(name, None, "no merge between rounds", "the base is not folded into")
    measured = f"the model changes by {far:.1e} of what is folded into W, in {times} merges"
    kept_words = "the function is kept" if far <= tolerance() else "a merge changes the function"
    return Line(name, None, measured, kept_words)


# ---------------------------------------------------------------------- the fixed point

LAST = 40  # rounds, over which a fixed point must stand


def fixed_point(s: Subject) -> Line:
    """How far from the optimum the server's model ends on quadratics that disagree.

    Of clients that keep nothing it is the model that they deploy, which may have another form. Some
    algorithms weight clients by their examples, others count each once; both have an optimum.
    """
    name, rounds = "fixed point's bias", QUADRATICS.rounds
    if s.trains == "norms":
        return Line(name, None, "not measured", "with batch norms the loss is no quadratic")
    fed = s.algorithm(QUADRATICS)
    on = loop.on_engine(fed, WORLD)
    everyone = _everyone()
    server, states = jax.tree.map(jnp.copy, (on.server, on.states))

    def point(server):
        kept = jax.tree.leaves(states)
        return _point(*((server.base, server.theta) if kept else fed.deploy(server, states)))

    if point(server) is None:
        return Line(name, None, "not measured", "the server has no whole model")
    points = [point(server)]
    for first in range(0, rounds, LAST):
        now = loop.plan(WORLD, everyone, first=first)
        server, states, _ = on.step(server, states, on.examples, now)
        points.append(point(server))
    far = {words: [_size([w - target]) for w in points] for words, target in TARGETS.items()}
    words = min(far, key=lambda each: far[each][-1])
    begin, before, end = far[words][0], far[words][-2], far[words][-1]
    if not np.isfinite(end):
        return Line(name, None, f"diverges in {rounds} rounds", "the learning rate is too large")
    measured = f"{end / begin:.1e} of the way to {words} is left after {rounds} rounds"
    if end <= tolerance() * begin:
        return Line(name, None, measured, "none: it ends at this optimum")
    still = abs(end - before) <= 0.05 * end
    return Line(
        name, None, measured, "it stands still beside it" if still else "it still moves at the end"
    )


TARGETS = {
    "the optimum": optimum(COUNT / COUNT.sum()),
    "the optimum of clients counted once": optimum(np.full(CLIENTS, 1 / CLIENTS)),
}


def _everyone() -> np.ndarray:
    """Cohorts of all clients [LAST, N]."""
    return np.tile(np.arange(CLIENTS), (LAST, 1))


def _point(base: Any, theta: Any) -> Any:
    """The model [inputs + 1, outputs]; None if it is no whole one."""
    found = model(base, theta)
    if not isinstance(found, Mapping):
        return None
    kernel, bias = (found["head"][name] for name in ("kernel", "bias"))
    if kernel is None or bias is None:  # clients keep it
        return None
    return np.concatenate([np.asarray(x, np.float64) for x in (kernel, bias[None])])


MEASURES: Sequence[Callable[[Subject], Line]] = (products, gauge, merges, fixed_point)
