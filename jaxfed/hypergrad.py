"""Hypergradients: the derivative of f(x, y(x)) by x if y depends on x.

All functions take an objective f(x, y) -> scalar; x and y may be any trees of arrays. A second
objective `upper` replaces f where it is evaluated at y+ or y* instead of y, for example to use a
fresh minibatch. By default `upper` is f.

    one_step, unrolled, alternating, simultaneous:
        (f, x, y, inner_rate, *, upper) -> (value, h, y+)   exchangeable: y+ is y after SGD on f
    lower_level:
        (inner_rate, gradient, optimizer) -> Level   one of these, or an optimizer's step on y
    implicit:
        (f, x, y, *, solve, upper) -> (value, h)            y minimises f(x, .)

Second derivatives appear only in products with vectors (jvp of grad); no Hessian is ever formed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import optax

from jaxfed import values
from jaxfed.algorithm import PyTree

Objective = Callable[[PyTree, PyTree], jax.Array]
Operator = Callable[[PyTree], PyTree]


def hvp(f: Callable[[PyTree], jax.Array], x: PyTree, v: PyTree) -> PyTree:
    """The Hessian-vector product grad^2 f(x) v, for v like x."""
    return jax.jvp(jax.grad(f), (x,), (v,))[1]


def mixed(f: Objective, x: PyTree, y: PyTree, v: PyTree) -> PyTree:
    """grad_xy f(x, y) v = d/dt grad_x f(x, y + t v) at t = 0: a tree like x, for v like y."""
    return jax.jvp(lambda y: jax.grad(f)(x, y), (y,), (v,))[1]


def one_step(
    f: Objective, x: PyTree, y: PyTree, inner_rate: float, *, upper: Objective | None = None
) -> tuple[jax.Array, PyTree, PyTree]:
    """(upper(x, y+), h, y+) after one SGD step on y: PF2LoRA's hypergradient (arXiv 2503.03920).

    y+ = y - inner_rate grad_y f(x, y)
    h  = grad_x upper(x, y+) - inner_rate grad_xy f(x, y) grad_y upper(x, y+)

    h is the derivative of upper(x, y - inner_rate grad_y f(x, y)) by x. The first gradient and the
    second derivative are taken at the same point, so one linearisation serves both.
    """
    (_, gradient), tangent = jax.linearize(lambda y: jax.grad(f, (0, 1))(x, y), y)
    stepped = optax.tree.add_scale(y, -inner_rate, gradient)
    value, (direct, v) = jax.value_and_grad(upper or f, (0, 1))(x, stepped)
    return value, optax.tree.add_scale(direct, -inner_rate, tangent(v)[0]), stepped


def unrolled(
    f: Objective,
    x: PyTree,
    y: PyTree,
    inner_rate: float,
    *,
    steps: int,
    upper: Objective | None = None,
) -> tuple[jax.Array, PyTree, PyTree]:
    """(upper(x, y_T), h, y_T) after T = `steps` SGD steps on y; h differentiates through them all.

    y_{t+1} = y_t - inner_rate grad_y f(x, y_t),  h = d/dx upper(x, y_T(x)) with y_0 held constant.
    Memory grows with T, because reverse mode stores the intermediate values of each step.
    """
    values.whole("steps", steps, 1)

    def solved(x):
        def step(y, _):
            return optax.tree.add_scale(y, -inner_rate, jax.grad(f, 1)(x, y)), None

        last, _ = jax.lax.scan(step, y, length=steps)
        return (upper or f)(x, last), last

    (value, last), h = jax.value_and_grad(solved, has_aux=True)(x)
    return value, h, last


def alternating(
    f: Objective, x: PyTree, y: PyTree, inner_rate: float, *, upper: Objective | None = None
) -> tuple[jax.Array, PyTree, PyTree]:
    """(upper(x, y+), grad_x upper(x, y+), y+): `one_step` without its cross term.

    y is updated first, then x; each update treats the other as constant.
    """
    stepped = optax.tree.add_scale(y, -inner_rate, jax.grad(f, 1)(x, y))
    value, h = jax.value_and_grad(upper or f)(x, stepped)
    return value, h, stepped


def simultaneous(
    f: Objective, x: PyTree, y: PyTree, inner_rate: float, *, upper: Objective | None = None
) -> tuple[jax.Array, PyTree, PyTree]:
    """(upper(x, y), grad_x upper(x, y), y+): both levels are updated at once, from (x, y)."""
    if upper is None or upper is f:
        # One evaluation: XLA does not always merge two equal ones.
        value, (h, gradient) = jax.value_and_grad(f, (0, 1))(x, y)
    else:
        (value, h), gradient = jax.value_and_grad(upper)(x, y), jax.grad(f, 1)(x, y)
    return value, h, optax.tree.add_scale(y, -inner_rate, gradient)


class Level(NamedTuple):
    """The lower level of a method with state: one step on y, and h for the upper level."""

    init: Callable[[PyTree], PyTree]
    """y -> opt, the state of its optimizer."""

    step: Callable[..., tuple[jax.Array, PyTree, PyTree, PyTree]]
    """(f, x, y, opt, *, upper, **extra) -> (value, h, y+, opt); `extra` is for the optimizer."""


def lower_level(
    inner_rate: float | None = None,
    gradient: Callable = one_step,
    optimizer: optax.GradientTransformation | None = None,
) -> Level:
    """SGD of `inner_rate` with one of the functions above; or, instead, an optimizer's step.

    With an optimizer, h = grad_x upper(x, y+) as in `alternating`. There is no cross term: the step
    of Adam hardly depends on the size of the gradient, and has no derivative where the gradient is
    zero, as that of a factor beside zeros is.
    """
    if (inner_rate is None) == (optimizer is None):
        raise ValueError(
            f"inner_rate={inner_rate} and personal_optimizer={optimizer}: give one of the two, for "
            "the lower level"
        )
    if optimizer is None:
        if not isinstance(inner_rate, jax.Array):  # which may be traced
            values.number("inner_rate", inner_rate, 0.0)

        def by_sgd(f, x, y, opt, *, upper=None, **extra):
            return *gradient(f, x, y, inner_rate, upper=upper), opt

        return Level(lambda y: (), by_sgd)
    if gradient is not one_step:
        raise ValueError("gradient is for SGD with inner_rate; leave it out or give inner_rate")
    wanted = optax.GradientTransformation
    values.kind("personal_optimizer", optimizer, wanted, "one of optax, such as optax.adamw(1e-3)")
    optimizer = optax.with_extra_args_support(optimizer)

    def by_optimizer(f, x, y, opt, *, upper=None, **extra):
        updates, opt = optimizer.update(jax.grad(f, 1)(x, y), opt, y, **extra)
        stepped = optax.apply_updates(y, updates)
        return *jax.value_and_grad(upper or f)(x, stepped), stepped, opt

    return Level(optimizer.init, by_optimizer)


def implicit(
    f: Objective,
    x: PyTree,
    y: PyTree,
    *,
    solve: Callable[[Operator, PyTree], PyTree],
    upper: Objective | None = None,
) -> tuple[jax.Array, PyTree]:
    """(upper(x, y), h) by the implicit function theorem, if y minimises f(x, .).

    h = grad_x upper - grad_xy f [grad_yy f]^{-1} grad_y upper, all at (x, y).

    `solve(H, b)` gives H^{-1} b, using only products H(v): `partial(conjugate_gradients, ...)` or
    `partial(neumann, ...)`. H must be positive definite.
    """
    value, (direct, b) = jax.value_and_grad(upper or f, (0, 1))(x, y)
    _, tangent = jax.linearize(lambda y: jax.grad(f, (0, 1))(x, y), y)
    v = solve(lambda v: tangent(v)[1], b)
    return value, optax.tree.sub(direct, tangent(v)[0])


def conjugate_gradients(
    apply: Operator, b: PyTree, *, iterations: int, tolerance: float = 0.0
) -> PyTree:
    """v = H^{-1} b for positive definite H, to |H v - b| <= tolerance |b| or after `iterations`."""
    values.whole("iterations", iterations, 1)
    return jax.scipy.sparse.linalg.cg(apply, b, maxiter=iterations, tol=tolerance)[0]


def neumann(apply: Operator, b: PyTree, *, inner_rate: float, terms: int) -> PyTree:
    """eta sum_{i < terms} (I - eta H)^i b with eta = inner_rate: H^{-1} b in the limit.

    It converges if 0 < eta H < 2. At the minimum, `implicit` then gives the same h as `unrolled`
    with as many steps of the same rate.
    """
    values.whole("terms", terms, 1)

    def step(_, carry):
        power, total = carry
        power = optax.tree.add_scale(power, -inner_rate, apply(power))
        return power, optax.tree.add(total, power)

    _, total = jax.lax.fori_loop(1, terms, step, (b, b))
    return optax.tree.scale(inner_rate, total)
