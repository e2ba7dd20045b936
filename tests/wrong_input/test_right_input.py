"""Right input in another form: numbers of NumPy's, lists for tuples, and paths as text."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_bert
from refusals import LABELS, SGD, WORK, classification, data, experiment, factors, source, task

import jaxfed
from jaxfed import algorithms, combine, local, lowrank, models
from jaxfed.analysis import probe
from jaxfed.data import federate, images, partition, sources, text
from jaxfed.lowrank import restarts
from jaxfed.simulation import identity

pytestmark = pytest.mark.quick

ROWS = [list(range(20)), list(range(20, 40))]


def dirichlet(labels, concentration=1.0):
    return partition.dirichlet(labels, 4, concentration=concentration, seed=0)


def counts(parts, **options):
    made = federate(source(), parts, **options)
    return made.train.count, made.personal.count


def tokens(texts):
    return text.tokenise({"text": texts}, tiny_bert.tokenizer(), pad=0, buckets=[16])["tokens"]


def saved(path):
    image, label = np.zeros((2, 2, 2), np.uint8), np.arange(2, dtype=np.uint8)
    np.savez("mine.npz", train_image=image, train_label=label, test_image=image, test_label=label)
    return sources.npz(path).train["label"]


def fedprox(mu):
    return len(algorithms.fedprox(task(), WORK, mu=mu, client_optimizer=SGD))


def merged(every):
    inner = algorithms.fedavg(factors(rank=2), WORK, client_optimizer=SGD)
    made = combine.accumulate(inner, every=every, restart=restarts.reinit)
    return [made.broadcast(made.init(jax.random.key(0)), t) for t in range(4)]


def hetlora(ranks):
    rates = {"least": 1, "most": 2, "gamma": 1, "penalty": 0, "client_optimizer": SGD}
    return algorithms.hetlora(factors(rank=2), WORK, ranks=ranks, **rates).clients


def checked(settings):
    probe._check(settings)
    return settings.depth


SAME = [
    (
        "iid",
        lambda: partition.iid(np.int64(40), np.int32(4), seed=np.uint8(1)),
        lambda: partition.iid(40, 4, seed=1),
    ),
    ("labels in a list", lambda: dirichlet(LABELS.tolist()), lambda: dirichlet(LABELS)),
    ("labels as text", lambda: dirichlet(LABELS.astype(str)), lambda: dirichlet(LABELS)),
    ("a whole concentration", lambda: dirichlet(LABELS, 1), lambda: dirichlet(LABELS, 1.0)),
    ("concentration", lambda: dirichlet(LABELS, np.float32(1)), lambda: dirichlet(LABELS, 1.0)),
    ("rows in lists", lambda: counts(ROWS), lambda: counts(np.array(ROWS))),
    ("rows in a tuple", lambda: counts(tuple(ROWS)), lambda: counts(np.array(ROWS))),
    (
        "a fraction",
        lambda: counts(ROWS, personal_fraction=np.float32(0.5), seed=np.int64(0)),
        lambda: counts(ROWS, personal_fraction=0.5),
    ),
    ("no fraction", lambda: counts(ROWS, personal_fraction=0), lambda: counts(ROWS)),
    (
        "columns in lists",
        lambda: sources.arrays({"x": [[1], [2]]}, {"x": [[3]]}).train["x"],
        lambda: np.array([[1], [2]]),
    ),
    ("a path", lambda: saved(Path("mine.npz")), lambda: saved("mine.npz")),
    ("text in a list", lambda: tokens(["a b"]), lambda: tokens(np.array(["a b"], object))),
    (
        "means in an array",
        lambda: images.normalise(np.array([0.5]), np.array([0.5]), np.float32(1)),
        lambda: images.normalise([0.5], (0.5,), 1),
    ),
    (
        "work",
        lambda: local.Work(np.int64(10), epochs=np.int32(1), shuffle=np.bool(True)),
        lambda: local.Work(10, epochs=1),
    ),
    (
        "a rank",
        lambda: lowrank.Select("dense", rank=np.int64(2), alpha=4),
        lambda: lowrank.Select("dense", rank=2, alpha=4.0),
    ),
    (
        "a fraction of the weights",
        lambda: lowrank.Select("dense", fraction=np.float64(0.5)),
        lambda: lowrank.Select("dense", fraction=0.5),
    ),
    ("widths in a list", lambda: models.MLP([4], np.int64(3)).classes, lambda: 3),
    ("no width", lambda: models.MLP((), 3).widths, lambda: ()),
    (
        "inputs and measures in lists",
        lambda: len(classification(inputs=["image"], measures=[jaxfed.tasks.matthews])),
        lambda: len(classification()),
    ),
    ("mu of NumPy's", lambda: fedprox(np.float64(0.5)), lambda: fedprox(0.5)),
    ("a whole mu", lambda: fedprox(1), lambda: fedprox(1)),
    ("an array's mu", lambda: fedprox(jnp.float32(0.5)), lambda: fedprox(0.5)),
    ("a cycle", lambda: merged(np.int64(2)), lambda: merged(2)),
    ("rounds in a tuple", lambda: merged((1, 3)), lambda: merged([1, 3])),
    ("rounds of NumPy's", lambda: merged([np.int64(1), np.int32(3)]), lambda: merged([1, 3])),
    ("ranks in an array", lambda: hetlora(np.array([1, 2, 1, 2])), lambda: 4),
    ("ranks in a tuple", lambda: hetlora((1, 2, 1, 2)), lambda: 4),
    (
        "an experiment",
        lambda: repr(experiment(rounds=np.int64(2), cohort=np.int32(2), seed=np.uint32(0)).cohort),
        lambda: "2",
    ),
    (
        "a host",
        lambda: repr(jaxfed.Host(chunk=np.int64(2), devices=np.int32(1)).chunk),
        lambda: "2",
    ),
    (
        "a probe",
        lambda: checked(probe.Probe(depth=np.int64(9), ranks=[1, 2], clients=[0])),
        lambda: 9,
    ),
    ("names", lambda: identity.check_allowed({}, ["seed"]), lambda: None),
    ("four clients", lambda: data(clients=np.int64(4)).clients, lambda: 4),
]


@pytest.mark.parametrize(
    ("given", "plain"), [case[1:] for case in SAME], ids=[case[0] for case in SAME]
)
def test_right_input_in_another_form_gives_the_same(given, plain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.testing.assert_equal(given(), plain())
