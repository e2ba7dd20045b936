"""The contract's truths: an algorithm without one of them is wrong, or runs otherwise on others."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import trees
from jaxfed.algorithm import Algorithm, PyTree, no_broadcast
from jaxfed.analysis.certify import information
from jaxfed.analysis.certify.line import Line
from jaxfed.analysis.certify.subject import Round, Subject, gap, is_finite, model, tolerance
from jaxfed.analysis.certify.world import CLIENTS, COUNT, DRAWS, ROUNDS, SETTING, WORLD
from jaxfed.lowrank.factors import Theta
from jaxfed.simulation import checkpoint, engine, loop

OTHER = 5  # whose examples stand in for another client's


def _alike(name: str, found: PyTree, expected: PyTree, how: str, meaning: str, other: str) -> Line:
    """A line that holds if two results agree up to rounding."""
    far = gap(found, expected)
    holds = far <= tolerance()
    return Line(name, holds, f"difference {far:.1e} {how}", meaning if holds else other)


def engine_is_loop(s: Subject) -> Line:
    """All clients under one vmap compute what each computes alone."""
    return _alike(
        "engine = loop over clients",
        s.engined,
        s.looped[:2],
        f"after {ROUNDS} rounds",
        "a client's work depends on its own examples and the message alone",
        "under the engine's vmap clients compute something else than alone: look for Python that "
        "depends on values, on the call, or on chance",
    )


def any_machine(s: Subject) -> Line:
    """Devices, chunks and fused rounds change nothing."""
    devices = min(3, len(engine.machine().devices))
    on = loop.on_engine(s.algorithm(), WORLD, devices=devices, chunk=1)
    found = loop.engine_rounds(on, WORLD, DRAWS, fused=True)[:2]
    some = "1 device" if devices == 1 else f"{devices} devices"
    return _alike(
        "devices and chunk",
        found,
        s.looped[:2],
        f"on {some}, one client at a time, {ROUNDS} rounds in one call",
        "any machine computes the same",
        "the result depends on the machine: look for what crosses between clients outside the verb",
    )


def one_trace(s: Subject) -> Line:
    """The round is traced once, and what it returns has the shapes that it was given."""
    states = s.engined[1]
    traces = len(s.on_engine.traces)
    kept = trees.shapes(s.engined[0]) == trees.shapes(s.on_engine.server)
    kept = kept and all(trees.shapes(x) == trees.shapes(states[0]) for x in states.values())
    holds = traces == 1 and kept
    return Line(
        "one trace",
        holds,
        f"{traces} for {ROUNDS} rounds; shapes and types {'are kept' if kept else 'change'}",
        "no round is compiled again"
        if holds
        else "each change of a shape, a type or the server's form compiles the round again",
    )


# ---------------------------------------------------------------------- one round, otherwise dealt


def _one_round(s: Subject, plan: engine.Plan) -> tuple[Any, PyTree]:
    """(server, states [N, ...]) after the first round, dealt so, by the program of `engined`."""
    on = s.on_engine
    begin = jax.tree.map(jnp.copy, (on.server, on.states))
    return on.step(*begin, on.examples, plan)[:2]


def _plan() -> engine.Plan:
    return jax.tree.map(np.copy, loop.plan(WORLD, DRAWS[:1]))


def _with_other_examples(plan: engine.Plan) -> engine.Plan:
    """The plan whose last place has another client's examples."""
    other = jax.tree.map(np.copy, plan)
    other.start[0, -1], other.count[0, -1] = WORLD.start[OTHER], COUNT[OTHER]
    return other


def order(s: Subject) -> Line:
    """Turning the cohort changes nothing but rounding."""
    plan = _plan()
    fields = ("id", "slot", "start", "count", "weight")
    turned = plan._replace(**{n: np.roll(getattr(plan, n), 1, axis=1) for n in fields})
    return _alike(
        "order of clients",
        _one_round(s, turned),
        _one_round(s, plan),
        "if the cohort stands in another order",
        "no place of the cohort is special",
        "the result depends on a client's place: the server takes one place's upload for all, or "
        "its mean forgets the weights",
    )


def inert(s: Subject) -> Line:
    """A client of weight zero changes nothing, in no bit."""
    plan = _plan()
    plan.weight[0, -1], plan.slot[0, -1] = 0, CLIENTS
    far = gap(_one_round(s, _with_other_examples(plan)), _one_round(s, plan))
    return Line(
        "weight zero is inert",
        far == 0,
        f"difference {far:.1e} if a client of weight zero has other examples",
        "who is left out, or fills up a cohort, counts for nothing"
        if far == 0
        else "the server uses uploads without cohort.weight: take means with aggregate.*",
    )


def kept_apart(s: Subject) -> Line:
    """In one exchange, a client's state follows from its own examples and the message."""
    plan = _plan()
    mine = plan.slot[0, :-1]
    pair = [
        jax.tree.map(lambda x: np.asarray(x)[mine], _one_round(s, each)[1])
        for each in (plan, _with_other_examples(plan))
    ]
    name = "states stay apart"
    if not jax.tree.leaves(pair[0]):
        return Line(name, True, "clients keep nothing", "no state can mix")
    far = gap(*pair)
    exchanges = len(s.looped.rounds[0].exchanges)
    return Line(
        name,
        far == 0 if exchanges == 1 else None,
        f"difference {far:.1e} in what others keep if one client has other examples",
        "a personal state depends on its owner's examples alone"
        if far == 0
        else "a personal state takes something from other clients: it is averaged, or the server "
        "writes it",
    )


# ---------------------------------------------------------------------- what stands still, resumes


def stands_still(s: Subject) -> Line:
    """Learning rate zero leaves the model; the given one moves it."""
    name, begin = "learning rate zero", s.on_engine.server
    moves = gap(model(*_parts(s.engined[0])), model(*_parts(begin))) > 0
    if not moves:
        why = "no round trains anything: the server does not use what clients send"
        return Line(name, False, f"the model is the same after {ROUNDS} rounds", why)
    if not s.takes_rate:
        how = "give the function an argument `learning_rate`, and it is called with 0.0"
        return Line(name, None, "not measured", how)
    try:
        still = s.algorithm(SETTING._replace(rate=0.0))
    except ValueError as error:  # such as SCAFFOLD's, which divides by it
        return Line(name, None, "not measured", f"it refuses a rate of zero: {error}")
    first = still.init
    still = still._replace(init=lambda key: _without_zeros(first(key)))
    begin = loop.start(still)[0]
    one = [1] * len(DRAWS[0])  # one client in every place, as ranks and robust means depend on all
    server = loop.rounds(still, WORLD, [one])[0]
    if not is_finite(server):
        return Line(name, None, "not finite", "the algorithm divides by its learning rate")
    far = gap(model(*_parts(server)), model(*_parts(begin)))
    return Line(
        name,
        far <= tolerance(),
        f"the model changes by {far:.1e}",
        "nothing but training moves the model"
        if far <= tolerance()
        else "something else than training moves the model: weight decay, noise, or a scale that "
        "is left out",
    )


def _without_zeros(server: Any) -> Any:
    """The server whose biases are no zeros, which would hide that they are scaled."""
    theta = server.theta
    if not isinstance(theta, Theta):
        return server
    full = jax.tree.map(lambda x: jnp.where(x == 0, 0.1, x), theta.full)
    other = theta._replace(full=full)
    return jax.tree.map(
        lambda x: other if x is theta else x, server, is_leaf=lambda x: x is theta
    )  # wherever a wrapper keeps it


def _parts(server: Any) -> tuple[PyTree, PyTree]:
    return server.base, server.theta


def resumed(on: loop.Engine, world: loop.World, draws: Any, half: int) -> tuple[Any, dict]:
    """(server, {client: state}) after the rounds `draws`, of which `half` end in a checkpoint.

    The others go on from what is read from disk.
    """
    begin = loop.engine_rounds(on, world, draws[:half])[:2]
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(checkpoint.open_folder(folder)) as kept,
    ):
        kept.save(half, begin)
        server, states = kept.load(half, begin)[0]
    clients = range(len(world.count))
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(states[i] for i in clients))
    for t in range(half, len(draws)):
        now = loop.plan(world, draws[t : t + 1], first=t)
        server, stacked, _ = on.step(server, stacked, on.examples, now)
    return server, {i: jax.tree.map(lambda x, i=i: x[i], stacked) for i in clients}


def resumes(s: Subject) -> Line:
    """From a checkpoint on disk the remaining rounds end with the same bits."""
    half = 2
    far = gap(resumed(s.on_engine, WORLD, DRAWS, half), s.engined)
    return Line(
        "resume = unbroken",
        far == 0,
        f"difference {far:.1e} after {ROUNDS} rounds, from a checkpoint of round {half}",
        "server and states hold all that a round depends on"
        if far == 0
        else "a round depends on something that is not in server, states or cohort",
    )


def deploys(s: Subject) -> Line:
    """What a client deploys is a model that the task can evaluate."""
    fed, (server, states) = s.algorithm(), s.engined
    base, theta = jax.eval_shape(fed.deploy, server, states[0])
    rows = {n: jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype) for n, x in WORLD.examples.items()}
    batch = {**rows, "mask": jax.ShapeDtypeStruct((2,), jnp.float32)}
    sums = jax.eval_shape(fed.task.evaluate, base, theta, batch) if fed.task else {}
    return Line(
        "deploys a model",
        bool(sums),
        f"evaluated to {', '.join(sums)}" if sums else "the algorithm has no task",
        "every client's model can be scored" if sums else "give Algorithm(..., task=task)",
    )


# ---------------------------------------------------------------------- bytes


def understated(rounds: Sequence[Round], draws: Any) -> list[tuple[float, int, int]]:
    """(how many times as much, bytes that an upload needs, bytes declared) where it is too few."""
    previous: dict[int, list[PyTree]] = {}
    short = []
    for each, ids in zip(rounds, draws, strict=True):
        messages = [e.message for e in each.exchanges]
        for place, client in enumerate(map(int, ids)):
            mine = [jax.tree.map(lambda x, i=place: x[i], e.upload) for e in each.exchanges]
            needed = information.least(mine, previous.get(client), messages)
            previous[client] = mine
            if (declared := int(each.sent[place])) < 0.99 * needed:
                short.append((needed / max(declared, 1), needed, declared))
    return short


def bytes_sent(s: Subject) -> Line:
    """What clients declare is no less than what their uploads say."""
    rounds = s.looped.rounds
    short = understated(rounds, DRAWS)
    name = "bytes declared = sent"
    if short:
        _, needed, declared = max(short)
        measured = f"a client declares {declared} bytes up, and its upload needs {needed}"
        return Line(name, False, measured, "Reply.sent says less than the upload holds")
    held = [sum(trees.nbytes(e.upload) // len(DRAWS[0]) for e in r.exchanges) for r in rounds]
    down = [sum(trees.nbytes(e.message) for e in r.exchanges) for r in rounds]
    up = max(int(np.max(r.sent)) for r in rounds)
    received = max(int(np.max(r.received)) for r in rounds)
    measured = f"{up} of {max(held)} bytes up, {received} of {max(down)} down"
    return Line(name, True, measured, "most of a client, beside the bytes that its arrays hold")


def silent_changes(fed: Algorithm, rounds: Sequence[Round]) -> list[int]:
    """The rounds in which the base changes, and for which no bytes are declared."""
    silent = []
    for t, each in enumerate(rounds):
        changed = gap(each.after.base, each.before.base) > 0
        if changed and not sum(fed.broadcast(each.after, later) for later in (t, t + 1)):
            silent.append(t)
    return silent


def broadcast(s: Subject) -> Line:
    """A change of the base is declared."""
    fed = s.algorithm()
    silent = silent_changes(fed, s.looped.rounds)
    name = "merges are broadcast"
    if silent:
        return Line(
            name,
            False,
            f"the base changes in round {silent[0] + 1}, and broadcast declares 0 bytes",
            "every client must receive a change of W: declare it in Algorithm.broadcast",
        )
    nothing = fed.broadcast is no_broadcast
    measured = "the base stays" if nothing else "each change of the base is declared"
    return Line(name, True, measured, "clients have the base that the server has")


TRUTHS: Sequence[Callable[[Subject], Line]] = (
    engine_is_loop,
    any_machine,
    one_trace,
    order,
    inert,
    kept_apart,
    stands_still,
    resumes,
    deploys,
    bytes_sent,
    broadcast,
)
