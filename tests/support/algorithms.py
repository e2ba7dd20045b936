"""ALGORITHMS: name -> factory(rate). Every row of the zoo, and more settings and combinations.

A factory's `rate` is the clients' learning rate; with zero nothing may move. The little world that
they live in is the same for all.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from oracle import World

from jaxfed import combine, local, lowrank, models, tasks
from jaxfed.algorithms import (
    centralised,
    fedavg,
    fedlin,
    fedloru,
    fedper,
    fedprox,
    perfedavg,
    pf2lora,
    row,
    scaffold,
    zoo,
)
from jaxfed.algorithms.general import fedopt
from jaxfed.algorithms.general.perfedavg import exact, thirds
from jaxfed.algorithms.personal.pf2lora import halves
from jaxfed.lowrank import restarts

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
STEPS_OF_TWO = local.Work(batch_size=2, steps=5)
THIRDS = local.Work(batch_size=6, epochs=1, shuffle=False)
ONE_EPOCH = local.Work(batch_size=4, epochs=1, shuffle=False)

WHOLE = lowrank.everything
LORA = lowrank.Select(factors="kernel", full="head/bias", rank=2, alpha=3.0)
SCRATCH = lowrank.Select(factors="kernel", full="bias", rank=2, base="zero", up="random")


@cache
def classifier(select, norm="none"):
    """Of one layer, begun at the same weights; in double precision where that is enabled.

    With a norm there is a hidden layer, which has it.
    """
    widths = () if norm == "none" else (4,)
    model = models.MLP(widths, CLASSES, norm)
    made = tasks.classification(model, UNEQUAL.examples, select=select)
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
        classifier(select),
        WORK,
        learning_rate=RATE,
        clients=CLIENTS,
        server_learning_rate=rate / RATE,
    )


def two_level(rate, *, personal_head, work=WORK, upper=adamw, **options):
    """PF2LoRA; both levels have the rate. Moments are kept where the head is common."""
    return pf2lora(
        classifier(LORA),
        work,
        rank=1,
        inner_rate=rate,
        upper_optimizer=upper(rate),
        keep_moments=not personal_head,
        personal_head=personal_head,
        **options,
    )


def meta(rate):
    return perfedavg(
        classifier(LORA),
        THIRDS,
        inner_rate=0.1,
        gradient=exact,
        minibatches=thirds,
        client_optimizer=momentum(rate),
        personal_work=ONE_EPOCH,
    )


def setting(rate):
    return row.Setting(
        work=WORK,
        rate=rate,
        clients=CLIENTS,
        cohort=COHORT,
        rank=2,
        rounds=5,
        personal_work=ONE_EPOCH,
    )


def task_of(one):
    """The task that a row of the zoo trains."""
    if one.trains == "norms":
        return classifier(WHOLE, "running")
    return classifier({"any": WHOLE, "factors": LORA, "scratch": SCRATCH}[one.trains])


def from_row(one, rate):
    return one.make(task_of(one), setting(rate))


ROWS = {one.name: partial(from_row, one) for one in zoo.ROWS}

# Other settings of these methods, and combinations, that take other ways through the code.
VARIANTS = {
    "fedavg norms": lambda rate: fedavg(
        classifier(WHOLE, "running"),
        WORK,
        client_optimizer=adamw(rate),
        server_optimizer=optax.sgd(1.0, momentum=0.9),
    ),
    "fedlin norms": lambda rate: fedlin(
        classifier(WHOLE, "running"), WORK, client_optimizer=optax.sgd(rate)
    ),
    "scaffold": partial(controlled, WHOLE),
    "fedloru-scaffold": lambda rate: combine.accumulate(
        controlled(SCRATCH, rate), every=2, restart=restarts.residual
    ),
    "fedavg shuffled": partial(averaging, WHOLE, work=SHUFFLED),
    "fedavg steps": partial(averaging, WHOLE, work=STEPS, client=momentum),
    "fedavg adamw": partial(averaging, LORA, client=adamw),
    "server momentum": partial(averaging, WHOLE, server=optax.sgd(1.0, momentum=0.9)),
    "fedloru keep": partial(loru, restarts.keep),
    "fedloru residual": partial(loru, restarts.residual),
    "fedloru schedule": partial(loru, restarts.reinit, every=[1, 4]),
    "accumulated fedadam": lambda rate: combine.accumulate(
        averaging(SCRATCH, rate, server=fedopt.adam(0.1)), every=2, restart=restarts.reinit
    ),
    "accumulated fedprox": lambda rate: combine.accumulate(
        fedprox(classifier(SCRATCH), WORK, mu=0.5, client_optimizer=optax.sgd(rate)),
        every=2,
        restart=restarts.keep,
    ),
    "accumulated fedex": lambda rate: combine.accumulate(
        ROWS["fedex"](rate), every=2, restart=restarts.reinit
    ),
    "pf2lora moments": partial(two_level, personal_head=False),
    "pf2lora fresh": partial(
        two_level, personal_head=True, work=STEPS_OF_TWO, upper=momentum, minibatches=halves
    ),
    "pf2lora optimised": lambda rate: pf2lora(
        classifier(LORA),
        WORK,
        rank=1,
        personal_optimizer=adamw(rate),
        upper_optimizer=adamw(rate),
        keep_moments=True,
        personal_head=True,
        up="random",
    ),
    "fedper alike": lambda rate: fedper(
        classifier(LORA),
        WORK,
        personal="^full/",
        client_optimizer=momentum(rate),
        common_start=True,
        keep_moments=True,
    ),
    "fine-tuned fedlora": lambda rate: combine.fine_tuned(
        averaging(LORA, rate), ONE_EPOCH, optimizer=optax.sgd(rate), every=2
    ),
    "centralised adamw": lambda rate: centralised(
        classifier(LORA), batch_size=4, optimizer=adamw(rate)
    ),
    "perfedavg thirds": meta,
    "guarded fedavg": lambda rate: combine.skip_nonfinite(averaging(WHOLE, rate)),
    "unreliable scaffold": lambda rate: combine.unreliable(
        controlled(WHOLE, rate), unavailable=0.2, lost=0.2
    ),
    "guarded fedloru": lambda rate: combine.skip_nonfinite(loru(restarts.reinit, rate)),
}
ALGORITHMS = {**ROWS, **VARIANTS}

KINDS = {
    "fedavg",
    "scaffold",
    "fedlin",
    "fedadam",
    "ditto",
    "fedper",
    "apfl",
    "perfedavg",
    "fedloru",
    "fedmomentum",
    "flora",
    "fedpara",
    "mfedloru",
    "hetlora",
    "pfedloru",
    "pf2lora",
    "fdlora",
    "feddpa-t",
    "feddat",
    "fedalt",
    "fedavg-ef21",
}
"""One row of each kind. The others go the same ways through the code, and are in the full tier."""
