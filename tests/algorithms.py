"""ALGORITHMS: name -> factory(rate). Every algorithm and combination that must keep the contract.

A factory's `rate` is the clients' learning rate; with zero nothing may move. The little world that
they live in is the same for all.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from oracle import World

from jaxfed import combine, fedavg, fedloru, fedprox, local, lowrank, models, scaffold, task
from jaxfed.algorithms import fedopt

RATE = 0.2
CLIENTS, COHORT = 9, 7
FEATURES, CLASSES = 5, 3
DRAWS = np.stack([np.random.default_rng(t).permutation(CLIENTS)[:COHORT] for t in range(5)])


def world(count) -> World:
    """Clients with these numbers of examples; float32, so that what is tested decides precision."""
    rng, count = np.random.default_rng(0), np.asarray(count)
    label = rng.integers(CLASSES, size=count.sum()).astype(np.int32)
    image = rng.normal(size=(count.sum(), FEATURES)) + np.eye(CLASSES, FEATURES)[label]
    return World({"image": image.astype(np.float32), "label": label}, count)


UNEQUAL = world([1, 3, 4, 5, 7, 8, 9, 12, 2])
UNIFORM = world([6] * CLIENTS)
WORK = local.Work(batch_size=4, epochs=2, shuffle=False)  # to shuffle takes long to compile
SHUFFLED = local.Work(batch_size=4, epochs=2)
STEPS = local.Work(batch_size=3, steps=5, drop_remainder=True)

WHOLE = lowrank.everything
LORA = lowrank.Select(factors="kernel", full="head/bias", rank=2, alpha=3.0)
SCRATCH = lowrank.Select(factors="kernel", full="bias", rank=2, base="zero", up="random")


@cache
def classifier(select):
    """Of one layer, begun at the same weights; in double precision where that is enabled."""
    made = task.classification(models.MLP((), CLASSES), UNEQUAL.examples, select=select)
    begun = jax.tree.map(np.asarray, jax.jit(made.init)(jax.random.key(0)))
    return made._replace(init=lambda key: jax.tree.map(lambda x: jnp.asarray(x, float), begun))


def momentum(rate):
    return optax.chain(optax.sgd(rate, momentum=0.9), local.scale_by_round(local.cosine(0.1, 5)))


def adamw(rate):
    """The large eps keeps rounding from being normalised to a step."""
    return optax.adamw(rate, weight_decay=0.01, eps=0.03)


def averaging(select, rate, *, work=WORK, client=optax.sgd, server=None):
    options = {} if server is None else {"server_optimizer": server}
    return fedavg(classifier(select), work, client_optimizer=client(rate), **options)


def loru(restart, rate, every=2):
    optimizer = optax.sgd(rate)
    return fedloru(
        classifier(SCRATCH), WORK, every=every, restart=restart, client_optimizer=optimizer
    )


def controlled(select, rate):
    """SCAFFOLD; option II has no learning rate of zero on clients, so the server's is."""
    return scaffold(
        *(classifier(select), WORK),
        learning_rate=RATE,
        clients=CLIENTS,
        server_learning_rate=rate / RATE,
    )


def proximal(select, rate):
    return fedprox(classifier(select), WORK, mu=0.5, client_optimizer=optax.sgd(rate))


ALGORITHMS = {
    "fedavg": partial(averaging, WHOLE, work=SHUFFLED),
    "fedavg steps": partial(averaging, WHOLE, work=STEPS, client=momentum),
    "fedavg adamw": partial(averaging, LORA, client=adamw),
    "fedlora": partial(averaging, LORA),
    "fedprox": partial(proximal, WHOLE),
    "scaffold": partial(controlled, WHOLE),
    "fedadagrad": partial(averaging, WHOLE, server=fedopt.adagrad(0.1)),
    "fedyogi": partial(averaging, WHOLE, server=fedopt.yogi(0.1)),
    "fedadam": partial(averaging, WHOLE, server=fedopt.adam(0.1)),
    "server momentum": partial(averaging, WHOLE, server=optax.sgd(1.0, momentum=0.9)),
    "fedloru keep": partial(loru, combine.keep),
    "fedloru reinit": partial(loru, combine.reinit),
    "fedloru residual": partial(loru, combine.residual),
    "fedloru schedule": partial(loru, combine.reinit, every=[1, 4]),
    "accumulated scaffold": lambda rate: combine.accumulate(
        controlled(SCRATCH, rate), every=2, restart=combine.residual
    ),
    "accumulated fedadam": lambda rate: combine.accumulate(
        averaging(SCRATCH, rate, server=fedopt.adam(0.1)), every=2, restart=combine.reinit
    ),
    "accumulated fedprox": lambda rate: combine.accumulate(
        proximal(SCRATCH, rate), every=2, restart=combine.keep
    ),
    "guarded fedavg": lambda rate: combine.skip_nonfinite(averaging(WHOLE, rate)),
    "guarded fedloru": lambda rate: combine.skip_nonfinite(loru(combine.reinit, rate)),
}
