"""FLOPs: what a call, a client's work or a round costs, counted before anything is run.

XLA counts them in a program that is lowered and not yet compiled: 2 m n k for a product of
matrices, one for each output of an elementwise operation, one for each input of a sum. It counts
the body of a loop once. So a function is traced; what nobody needs, and what is computed twice, is
taken out, as XLA will do; what stands outside loops is counted by XLA; and each loop's body is
counted in the same way, as often as it runs.

What the count is of:

* the program of the platform at hand: convolutions of the CPU may be Winograd's (models/conv.py);
* flops as XLA has them: integers count as floats do; exp, log, tanh and their like are
  "transcendentals" and count nothing, and so does what comes from a library, such as an SVD; of
  what makes random bits, which is a loop of XLA's own, one turn in five counts;
* what the algorithm asks for: clients that a vmapped chunk carries along after their last step are
  not in it, and neither is what the engine adds to see whether a reply is finite.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import partial_eval

from jaxfed import algorithm as contract
from jaxfed.algorithm import Algorithm, Cohort, PyTree

# Ascending indices of a jaxpr's inputs -> their values, each [n, ...]; None if not all are known
Known = Callable[[Sequence[int]], list | None]


class Count(NamedTuple):
    """FLOPs, and how many loops were counted as if they ran once, their length being unknown."""

    flops: Any  # a float; or [n], one for each of n settings of what is known
    unbounded: int = 0
    turns: Any = 0  # as flops, of the longest loop whose length is no constant of the program

    def plus(self, other: "Count") -> "Count":
        turns = np.maximum(self.turns, other.turns)
        return Count(self.flops + other.flops, self.unbounded + other.unbounded, turns)

    def times(self, factor: Any) -> "Count":
        return self._replace(flops=self.flops * factor)


class Round(NamedTuple):
    """What a round costs: the client's part is that of one client."""

    client: Count
    server: Count


def counted(function: Callable, *args: PyTree) -> Count:
    """The FLOPs of function(*args); leaves of `args` are shapes, or arrays and numbers.

    Nothing is computed but the lengths of loops and which branch is taken, where they follow from
    leaves that are no shapes. Of a branch that does not, the most costly is counted; a loop whose
    length does not, such as one that runs until it has converged, is counted once and told.

    >>> squared = lambda n, x: jax.lax.fori_loop(0, n, lambda i, x: x @ x, x)
    >>> counted(squared, 3, np.ones((8, 8))).flops
    3079.0
    """
    leaves = jax.tree.leaves(args)

    def known(at: Sequence[int]) -> list | None:
        if any(isinstance(leaves[i], jax.ShapeDtypeStruct) for i in at):
            return None
        return [jnp.asarray(leaves[i])[None] for i in at]

    count = _count(jax.make_jaxpr(function)(*args), known, 1)
    return Count(float(count.flops[0]), count.unbounded)


def counted_round(
    algorithm: Algorithm, server: PyTree, cohort: Cohort, count: np.ndarray, number: np.ndarray
) -> Round:
    """The FLOPs [n] of a client with count[i] examples in round number[i] (from 0), and the rest.

    `server` and `cohort` may be shapes; the server's part is for a cohort of that size. Where a
    round has several exchanges, the client's part is their sum.
    """
    clients = []

    def recording(client: Callable, base: PyTree, message: PyTree, cohort: Cohort):
        k = jax.eval_shape(lambda c: contract.client_slice(c, 0), cohort)
        base, message, k = jax.eval_shape(lambda *x: x, base, message, k)  # not what is traced now
        traced, reply = jax.make_jaxpr(client, return_shape=True)(base, message, k)
        clients.append((traced, (base, message, k._replace(count=COUNT, round=ROUND))))
        return jax.tree.map(lambda x: jnp.zeros((*cohort.id.shape, *x.shape), x.dtype), reply)

    whole = jax.make_jaxpr(lambda s, c: algorithm.run_round(s, c, recording))(server, cohort)

    def cost(traced: core.ClosedJaxpr, arguments: PyTree) -> Count:
        values = {COUNT: np.asarray(count, np.int32), ROUND: np.asarray(number, np.int32)}
        leaves = jax.tree.leaves(arguments)

        def known(at: Sequence[int]) -> list | None:
            marks = [leaves[i] for i in at if isinstance(leaves[i], str)]
            return [values[mark] for mark in marks] if len(marks) == len(at) else None

        return _count(traced, known, len(count))

    each = [cost(*client) for client in clients]
    one = Count(0.0)
    for part in each:
        one = one.plus(part)
    return Round(one, cost(whole, (server, cohort._replace(round=ROUND))))


COUNT, ROUND = "count", "round"  # stand in a tree of shapes where these are known


# ---------------------------------------------------------------------- a traced function


def _count(closed: core.ClosedJaxpr, known: Known, n: int) -> Count:
    """The count of what is traced: XLA's, outside of loops and branches, and a rule's for each."""
    jaxpr, consts = _simplified(closed)
    shift = len(consts)

    def known_too(at: Sequence[int]) -> list | None:
        """Of the constants, which are the first inputs now, and of the others."""
        given = known([i - shift for i in at if i >= shift])
        of_consts = [np.broadcast_to(consts[i], (n, *consts[i].shape)) for i in at if i < shift]
        return None if given is None else [*of_consts, *given]

    apart = [eqn for eqn in jaxpr.eqns if _turns(eqn)]
    total = Count(np.full(n, _by_xla(jaxpr, [eqn for eqn in jaxpr.eqns if not _turns(eqn)])))
    for eqn in apart:
        rule = RULES.get(eqn.primitive.name, _unknown)
        total = total.plus(rule(eqn, lambda wanted: _values(jaxpr, known_too, wanted, n), n))
    return total


def _simplified(closed: core.ClosedJaxpr) -> tuple[core.Jaxpr, list]:
    """(jaxpr, what its first inputs are): without calls, repetitions and what nobody needs.

    XLA does the same, within each loop's body, when it compiles. To compile takes long, and in what
    is compiled, products may be hidden in a library's calls.
    """
    once = jax.make_jaxpr(lambda *inputs: _inlined(closed, inputs, {}))(*closed.in_avals)
    whole = once.jaxpr.replace(constvars=[], invars=[*once.jaxpr.constvars, *once.jaxpr.invars])
    needed, _ = partial_eval.dce_jaxpr(whole, [True] * len(whole.outvars), instantiate=True)
    return needed, once.consts


def _inlined(closed: core.ClosedJaxpr, inputs: Sequence, done: dict) -> list:
    """What a jaxpr gives, each operation on the same inputs being `done` once."""
    names = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
    values = dict(zip(names, [*closed.consts, *inputs], strict=True))

    def read(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else values[v]

    for eqn in closed.jaxpr.eqns:
        given = [read(v) for v in eqn.invars]
        if branch := _for_this_platform(eqn):
            found = _inlined(branch, given[1:], done)
        elif eqn.primitive.name in CALLS:
            # A checkpoint computes again on purpose, so it shares no results.
            found = _inlined(_inner(eqn), given, {} if eqn.primitive.name == "remat2" else done)
        else:
            found = _once(eqn, given, done)
        values |= zip(eqn.outvars, found, strict=True)
    return [read(v) for v in closed.jaxpr.outvars]


def _once(eqn: core.JaxprEqn, given: Sequence, done: dict) -> list:
    """An operation's results; those of the same one on the same inputs, if it is done."""
    key: Any = (eqn.primitive, *map(_identity, given), *eqn.params.items())
    if eqn.effects or _turns(eqn) or not _hashable(key):
        key = object()  # like no other
    if key not in done:
        results = eqn.primitive.bind(*given, **eqn.primitive.get_bind_params(eqn.params))
        found = list(results) if eqn.primitive.multiple_results else [results]
        done[key] = found, given  # as long as inputs are kept, nothing else has their ids
    return done[key][0]


def _hashable(key: Any) -> bool:
    try:
        return hash(key) is not None
    except TypeError:
        return False


def _identity(value: Any) -> Any:
    """A key that is equal for equal inputs: a tracer's id, or a literal's repr."""
    return id(value) if isinstance(value, jax.core.Tracer) or np.shape(value) else repr(value)


def _inner(eqn: core.JaxprEqn) -> core.ClosedJaxpr:
    """The one traced function among an equation's parameters, whatever its name is."""
    kinds = core.ClosedJaxpr, core.Jaxpr  # one class from JAX 0.12 on
    (inner,) = (value for value in eqn.params.values() if isinstance(value, kinds))
    return inner if isinstance(inner, core.ClosedJaxpr) else core.ClosedJaxpr(inner, ())


def _for_this_platform(eqn: core.JaxprEqn) -> core.ClosedJaxpr | None:
    """The branch for the platform at hand, of what jax.lax.platform_dependent made."""
    listed = eqn.params.get("branches_platforms") or ()
    here = [i for i, names in enumerate(listed) if names is None or jax.default_backend() in names]
    return eqn.params["branches"][here[0]] if here else None


def _turns(eqn: core.JaxprEqn) -> bool:
    """Whether there is a loop or a branch in an equation."""
    if eqn.primitive.name in ("scan", "while", "cond"):
        return True
    return any(_turns(e) for inner in core.jaxprs_in_params(eqn.params) for e in inner.eqns)


def _by_xla(jaxpr: core.Jaxpr, eqns: list[core.JaxprEqn]) -> float:
    """XLA's count of some equations of a jaxpr, as they are lowered."""
    made = {v: None for eqn in eqns for v in eqn.outvars if not isinstance(v, core.DropVar)}
    read = {v: None for eqn in eqns for v in eqn.invars if isinstance(v, core.Var)}
    inputs = [v for v in read if v not in made]
    part = jaxpr.replace(constvars=[], invars=inputs, outvars=list(made), eqns=eqns)
    function = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(part, ())))
    cost: Any = function.lower(*(v.aval for v in inputs)).cost_analysis()
    return cost.get("flops", 0.0)


def _values(jaxpr: core.Jaxpr, known: Known, wanted: list, n: int) -> list | None:
    """What these variables of a jaxpr are, each [n, ...]; None if that cannot be known before."""
    part, used = partial_eval.dce_jaxpr(jaxpr.replace(outvars=wanted), [True] * len(wanted))
    inputs = known([i for i, needed in enumerate(used) if needed])
    if inputs is None:
        return None
    function = core.jaxpr_as_fun(core.ClosedJaxpr(part, ()))
    return jax.jit(jax.vmap(lambda _, *x: function(*x)))(np.arange(n), *inputs)


# ---------------------------------------------------------------------- loops and branches
# (equation, what variables beside it are, n) -> Count


def _scan(eqn: core.JaxprEqn, values: Callable, n: int) -> Count:
    """The count of one step, times its length.

    A step's inputs are constants, carried values, and a slice of each stacked input; its outputs
    are carried values, and a slice of each stacked output. Shapes show which are slices.
    """
    body = _inner(eqn)

    def whole(variables: Sequence, avals: Sequence) -> int:
        return sum(v.aval.shape == a.shape for v, a in zip(variables, avals, strict=True))

    constants = whole(eqn.invars, body.in_avals) - whole(eqn.outvars, body.out_avals)
    return _count(body, _of_consts(eqn, values, 0, constants), n).times(eqn.params["length"])


def _cond(eqn: core.JaxprEqn, values: Callable, n: int) -> Count:
    index, *inputs = eqn.invars
    branches = [
        _count(b, lambda at: values([inputs[i] for i in at]), n) for b in eqn.params["branches"]
    ]
    flops = np.stack([b.flops for b in branches])  # [branches, n]
    known = values([index])
    taken = flops.argmax(axis=0) if known is None else np.clip(known[0], 0, len(branches) - 1)
    possible = branches if known is None else [branches[i] for i in np.unique(taken)]
    return Count(flops[taken, np.arange(n)], sum(b.unbounded for b in possible))


def _while(eqn: core.JaxprEqn, values: Callable, n: int) -> Count:
    tests, steps = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    test = _count(eqn.params["cond_jaxpr"], _of_consts(eqn, values, 0, tests), n)
    step = _count(eqn.params["body_jaxpr"], _of_consts(eqn, values, tests, steps), n)
    times = _length(eqn, values)
    if times is None:
        return test.plus(step)._replace(unbounded=test.unbounded + step.unbounded + 1)
    return step.times(times).plus(test.times(times + 1.0)).plus(Count(0.0, turns=times))


def _of_consts(eqn: core.JaxprEqn, values: Callable, first: int, number: int) -> Known:
    """What a loop's body knows: those of its inputs that are the same in each step."""

    def known(at: Sequence[int]) -> list | None:
        if any(i >= number for i in at):
            return None
        return values([eqn.invars[first + i] for i in at])

    return known


def _length(eqn: core.JaxprEqn, values: Callable) -> np.ndarray | None:
    """How often a while loop runs [n], by running what decides it; None if that is not known."""
    tests, steps = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    read = partial_eval.dce_jaxpr(eqn.params["cond_jaxpr"].jaxpr, [True])[1][tests:]
    deciding = _followed(eqn.params["body_jaxpr"].jaxpr, steps, read)
    test, test_consts = _part(eqn.params["cond_jaxpr"].jaxpr, tests, deciding, [True])
    step, step_consts = _part(eqn.params["body_jaxpr"].jaxpr, steps, deciding, deciding)
    inputs = eqn.invars[:tests], eqn.invars[tests : tests + steps], eqn.invars[tests + steps :]
    wanted = [
        [v for v, needed in zip(part, used, strict=True) if needed]
        for part, used in zip(inputs, (test_consts, step_consts, deciding), strict=True)
    ]
    found = values([v for part in wanted for v in part])
    if found is None:
        return None

    def length(test_consts, step_consts, carry):
        return jax.lax.while_loop(
            lambda c: test(*test_consts, *c[1])[0],
            lambda c: (c[0] + 1, step(*step_consts, *c[1])),
            (0, carry),
        )[0]

    each = iter(found)
    return np.asarray(jax.jit(jax.vmap(length))(*([next(each) for _ in p] for p in wanted)), float)


def _followed(step: core.Jaxpr, consts: int, read: Sequence[bool]) -> list[bool]:
    """Of what a loop carries: what is `read`, and what that follows from in any later step."""
    more = partial_eval.dce_jaxpr(step, read)[1][consts:]
    both = [a or b for a, b in zip(read, more, strict=True)]
    return both if both == list(read) else _followed(step, consts, both)


def _part(jaxpr: core.Jaxpr, consts: int, carried: list[bool], outputs: list[bool]):
    """(function for some of a body's outputs of what they need, which of its constants that is)."""
    part, used = partial_eval.dce_jaxpr(jaxpr, outputs, [False] * consts + carried)
    return core.jaxpr_as_fun(core.ClosedJaxpr(part, ())), used[:consts]


def _linear_solve(eqn: core.JaxprEqn, values: Callable, n: int) -> Count:
    return _count(eqn.params["jaxprs"].solve, lambda at: None, n)


def _unknown(eqn: core.JaxprEqn, values: Callable, n: int) -> Count:
    """Of an operation of which nothing is known but that there are loops in it."""
    parts = [core.ClosedJaxpr(j, ()) for j in core.jaxprs_in_params(eqn.params)]
    inner = [_count(part, lambda at: None, n) for part in parts]
    return Count(sum(c.flops for c in inner), 1 + sum(c.unbounded for c in inner))


RULES = {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "custom_linear_solve": _linear_solve,
}

# Operations that only call another traced function.
CALLS = {"jit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat2"}
