"""Trials at once: the round of a shared program, with the trials as the leading axis of arrays.

Whatever all trials have alike is an argument without that axis, and in memory once: examples,
constants, a base that no round changes, the number of the round. A condition on it stays one.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfed import trees
from jaxfed.algorithm import PyTree
from jaxfed.simulation import abreast, engine, pooling, tuning
from jaxfed.simulation.prepare import Prepared
from jaxfed.simulation.programs import Program

PLAN = engine.Plan(None, 0, 0, 0, 0, 0)  # axes: the round's number is that of all
FULL = PLAN._replace(round=0)  # of the structure of a plan


class Part(NamedTuple):
    """Arguments of a call: the arrays of trials, which hold all of them or, of equal ones, one."""

    structures: list[Any]  # of the arguments
    axes: tuple[int | None, ...]  # of their leaves: 0 for those of all trials
    leaves: list[Any]


class Head(NamedTuple):
    """The program of so many rounds a call, and what it takes before the server."""

    program: Program  # of one trial
    given: Part  # its numbers and constants


class Together(NamedTuple):
    """T trials between two calls: their arrays, and the programs that change them."""

    heads: dict[int, Head]  # by the rounds in a call
    body: Part  # server, states and examples
    made: dict[tuple, Any]  # the compiled programs of these and other trials
    machine: engine.Machine
    abreast: int | None  # trials that a device computes at once, the others after them; None: all
    seats: tuple[int, ...]  # which trial is at each place; one may fill up several places

    def __call__(self, plans: dict[int, engine.Plan]) -> tuple["Together", PyTree]:
        """(the trials after the rounds of their plans, metrics [T, R, ...])."""
        plan = self._plan(plans)
        head, leaves = self.heads[len(plan[0])], self.body.leaves
        moved = self._compiled(plan)(*head.given.leaves, *leaves, *plan)
        server, states, metrics = jax.tree.unflatten(head.program.out, moved)
        changed = jax.tree.leaves((server, states))
        body = self.body._replace(leaves=[*changed, *leaves[len(changed) :]])
        return self._replace(body=body), metrics

    def compile(self, plans: dict[int, engine.Plan]) -> Any:
        """The program of a call with such plans, compiled."""
        return self._compiled(self._plan(plans))

    def one(self, trial: int) -> tuple[Any, PyTree]:
        """(server, states) of a trial."""
        place, (server, states, _) = self.seats.index(trial), self.body.structures
        pairs = zip(self.body.leaves, self.body.axes, strict=True)
        own = [
            engine.trial(x, axis, place)
            for x, axis in itertools.islice(pairs, _changing(self.body))
        ]
        cut = server.num_leaves
        return jax.tree.unflatten(server, own[:cut]), jax.tree.unflatten(states, own[cut:])

    def of_only(self, trials: Sequence[int]) -> "Together":
        """These alone, in a narrower program, unless they take more than half of the places."""
        width = self._width(len(trials))
        if width >= len(self.seats):
            return self
        seats = _filled_up(trials, width)
        places = np.array([self.seats.index(i) for i in seats])

        def narrow(part: Part) -> Part:
            pairs = zip(part.leaves, part.axes, strict=True)
            leaves = [x if axis is None else self._placed(x[places], axis) for x, axis in pairs]
            return part._replace(leaves=leaves)

        heads = {n: head._replace(given=narrow(head.given)) for n, head in self.heads.items()}
        return self._replace(heads=heads, body=narrow(self.body), seats=seats)

    def _width(self, trials: int) -> int:
        """The places for so many trials: those of a program that is there, if half are taken."""
        devices = len(self.machine.devices)
        least = -(-trials // devices) * devices
        ours = [self._key(head) for head in self.heads.values()]
        widths = [key[-1] for key in self.made if key[:-1] in ours]
        return min((n for n in widths if least <= n < 2 * least), default=least)

    def _key(self, head: Head) -> tuple:
        axes = (*head.given.axes, *self.body.axes)
        return head.program.step, axes, self.machine, self.abreast

    def _placed(self, x: Any, axis: int | None) -> jax.Array:
        return jax.device_put(x, engine.trials_sharding(self.machine, axis))

    def _plan(self, plans: dict[int, engine.Plan]) -> list[jax.Array]:
        """The leaves of a plan; places of trials that have none get another's."""
        one = next(iter(plans.values()))
        all_of_them = [plans.get(i, one) for i in self.seats]
        stacked = jax.tree.map(lambda *x: np.stack(x), *all_of_them)._replace(round=one.round)
        return [self._placed(x, axis) for x, axis in zip(stacked, PLAN, strict=True)]

    def _compiled(self, plan: Sequence[jax.Array]) -> Any:
        head = self.heads[len(plan[0])]
        key = *self._key(head), len(self.seats)
        if key not in self.made:
            begin, n = len(head.given.axes), _changing(self.body)
            axes = (*head.given.axes, *self.body.axes, *PLAN)
            out_axes = (*self.body.axes[:n], *[0] * (head.program.out.num_leaves - n))
            changing = slice(begin, begin + n)
            function = _on_leaves(head, self.body)
            many = abreast.in_groups(function, axes, out_axes, changing, self.abreast)
            donated = tuple(range(begin, begin + n))
            jitted = engine.of_trials(many, self.machine, axes, out_axes, donated)
            arguments = (*head.given.leaves, *self.body.leaves, *plan)
            self.made[key] = jitted.lower(*arguments).compile()
        return self.made[key]


def _changing(body: Part) -> int:
    """How many leaves are the server's and the states', which come first."""
    return sum(s.num_leaves for s in body.structures[:2])


# ---------------------------------------------------------------------- from single runs


def why_not(p: Prepared) -> str:
    """Why a run's rounds cannot be those of a trial among others, or ""."""
    if p.population.moves:
        return "what clients keep moves to the device for each round, as --population says or must"
    if p.supply.examples is None:
        return "examples are sent to the device for each round, as --stream says or must"
    return ""


def sets(members: Sequence[Prepared]) -> list[list[int]]:
    """Which of the runs can go on together: those of one program, after equally many rounds."""
    calls: dict[int, tuple] = {}
    for i, p in enumerate(members):
        rounds = next(p.ranges(), None)
        if rounds is not None and not why_not(p):
            calls[i] = _arguments(p, rounds)
            p.step.latest(*calls[i])  # the last of them may need a program that serves all
    found: dict[Any, list[int]] = {}
    for i, p in enumerate(members):
        key: tuple = (i,)
        if i in calls:
            program, _ = p.step.latest(*calls[i])
            e = p.experiment
            key = "", p.state.done, e.rounds, e.evaluate_every, p.form, id(program.step)
        found.setdefault(key, []).append(i)
    return list(found.values())


def together(
    members: Sequence[Prepared], machine: engine.Machine, most: int | None = None
) -> Together | None:
    """These runs, of one of the `sets`, as trials on this machine; None if memory is too small.

    A device computes at most so many at once, group after group; None: all.
    Their arrays are stacked and deleted, or given to the trials. Raises NotImplementedError or
    ValueError if an operation of their rounds has no batched form.
    """
    arguments = [_arguments(p, next(p.ranges())) for p in members]
    lengths = dict.fromkeys(map(len, members[0].ranges()))  # of calls, in the order of their use
    heads = {n: _head(members, arguments, n) for n in lengths}
    body = _part([a[:-1] for a in arguments])
    body = body._replace(axes=_axes(heads, body, jax.tree.leaves(arguments[0][-1])))
    trials = Together(
        heads,
        body,
        members[0].step.programs.at_once,
        dataclasses.replace(machine, devices=machine.devices[: len(members)], chunk=None),
        most,
        (),
    )
    trials = trials._replace(seats=_filled_up(range(len(members)), trials._width(len(members))))
    shaped = _each_part(trials, partial(_shapes, trials))
    own = sum(
        trees.nbytes(x) for x, axis in zip(shaped.body.leaves, body.axes, strict=True) if axis == 0
    )
    program = shaped.compile({i: a[-1] for i, a in enumerate(arguments)})
    needed = tuning.temporary_bytes(program) + own // len(trials.machine.devices)
    if needed * trials.machine.sharing > engine.memory_limit(machine):
        return None
    for p, a in zip(members, arguments, strict=True):
        p.population.place.keep(a[-1], ())
    return _each_part(trials, partial(_stacked, trials))


def resting(p: Prepared) -> Prepared:
    """The run without the arrays that were given to trials."""
    state = p.state._replace(server=trees.shapes(p.state.server))
    return dataclasses.replace(p, state=state, supply=dataclasses.replace(p.supply, examples=()))


def _arguments(p: Prepared, rounds: range) -> tuple:
    """(server, states, examples, plan) of these rounds."""
    block = p.supply.block(rounds)
    return p.state.server, block.states, block.examples, block.plan


# ---------------------------------------------------------------------- parts of a call

# Before they are stacked, the leaves of a part are tuples of one array for each run.


def _part(each: Sequence[tuple]) -> Part:
    """The arguments of all runs, as a part whose leaves have an axis where they differ."""
    leaves = list(zip(*map(jax.tree.leaves, each), strict=True))
    same = [all(pooling.alike(column[0], x) for x in column[1:]) for column in leaves]
    axes = tuple(None if s else 0 for s in same)
    return Part(list(map(jax.tree.structure, each[0])), axes, leaves)


def _head(members: Sequence[Prepared], arguments: Sequence[tuple], rounds: int) -> Head:
    """The program that all runs share for calls of so many rounds; ValueError if they share none.

    `arguments` are those of calls of any number of rounds.
    """

    def plan(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rounds, *x.shape[1:]), _dtype(x))

    now = [(*a[:-1], jax.tree.map(plan, a[-1])) for a in arguments]
    for p, a in zip(members, now, strict=True):
        p.step.latest(*a)  # the last of them may need a program that serves all
    calls = [p.step.latest(*a) for p, a in zip(members, now, strict=True)]
    if len({id(program.step) for program, _ in calls}) > 1:
        raise ValueError(f"their programs of {rounds} rounds are not the same")
    return Head(calls[0][0], _part([(c.numbers, c.constants) for _, c in calls]))


def _each_part(trials: Together, change: Callable[[Part], list[Any]]) -> Together:
    """The trials with other leaves of each part."""
    heads = {
        n: head._replace(given=head.given._replace(leaves=change(head.given)))
        for n, head in trials.heads.items()
    }
    return trials._replace(heads=heads, body=trials.body._replace(leaves=change(trials.body)))


def _shapes(trials: Together, part: Part) -> list[Any]:
    def shape(x: Any, axis: int | None) -> jax.ShapeDtypeStruct:
        shape = x.shape if axis is None else (len(trials.seats), *x.shape)
        where = engine.trials_sharding(trials.machine, axis)
        return jax.ShapeDtypeStruct(shape, _dtype(x), sharding=where)

    return [shape(x, axis) for (x, *_), axis in zip(part.leaves, part.axes, strict=True)]


def _dtype(x: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(x.dtype)  # JAX's, of what the host has in 64 bits


def _stacked(trials: Together, part: Part) -> list[jax.Array]:
    """The leaves of trials, from those of all runs; the body's are deleted or given away."""
    leaves = []
    for column, axis in zip(part.leaves, part.axes, strict=True):
        if axis is None:
            leaves.append(trials._placed(column[0], None))
            continue
        stacked = jnp.stack([jnp.asarray(column[i]) for i in trials.seats])
        leaves.append(trials._placed(stacked, axis))
        for x in column if part is trials.body else ():
            if not x.is_deleted():  # what two share is in the column twice
                x.delete()
    return leaves


def _axes(heads: Mapping[int, Head], body: Part, plan: Sequence[Any]) -> tuple[int | None, ...]:
    """The axes of the body's leaves, also of what rounds make different; `plan` is one of any."""
    results: list[bool] = []

    @jax.custom_batching.custom_vmap
    def seen(leaves):
        return leaves

    @seen.def_vmap
    def _(size, batched, leaves):
        results[:] = batched[0]
        return leaves, batched[0]

    def shape(x: Any, axis: int | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((2, *x.shape) if axis == 0 else x.shape, _dtype(x))

    axes, n = body.axes, _changing(body)
    while True:
        before = axes
        for rounds, head in heads.items():
            one = [column[0] for column in (*head.given.leaves, *body.leaves)]
            every = (*head.given.axes, *axes)
            shapes = list(map(shape, one, every))
            of_plan = [jax.ShapeDtypeStruct((rounds, *x.shape[1:]), _dtype(x)) for x in plan]
            shapes += map(shape, of_plan, PLAN)
            function = _on_leaves(head, body)
            mapped = jax.vmap(lambda *x, f=function: seen(f(*x)), in_axes=(*every, *PLAN))
            jax.eval_shape(mapped, *shapes)
            axes = (*(0 if r else a for r, a in zip(results, axes[:n], strict=False)), *axes[n:])
        if axes == before:
            return axes


def _on_leaves(head: Head, body: Part) -> Callable:
    """A trial's function of leaves: its numbers, constants, server, states, examples and plan."""
    structures = [*head.given.structures, *body.structures, jax.tree.structure(FULL)]

    def function(*leaves: Any) -> list:
        left, arguments = list(leaves), []
        for structure in structures:
            n = structure.num_leaves
            arguments.append(jax.tree.unflatten(structure, left[:n]))
            left = left[n:]
        return jax.tree.leaves(head.program.function(*arguments))

    return function


def _filled_up(trials: Sequence[int], width: int) -> tuple[int, ...]:
    return (*trials, *[trials[0]] * (width - len(trials)))
