"""Small runs that can go on at once: their experiments, and how they are prepared."""

import jax
import numpy as np
import optax

import jaxfed
from jaxfed import local, lowrank, models, tasks
from jaxfed.algorithms import fedavg, fedloru, scaffold
from jaxfed.data import federate, partition, sources
from jaxfed.lowrank import restarts
from jaxfed.simulation.prepare import prepare
from jaxfed.simulation.programs import Programs

HOST = jaxfed.Host(devices=1, chunk=2, fuse=2, checkpoint_every=2)
CLIENTS, ROUNDS = 4, 6
MODEL = models.MLP((48,), classes=4)
FACTORS = lowrank.Select(factors="kernel", full="bias", rank=1)


def source():
    rng = np.random.default_rng(0)
    label = np.arange(48) % 4
    image = (rng.normal(size=(48, 48)) + np.eye(4, 48)[label]).astype(np.float32)
    examples = {"image": image, "label": label}
    return sources.arrays(examples, {name: x[:12] for name, x in examples.items()})


SOURCE = source()
GIVEN = MODEL.init(jax.random.key(9), SOURCE.test["image"][:1])["params"]


def algorithm(method, rate, params=None):
    """SCAFFOLD of all weights, or FedLoRA or FedLoRU; from the given weights, or the seed's."""
    work = local.Work(4, epochs=1)
    select = lowrank.everything if method == "scaffold" else FACTORS
    task = tasks.classification(MODEL, SOURCE.test, select=select, params=params)
    if method == "scaffold":
        return scaffold(task, work, learning_rate=rate, clients=CLIENTS)
    if method == "fedlora":
        return fedavg(task, work, client_optimizer=optax.sgd(rate))
    optimizer = optax.sgd(rate)
    return fedloru(task, work, every=3, restart=restarts.reinit, client_optimizer=optimizer)


def experiment(method="scaffold", seed=0, rate=0.1, params=None, split=None, **changes):
    """An experiment whose data are dealt by `split`, or by the seed."""
    parts = partition.iid(48, CLIENTS, seed=seed if split is None else split)
    settings = {"rounds": ROUNDS, "cohort": 2, "evaluate_every": 2, **changes}
    made = settings.pop("algorithm", None) or algorithm(method, rate, params)
    return jaxfed.Experiment(federate(SOURCE, parts), made, seed=seed, **settings)


def prepared(experiments, programs=None, folders=None, host=HOST, **how):
    """Runs of one program."""
    programs = programs or Programs(experiments[0].data.size)
    folders = folders or [None] * len(experiments)
    return [
        prepare(e, host, folder, programs=programs, compiling=False, **how)
        for e, folder in zip(experiments, folders, strict=True)
    ]
