"""A classifier of one layer written out: x W + bias + what adapters add; and gradient descent."""

from functools import cache

import algorithms
import jax
import jax.numpy as jnp
import optax

from jaxfed.lowrank import Theta

WORLD = algorithms.world([4, 6, 4, 4, 6, 4, 6, 4, 4])
PATH, BIAS = "head/kernel", "head/bias"


def task():
    return algorithms.classifier(algorithms.LORA)


def start():
    """(W, bias, (a, b), s) that the task starts with."""
    base, theta = task().init(jax.random.key(0))
    f = theta.factors[PATH]
    return base[PATH], theta.full[BIAS], (f.a, f.b), f.scale


def rows(i):
    """Client i's images [n, in] and labels [n]."""
    mine = slice(WORLD.start[i], WORLD.start[i] + WORLD.count[i])
    return (jnp.asarray(WORLD.examples[name][mine]) for name in ("image", "label"))


def added(adapter, s, x):
    """s (x a) b."""
    return s * (x @ adapter[0]) @ adapter[1]


def cross_entropy(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


@cache
def gradient(loss):
    return jax.jit(jax.grad(loss))


def descended(loss, params, rate, steps, *data):
    """The parameters after so many steps of gradient descent on loss(params, *data)."""
    for _ in range(steps):
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient(loss)(params, *data))
    return params


def mean(trees, shares):
    return jax.tree.map(lambda *x: sum(p * y for p, y in zip(shares, x, strict=True)), *trees)


def pair(factors):
    """(a, b) of {PATH: Factors} or of a Theta."""
    f = (factors.factors if isinstance(factors, Theta) else factors)[PATH]
    return f.a, f.b
