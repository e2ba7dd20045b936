"""Trials at once: the round of a shared program, with the trials as the leading axis of arrays.

Whatever all trials have alike is an argument without that axis, and in memory once: examples,
constants, a base that no round changes, the number of the round. A condition on it stays one.
"""

import dataclasses
from collections.abc import Callable, Sequence
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

PLAN = engine.Plan(None, 0, 0, 0, 0, 0)  # the round's number is that of all


class Together(NamedTuple):
    """T trials between two calls: their arrays, and the programs that change them."""

    program: Program  # of one trial
    made: dict[tuple, Any]  # the compiled programs of these and other trials
    machine: engine.Machine
    abreast: int | None  # trials that a device computes at once, the others after them; None: all
    structures: list[Any]  # of the program's arguments, but for the plan
    axes: tuple[int | None, ...]  # of the leaves
    leaves: list[Any]
    seats: tuple[int, ...]  # which trial is at each place; one may fill up several places

    def __call__(self, plans: dict[int, engine.Plan]) -> tuple["Together", PyTree]:
        """(the trials after the rounds of their plans, metrics [T, R, ...])."""
        plan = self._plan(plans)
        moved = self._compiled(plan)(*self.leaves, *plan)
        server, states, metrics = jax.tree.unflatten(self.program.out, moved)
        changed, at = jax.tree.leaves((server, states)), self._changing
        leaves = [*self.leaves[: at.start], *changed, *self.leaves[at.stop :]]
        return self._replace(leaves=leaves), metrics

    def compile(self, plans: dict[int, engine.Plan]) -> Any:
        """The program of a call with such plans, compiled."""
        return self._compiled(self._plan(plans))

    def one(self, trial: int) -> tuple[Any, PyTree]:
        """(server, states) of a trial."""
        place, at = self.seats.index(trial), self._changing
        own = [
            engine.trial(x, axis, place)
            for x, axis in zip(self.leaves[at], self.axes[at], strict=True)
        ]
        cut = self.structures[2].num_leaves
        return tuple(map(jax.tree.unflatten, self.structures[2:4], (own[:cut], own[cut:])))

    def of_only(self, trials: Sequence[int]) -> "Together":
        """These alone, in a narrower program, unless they take more than half of the places."""
        width = self._width(len(trials))
        if width >= len(self.seats):
            return self
        seats = _filled_up(trials, width)
        places = np.array([self.seats.index(i) for i in seats])
        leaves = [
            x if axis is None else self._placed(x[places], axis)
            for x, axis in zip(self.leaves, self.axes, strict=True)
        ]
        return self._replace(leaves=leaves, seats=seats)

    @property
    def _changing(self) -> slice:
        """Which leaves are the server's and the states'."""
        before = sum(s.num_leaves for s in self.structures[:2])
        return slice(before, before + sum(s.num_leaves for s in self.structures[2:4]))

    def _width(self, trials: int) -> int:
        """The places for so many trials: those of a program that is there, if half are taken."""
        devices = len(self.machine.devices)
        least = -(-trials // devices) * devices
        widths = [key[-2] for key in self.made if key[:-2] == self._key]
        return min((n for n in widths if least <= n < 2 * least), default=least)

    @property
    def _key(self) -> tuple:
        return self.program.step, self.axes, self.machine, self.abreast

    def _placed(self, x: Any, axis: int | None) -> jax.Array:
        return jax.device_put(x, engine.trials_sharding(self.machine, axis))

    def _plan(self, plans: dict[int, engine.Plan]) -> list[jax.Array]:
        """The leaves of a plan; places of trials that have none get another's."""
        one = next(iter(plans.values()))
        all_of_them = [plans.get(i, one) for i in self.seats]
        stacked = jax.tree.map(lambda *x: np.stack(x), *all_of_them)._replace(round=one.round)
        return [self._placed(x, axis) for x, axis in zip(stacked, PLAN, strict=True)]

    def _compiled(self, plan: Sequence[jax.Array]) -> Any:
        rounds = plan[0].shape[0]
        key = *self._key, len(self.seats), rounds
        if key not in self.made:
            plans = jax.tree.structure(PLAN._replace(round=0))
            function = partial(_on_leaves, self.program.function, [*self.structures, plans])
            at, axes = self._changing, (*self.axes, *PLAN)
            metrics = self.program.out.num_leaves - (at.stop - at.start)
            out_axes = (*self.axes[at], *[0] * metrics)
            many = abreast.in_groups(function, axes, out_axes, at, self.abreast)
            donated = tuple(range(at.start, at.stop))
            jitted = engine.of_trials(many, self.machine, axes, out_axes, donated)
            self.made[key] = jitted.lower(*self.leaves, *plan).compile()
        return self.made[key]


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
    rounds = next(members[0].ranges())
    arguments = [_arguments(p, rounds) for p in members]
    calls = [p.step.latest(*a) for p, a in zip(members, arguments, strict=True)]
    program, plans = calls[0][0], {i: a[-1] for i, a in enumerate(arguments)}
    whole = [(c.numbers, c.constants, *a) for (_, c), a in zip(calls, arguments, strict=True)]
    structures = list(map(jax.tree.structure, whole[0]))
    columns = list(zip(*map(jax.tree.leaves, [each[:-1] for each in whole]), strict=True))
    same = [all(pooling.alike(column[0], x) for x in column[1:]) for column in columns]
    axes = _axes(program, structures, jax.tree.leaves(whole[0]), [None if s else 0 for s in same])
    trials = Together(
        program,
        members[0].step.programs.at_once,
        dataclasses.replace(machine, devices=machine.devices[: len(members)], chunk=None),
        most,
        structures[:-1],
        tuple(axes),
        [],
        (),
    )
    seats = _filled_up(range(len(members)), trials._width(len(members)))
    shapes = [
        _shape(column[0], len(seats), trials.machine, axis)
        for column, axis in zip(columns, axes, strict=True)
    ]
    trials = trials._replace(seats=seats, leaves=shapes)
    own = sum(trees.nbytes(x) for x, axis in zip(shapes, axes, strict=True) if axis == 0)
    needed = tuning.temporary_bytes(trials.compile(plans)) + own // len(trials.machine.devices)
    if needed * trials.machine.sharing > engine.memory_limit(machine):
        return None
    for p, a in zip(members, arguments, strict=True):
        p.population.place.keep(a[-1], ())
    return trials._replace(leaves=_stacked(trials, columns))


def resting(p: Prepared) -> Prepared:
    """The run without the arrays that were given to trials."""
    state = p.state._replace(server=trees.shapes(p.state.server))
    return dataclasses.replace(p, state=state, supply=dataclasses.replace(p.supply, examples=()))


def _arguments(p: Prepared, rounds: range) -> tuple:
    """(server, states, examples, plan) of these rounds."""
    block = p.supply.block(rounds)
    return p.state.server, block.states, block.examples, block.plan


def _shape(x: Any, width: int, machine: engine.Machine, axis: int | None) -> jax.ShapeDtypeStruct:
    shape = x.shape if axis is None else (width, *x.shape)
    where = engine.trials_sharding(machine, axis)
    return jax.ShapeDtypeStruct(shape, _dtype(x), sharding=where)


def _dtype(x: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(x.dtype)  # JAX's, of what the host has in 64 bits


def _stacked(trials: Together, columns: Sequence[tuple]) -> list[jax.Array]:
    """The leaves of trials, from those of all; those of server, states and examples are deleted."""
    leaves, begin = [], trials._changing.start
    for n, (column, axis) in enumerate(zip(columns, trials.axes, strict=True)):
        if axis is None:
            leaves.append(trials._placed(column[0], None))
            continue
        stacked = jnp.stack([jnp.asarray(column[i]) for i in trials.seats])
        leaves.append(trials._placed(stacked, axis))
        for x in column if n >= begin else ():
            if not x.is_deleted():  # what two share is in the column twice
                x.delete()
    return leaves


def _axes(
    program: Program, structures: Sequence[Any], leaves: Sequence[Any], axes: list[int | None]
) -> list[int | None]:
    """The axes of the arguments' leaves but for the plan's, also of what rounds make different.

    `axes` are those of the arguments as they are, and `leaves` one trial's.
    """
    function = partial(_on_leaves, program.function, structures)
    begin, results = sum(s.num_leaves for s in structures[:2]), [False] * program.out.num_leaves
    n = sum(s.num_leaves for s in structures[2:4])

    @jax.custom_batching.custom_vmap
    def seen(leaves):
        return leaves

    @seen.def_vmap
    def _(size, batched, leaves):
        results[:] = batched[0]
        return leaves, batched[0]

    while True:
        every = [*axes, *PLAN]
        shapes = [
            jax.ShapeDtypeStruct((2, *x.shape) if axis == 0 else x.shape, _dtype(x))
            for x, axis in zip(leaves, every, strict=True)
        ]
        jax.eval_shape(jax.vmap(lambda *x: seen(function(*x)), in_axes=tuple(every)), *shapes)
        now = list(axes)
        now[begin : begin + n] = [
            0 if differs else axis
            for differs, axis in zip(results[:n], axes[begin : begin + n], strict=True)
        ]
        if now == axes:
            return axes
        axes = now


def _on_leaves(function: Callable, structures: Sequence[Any], *leaves: Any) -> list:
    """The leaves of a function's results, from those of its arguments."""
    left, arguments = list(leaves), []
    for structure in structures:
        n = structure.num_leaves
        arguments.append(jax.tree.unflatten(structure, left[:n]))
        left = left[n:]
    return jax.tree.leaves(function(*arguments))


def _filled_up(trials: Sequence[int], width: int) -> tuple[int, ...]:
    return (*trials, *[trials[0]] * (width - len(trials)))
