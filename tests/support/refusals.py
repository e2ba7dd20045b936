"""Small right inputs to spoil, and the assertion that a wrong one ends in one sentence."""

import functools
from pathlib import Path

import numpy as np
import optax
import pytest

import jaxfed
from jaxfed import local, lowrank, models, tasks
from jaxfed.algorithms import fedavg
from jaxfed.cli import errors, main
from jaxfed.data import federate, partition, sources

SMALL = Path(__file__).with_name("small.py")
WORK = local.Work(10, epochs=1)
SGD = optax.sgd(0.1)
LABELS = np.arange(40) % 10


def source(labels=10, n=40):
    rows = np.arange(n)
    examples = {"image": np.zeros((n, 2, 2, 1), np.uint8), "label": (rows % labels).astype(int)}
    return sources.arrays(examples, {key: x[:10] for key, x in examples.items()})


def data(labels=10, clients=4, **options):
    return federate(source(labels), partition.iid(40, clients, seed=0), **options)


def classification(classes=10, select=lowrank.everything, **options):
    return tasks.classification(models.MLP((4,), classes), source().test, select=select, **options)


def factors(**select):
    return classification(select=lowrank.Select(factors="dense", **select))


task = functools.cache(classification)


def experiment(made=None, **changes):
    made = made or fedavg(task(), WORK, client_optimizer=SGD)
    settings = {"rounds": 2, "cohort": 2, "data": data(), **changes}
    return jaxfed.Experiment(algorithm=made, **settings)


def run(made=None, host=None, directory=None, resume=False, allow=(), **changes):
    return jaxfed.run(experiment(made, **changes), directory, host, resume=resume, allow=allow)


def command(*arguments):
    main.main(list(map(str, arguments)))


def written(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content)
    return path


def check(call, error, sentence, folder, monkeypatch):
    """The call raises this error, which the command line prints as this sentence.

    It is called in the folder, and begins no run there.
    """
    monkeypatch.chdir(folder)
    monkeypatch.setenv("JAXFED_TRACEBACK", "1")
    with pytest.raises(error) as raised:
        call()
    assert sentence in errors.sentence(raised.value), repr(raised.value)
    assert not list(folder.rglob("host.json"))
