"""An algorithm whose clients train another form of the factors: FedPara, Fed-SB, Ravan."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxfed import values
from jaxfed.algorithm import Algorithm
from jaxfed.lowrank.factors import Theta
from jaxfed.lowrank.forms import Form
from jaxfed.tasks.task import Task, through


def parametrised(make: Callable[[Task], Algorithm], task: Task, *, form: Form) -> Algorithm:
    """`make(task)`, training one of `lowrank.forms` in place of the task's factors.

    `make` is a function such as `lambda task: fedavg(task, work, client_optimizer=sgd)`. The
    server's theta is the form: it is averaged, sent and counted. A deployed model is plain. A form
    cannot be merged into the base in training, so `combine.accumulate` refuses it.
    """
    values.function("make", make, "a function of a task, such as lambda task: fedavg(task, ...)")
    fed = make(formed(task, form))
    return fed._replace(
        task=task,
        deploy=lambda server, state: form.plain(*fed.deploy(server, state)),
        sends_change=False,
    )


def formed(task: Task, form: Form) -> Task:
    """The task whose theta is the form."""
    values.kind("form", form, Form, "one of lowrank.forms, such as forms.HADAMARD")

    def init(key):
        base, theta = task.init(key)
        if not isinstance(theta, Theta) or not theta.factors:
            raise ValueError("no factors are trained that could have a form; select some")
        return form.begin(base, theta, jax.random.fold_in(key, 2))

    return through(task, form.plain)._replace(init=init)


def gradient_of(task: Task, examples: Mapping[str, Any]) -> Callable[[dict, Theta], dict]:
    """(base, theta) -> {path: the gradient of the mean loss of these examples by the whole weight}.

    For `forms.square`, whose A and B follow the first gradient: Fed-SB takes it of a few examples.
    """
    count = len(next(iter(examples.values())))

    def gradient(base, theta):
        batch = {**examples, "mask": jnp.ones(count, jnp.float32)}
        weights = {p: base[p] for p in theta.factors}

        def loss(weights):
            return task.loss({**base, **weights}, theta, batch, jax.random.key(0))

        return jax.grad(loss)(weights)

    return gradient
