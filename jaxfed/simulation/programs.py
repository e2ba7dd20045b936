"""Compiled programs that runs share if they differ in numbers only.

A function of a run closes over its settings: a learning rate is a number written out in its trace,
and so is the seed. Here such numbers, and the arrays that a function closes over, become arguments
of the compiled program, so that one program serves all runs whose traces are otherwise equal.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxfed.algorithm import PyTree
from jaxfed.data.federated import Size
from jaxfed.simulation import engine

# Equations whose inner functions are traced again, with arguments in the place of numbers
OPEN = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "scan", "while", "cond")
FORMULAS = (0.0, 0.5, 1.0, 2.0)  # with either sign: seldom a setting
NUMBER = re.compile(r"(?<= )-?\d[\d.]*(e[-+]?\d+)?(?=:)")  # in the text of a trace


class Trace(NamedTuple):
    """A function as JAX traces it for arguments of certain shapes."""

    closed: core.ClosedJaxpr
    out: Any  # the structure of its results
    text: str  # equal for traces that differ in numbers only
    literals: list[core.Literal]  # the numbers in it, in the order of their first use
    settings: frozenset[int]  # which of them look like settings
    movable: frozenset[int]  # which of them can be arguments


class Program(NamedTuple):
    """A jitted function of (numbers, constants, arguments)."""

    values: list[Any]  # the literals of the trace that it was made of
    numbers: frozenset[int]  # which of them are arguments
    out: Any  # the structure of its results
    function: Callable  # not jitted
    step: jax.stages.Wrapped


@dataclasses.dataclass(frozen=True)
class Programs:
    """Creates jitted functions as engine.compiled does, which share what can be shared."""

    size: Size  # which the data of all these runs fit in

    made: dict[tuple, list[Program]] = dataclasses.field(default_factory=dict)
    at_once: dict[tuple, Any] = dataclasses.field(default_factory=dict)  # see together

    def compiled(
        self, function: Callable, machine: engine.Machine, donate: tuple[int, ...] = ()
    ) -> Any:
        """`function` for this machine; see engine.compiled."""
        return Shared(function, machine, donate, self, {})

    def program(self, trace: Trace, machine: engine.Machine, donate: tuple[int, ...]) -> Program:
        """The program of another trace that differs in its arguments only, or a new one."""
        key = (trace.text, machine, donate)
        values = [literal.val for literal in trace.literals]
        same = self.made.setdefault(key, [])
        numbers = trace.settings
        for program in reversed(same):  # the last has the most numbers as arguments
            differ = {i for i, v in enumerate(program.values) if not _equal(v, values[i])}
            if differ <= program.numbers:
                return program
            numbers |= differ & trace.movable
        step = partial(_run, trace, sorted(numbers))
        jitted = engine.compiled(step, machine, tuple(2 + i for i in donate))
        same.append(Program(values, numbers, trace.out, step, jitted))
        return same[-1]


class Called(NamedTuple):
    """A program with the numbers and constants of one function: called as that would be."""

    step: Any  # jitted, lowered or compiled
    numbers: list[np.ndarray]
    constants: list[Any]

    def __call__(self, *arguments: PyTree) -> PyTree:
        return self.step(self.numbers, self.constants, *arguments)

    def lower(self, *arguments: PyTree) -> "Called":
        return self._replace(step=self.step.lower(self.numbers, self.constants, *arguments))

    def compile(self) -> "Called":
        return self._replace(step=self.step.compile())

    def memory_analysis(self) -> Any:
        return self.step.memory_analysis()

    def as_text(self) -> str:
        return self.step.as_text()


class Shared(NamedTuple):
    """A function that runs by shared programs, one for the shapes of its arguments."""

    function: Callable
    machine: engine.Machine
    donate: tuple[int, ...]
    programs: Programs
    known: dict[Any, tuple[Trace, Called]]

    def __call__(self, *arguments: PyTree) -> PyTree:
        return self._known(arguments)[1](*arguments)

    def lower(self, *arguments: PyTree) -> Called:
        return self._known(arguments)[1].lower(*arguments)

    def latest(self, *arguments: PyTree) -> tuple[Program, Called]:
        """The program of these arguments that most functions share by now, and its call."""
        return self._of(self._known(arguments)[0])

    def _known(self, arguments: tuple) -> tuple[Trace, Called]:
        leaves, structure = jax.tree.flatten(arguments)
        shapes = structure, tuple((np.shape(x), jnp.result_type(x)) for x in leaves)
        if shapes not in self.known:
            trace = traced(self.function, *arguments)
            self.known[shapes] = trace, self._of(trace)[1]
        return self.known[shapes]

    def _of(self, trace: Trace) -> tuple[Program, Called]:
        program = self.programs.program(trace, self.machine, self.donate)
        values = [trace.literals[i] for i in sorted(program.numbers)]
        numbers = [np.asarray(each.val, _dtype(each)) for each in values]
        with jax.ensure_compile_time_eval():  # also while a caller is traced
            constants = engine.place(list(trace.closed.consts), self.machine)
        return program, Called(program.step, numbers, constants)


# ---------------------------------------------------------------------- traces


def traced(function: Callable, *arguments: PyTree) -> Trace:
    """The trace of function(*arguments)."""
    closed, out = jax.make_jaxpr(function, return_shape=True)(*arguments)
    literals: dict[int, core.Literal] = {}
    seeds: set[int] = set()
    movable: set[int] = set()
    for literal, seed, reached in _literals(closed.jaxpr, True):
        literals.setdefault(id(literal), literal)
        if seed:
            seeds.add(id(literal))
        if reached:
            movable.add(id(literal))
    numbers = list(literals)
    may = frozenset(i for i, n in enumerate(numbers) if n in movable)
    kinds = [str(getattr(x, "aval", np.asarray(x))) for x in closed.consts]
    text = re.sub(r" at 0x[0-9a-f]+", "", str(closed.jaxpr))
    text = NUMBER.sub("#", re.sub(r"\s+", " ", text))  # longer numbers break lines
    return Trace(
        closed,
        jax.tree.structure(out),
        f"{text} {kinds} {jax.tree.structure(out)}",
        list(literals.values()),
        frozenset(i for i in may if numbers[i] in seeds or _is_setting(literals[numbers[i]])),
        may,
    )


def _literals(jaxpr: core.Jaxpr, reached: bool) -> Iterator[tuple[core.Literal, bool, bool]]:
    """(literal, whether it is a seed, whether it can be an argument) of each in a jaxpr."""
    for eqn in jaxpr.eqns:
        for x in eqn.invars:
            if isinstance(x, core.Literal):
                yield x, eqn.primitive.name == "random_seed", reached
        for inner in _inside(eqn):
            yield from _literals(inner, reached and eqn.primitive.name in OPEN)
    yield from ((x, False, reached) for x in jaxpr.outvars if isinstance(x, core.Literal))


def _inside(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The jaxprs among an equation's parameters."""
    for value in eqn.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, core.Jaxpr):
                yield each


def _is_setting(literal: core.Literal) -> bool:
    value = literal.val
    real = jnp.issubdtype(_dtype(literal), jnp.floating)
    return real and bool(np.isfinite(value)) and abs(float(value)) not in FORMULAS


def _dtype(literal: core.Literal) -> Any:
    kind: Any = literal.aval
    return kind.dtype


def _equal(x: Any, y: Any) -> bool:
    return bool(x == y or (x != x and y != y))


# ---------------------------------------------------------------------- a trace, run again


def _run(
    trace: Trace, places: Sequence[int], numbers: Sequence, constants: Sequence, *arguments: PyTree
) -> PyTree:
    """The traced function's results, with `numbers` as the literals at these places."""
    given = {id(trace.literals[i]): x for i, x in zip(places, numbers, strict=True)}
    leaves = jax.tree.leaves(arguments)
    return jax.tree.unflatten(trace.out, _evaluated(given, trace.closed.jaxpr, constants, *leaves))


def _evaluated(given: dict, jaxpr: core.Jaxpr, constants: Sequence, *arguments: Any) -> list:
    """The results of a jaxpr, with what is `given` in place of its literals {id: number}."""
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))

    def read(x):
        return given.get(id(x), x.val) if isinstance(x, core.Literal) else known[x]

    for eqn in jaxpr.eqns:
        mine = {n: x for inner in _inside(eqn) for n, x in _within(inner, given).items()}
        results = (_opened if mine else _as_it_was)(eqn, mine, *map(read, eqn.invars))
        known |= zip(eqn.outvars, results, strict=True)
    return [read(x) for x in jaxpr.outvars]


def _within(jaxpr: core.Jaxpr, given: dict) -> dict:
    """Those that are given of a jaxpr's literals."""
    if not given:
        return {}
    return {id(x): given[id(x)] for x, _, _ in _literals(jaxpr, True) if id(x) in given}


def _as_it_was(eqn: core.JaxprEqn, given: dict, *values: Any) -> Sequence:
    with eqn.ctx.manager:
        results = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return results if eqn.primitive.multiple_results else [results]


def _opened(eqn: core.JaxprEqn, given: dict, *values: Any) -> Sequence:
    """The results of one of the equations in OPEN."""
    p, again = eqn.params, partial(_inner, given)
    match eqn.primitive.name:
        case "scan":
            return _scanned(p, again(p["jaxpr"]), values)
        case "while":
            return _looped(eqn, given, values)
        case "cond":
            return jax.lax.switch(values[0], list(map(again, p["branches"])), *values[1:])
        case _:
            return again(p["call_jaxpr"] if "call_jaxpr" in p else p["jaxpr"])(*values)


def _inner(given: dict, closed: core.ClosedJaxpr) -> Callable:
    """The function that an inner jaxpr is."""
    return partial(_evaluated, given, closed.jaxpr, closed.consts)


def _scanned(p: dict, body: Callable, values: Sequence) -> Sequence:
    if "ft_in" in p:  # from JAX 0.12 on
        fixed, carries = (len(list(part)) for part in p["ft_in"].unpack()[:2])
    else:
        fixed, carries = p["num_consts"], p["num_carry"]

    def step(carry, x):
        results = body(*values[:fixed], *carry, *x)
        return results[:carries], results[carries:]

    first, rows = list(values[fixed : fixed + carries]), list(values[fixed + carries :])
    last, stacked = jax.lax.scan(step, first, rows, p["length"], p["reverse"], p["unroll"])
    return [*last, *stacked]


def _looped(eqn: core.JaxprEqn, given: dict, values: Sequence) -> Sequence:
    """The results of a loop, whose condition may be an array: lax.while_loop takes no such one."""
    p, first = eqn.params, eqn.params["cond_nconsts"]
    goes_on, asked = _with_arguments(p["cond_jaxpr"], given)
    body, taken = _with_arguments(p["body_jaxpr"], given)
    settings = {
        "cond_jaxpr": goes_on,
        "cond_nconsts": len(asked) + first,
        "body_jaxpr": body,
        "body_nconsts": len(taken) + p["body_nconsts"],
    }
    return eqn.primitive.bind(*asked, *values[:first], *taken, *values[first:], **settings)


def _with_arguments(closed: core.ClosedJaxpr, given: dict) -> tuple[core.ClosedJaxpr, list]:
    """(a jaxpr that takes the numbers given for its literals first, these numbers)."""
    mine = _within(closed.jaxpr, given)

    def function(numbers, *values):
        now = dict(zip(mine, numbers, strict=True))
        return _evaluated(now, closed.jaxpr, closed.consts, *values)

    kinds = [jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=x.weak_type) for x in closed.in_avals]
    return jax.make_jaxpr(function)(list(mine.values()), *kinds), list(mine.values())
