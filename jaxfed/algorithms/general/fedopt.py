"""FedOpt: Reddi et al., ICLR 2021, Algorithms 1 and 2: FedAvg with an optimizer on the server.

FedAdagrad, FedYogi and FedAdam are `fedopt` with the server optimizers `adagrad`, `yogi` and `adam`
of this module. Any algorithm with a `server_optimizer` accepts them. They differ from optax.adam
and its relatives, which are accepted too: they do not correct bias, v starts at tau^2, and tau is
added outside the root. With D_t the clients' mean change,

    m_t = b1 m_{t-1} + (1 - b1) D_t
    v_t = v_{t-1} + D_t^2                                       (adagrad)
    v_t = v_{t-1} - (1 - b2) D_t^2 sign(v_{t-1} - D_t^2)        (yogi)
    v_t = b2 v_{t-1} + (1 - b2) D_t^2                           (adam)
    w_{t+1} = w_t + eta m_t / (sqrt(v_t) + tau)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxfed import aggregate, local
from jaxfed.algorithm import Algorithm, PyTree
from jaxfed.algorithms.general.fedavg import fedavg
from jaxfed.tasks.task import Task
from jaxfed.templates import check_number


def fedopt(
    task: Task,
    work: local.Work,
    *,
    client_optimizer: optax.GradientTransformation,
    server_optimizer: optax.GradientTransformation,
    mean: Callable[[PyTree, jax.Array], PyTree] = aggregate.weighted_mean,
) -> Algorithm:
    """FedAvg with a server optimizer whose gradient is the negative mean change."""
    return fedavg(
        task,
        work,
        client_optimizer=client_optimizer,
        server_optimizer=server_optimizer,
        mean=mean,
    )


class Moments(NamedTuple):
    """The state of a server optimizer: first and second moment of D_t."""

    m: PyTree
    v: PyTree


def adagrad(eta: float, *, b1: float = 0.0, tau: float = 1e-3) -> optax.GradientTransformation:
    """FedAdagrad's server optimizer with learning rate `eta`; the paper uses b1 = 0."""
    return _fedopt(lambda v, d2: v + d2, eta, b1, 0.0, tau)


def yogi(
    eta: float, *, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """FedYogi's server optimizer with learning rate `eta`."""
    return _fedopt(lambda v, d2: v - (1 - b2) * d2 * jnp.sign(v - d2), eta, b1, b2, tau)


def adam(
    eta: float, *, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3
) -> optax.GradientTransformation:
    """FedAdam's server optimizer with learning rate `eta`."""
    return _fedopt(lambda v, d2: b2 * v + (1 - b2) * d2, eta, b1, b2, tau)


def _fedopt(
    second: Callable, eta: float, b1: float, b2: float, tau: float
) -> optax.GradientTransformation:
    check_number("eta", eta, 0.0)
    check_number("b1", b1, 0.0, 1.0)
    check_number("b2", b2, 0.0, 1.0)
    check_number("tau", tau, 0.0, above=True)

    def init(theta):
        return Moments(optax.tree.zeros_like(theta), optax.tree.full_like(theta, tau**2))

    def update(gradient, state, theta=None):  # the gradient is -D_t
        m = jax.tree.map(lambda m, g: b1 * m - (1 - b1) * g, state.m, gradient)
        v = jax.tree.map(lambda v, g: second(v, g**2), state.v, gradient)
        return jax.tree.map(lambda m, v: eta * m / (jnp.sqrt(v) + tau), m, v), Moments(m, v)

    return optax.GradientTransformation(init, update)
