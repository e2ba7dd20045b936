"""Wrong settings of a run, its host and its folder are refused before a round is run."""

import json
from pathlib import Path

import pytest
import refusals
from refusals import SGD, WORK, data, experiment, run, source, task, written

import jaxfed
from jaxfed import algorithms
from jaxfed.analysis import probe
from jaxfed.data import federate, partition, sources

pytestmark = pytest.mark.quick

NAN = float("nan")


def fedavg(made=None):
    return algorithms.fedavg(made or task(), WORK, client_optimizer=SGD)


def begun(folder="begun", **settings):
    """A folder that looks like a run's, and holds no checkpoint."""
    content = {
        "arguments": [],
        "settings": {},
        "launch": {},
        "experiment": {"rounds": 2, "cohort": 2, **settings},
    }
    written(f"{folder}/settings.json", json.dumps(content))
    return folder


def resumed(folder=None, **changes):
    return run(directory=folder or begun(**changes), resume=True)


def in_a_folder_with(name):
    written(name, "mine")
    return run(directory=".")


def of_examples(**arrays):
    found = source()
    train, test = ({**part, **{n: f(part) for n, f in arrays.items()}} for part in found)
    return experiment(data=federate(sources.arrays(train, test), partition.iid(40, 4, seed=0)))


def probed(directory="nowhere", **settings):
    return probe.of_run(experiment(), directory, probe.Probe(**settings))


CASES = [
    # the experiment
    ("rounds 0", lambda: experiment(rounds=0), ValueError, "rounds=0; use at least 1"),
    ("rounds -1", lambda: experiment(rounds=-1), ValueError, "rounds=-1; use at least 1"),
    ("rounds half", lambda: experiment(rounds=1.5), TypeError, "rounds=1.5 is a float; give a"),
    ("rounds True", lambda: experiment(rounds=True), TypeError, "rounds=True is a bool; give a"),
    ("rounds text", lambda: experiment(rounds="2"), TypeError, "rounds='2' is a str; give a"),
    ("rounds None", lambda: experiment(rounds=None), TypeError, "rounds=None is a NoneType; give"),
    ("rounds nan", lambda: experiment(rounds=NAN), TypeError, "rounds=nan is a float; give a"),
    ("cohort 0", lambda: experiment(cohort=0), ValueError, "cohort=0; use at least 1"),
    ("cohort a share", lambda: experiment(cohort=0.5), TypeError, "cohort=0.5 is a float; give a"),
    ("cohort above all", lambda: experiment(cohort=5), ValueError, "cohort=5 clients a round out"),
    ("seed -1", lambda: experiment(seed=-1), ValueError, "seed=-1; use at least 0"),
    ("seed too large", lambda: experiment(seed=2**32), ValueError, "seed=4294967296; use a"),
    ("seed None", lambda: experiment(seed=None), TypeError, "seed=None is a NoneType; give a"),
    (
        "evaluate_every -1",
        lambda: experiment(evaluate_every=-1),
        ValueError,
        "evaluate_every=-1; use at least 0",
    ),
    (
        "evaluate_every None",
        lambda: experiment(evaluate_every=None),
        TypeError,
        "evaluate_every=None is a NoneType; give a whole number",
    ),
    (
        "evaluate_batch 0",
        lambda: experiment(evaluate_batch=0),
        ValueError,
        "evaluate_batch=0; use at least 1",
    ),
    ("a source as data", lambda: experiment(data=source()), TypeError, "data is a Source; give a"),
    ("None as data", lambda: experiment(data=None), TypeError, "data is a NoneType; give a"),
    ("a name as algorithm", lambda: experiment("fedavg"), TypeError, "algorithm is a str; give a"),
    (
        "a function as algorithm",
        lambda: experiment(algorithms.fedavg),
        TypeError,
        "algorithm is a function; give a Algorithm",
    ),
    (
        "other labels",
        lambda: experiment(data=data(labels=11)),
        ValueError,
        "labels run from 0 to 10, but the model has 10 outputs; give the model as many",
    ),
    (
        "an array mask",
        lambda: of_examples(mask=lambda part: part["label"]),
        ValueError,
        "the examples have an array 'mask', the name of the mask of padded examples in",
    ),
    (
        "other images",
        lambda: of_examples(image=lambda part: part["image"][:, :1]),
        ValueError,
        "the model has weights for inputs of another shape than uint8 (1, 1, 2, 1)",
    ),
    (
        "no images",
        lambda: experiment(data=federate(sources.arrays({"x": [1, 2]}, {"x": [1]}), [[0], [1]])),
        ValueError,
        "the examples have no ['image', 'label']; they have ['x']",
    ),
    (
        "no test set",
        lambda: experiment(
            data=federate(
                sources.Source(source().train, {n: x[:0] for n, x in source().test.items()}),
                partition.iid(40, 4, seed=0),
            )
        ),
        ValueError,
        "the test set is empty; give some rows, or evaluate_every=0",
    ),
    # the host
    ("chunk 0", lambda: jaxfed.Host(chunk=0), ValueError, "chunk=0; use at least 1"),
    ("chunk text", lambda: jaxfed.Host(chunk="all"), TypeError, "chunk='all' is a str; give a"),
    ("chunk half", lambda: jaxfed.Host(chunk=1.5), TypeError, "chunk=1.5 is a float; give a"),
    ("chunk True", lambda: jaxfed.Host(chunk=True), TypeError, "chunk=True is a bool; give a"),
    ("chunk None", lambda: jaxfed.Host(chunk=None), TypeError, "chunk=None is a NoneType; give a"),
    ("fuse -1", lambda: jaxfed.Host(fuse=-1), ValueError, "fuse=-1; use at least 1"),
    ("fuse list", lambda: jaxfed.Host(fuse=[1]), TypeError, "fuse=[1] is a list; give a whole"),
    ("devices 0", lambda: jaxfed.Host(devices=0), ValueError, "devices=0; use at least 1"),
    ("devices text", lambda: jaxfed.Host(devices="all"), TypeError, "devices='all' is a str;"),
    ("devices True", lambda: jaxfed.Host(devices=True), TypeError, "devices=True is a bool; give"),
    ("devices 99", lambda: run(host=jaxfed.Host(devices=99)), ValueError, "devices=99, but JAX"),
    (
        "checkpoint_every -1",
        lambda: jaxfed.Host(checkpoint_every=-1),
        ValueError,
        "checkpoint_every=-1; use at least 0",
    ),
    (
        "checkpoint_every None",
        lambda: jaxfed.Host(checkpoint_every=None),
        TypeError,
        "checkpoint_every=None is a NoneType; give a whole number",
    ),
    ("nonfinite", lambda: jaxfed.Host(nonfinite="ignore"), ValueError, "nonfinite='ignore'; use"),
    ("nonfinite None", lambda: jaxfed.Host(nonfinite=None), ValueError, "nonfinite=None; use one"),
    ("population", lambda: jaxfed.Host(population="disk"), ValueError, "population='disk'; use"),
    (
        "population list",
        lambda: jaxfed.Host(population=["host"]),
        ValueError,
        "population=['host']; use one of ('auto', 'device', 'host', 'mapped')",
    ),
    ("merges", lambda: jaxfed.Host(merges="never"), ValueError, "merges='never'; use one of"),
    ("stream text", lambda: jaxfed.Host(stream="no"), ValueError, "stream='no'; use True, False,"),
    ("stream 1", lambda: jaxfed.Host(stream=1), ValueError, "stream=1; use True, False, or None"),
    # what is run, and where
    ("a run there", lambda: run(directory=begun()), FileExistsError, "begun holds a run already;"),
    (
        "files there",
        lambda: in_a_folder_with("config.py"),
        FileExistsError,
        ". has config.py, but no settings.json: no run can begin there before they are",
    ),
    ("a file", lambda: run(directory=written("f", "")), FileExistsError, "f is a file; choose"),
    (
        "in a file",
        lambda: run(directory=written("f", "") + "/run"),
        OSError,
        "f/run could not be written: Not a directory; put this right, and then run or",
    ),
    ("no run to resume", lambda: resumed("x"), FileNotFoundError, "x has no settings.json: it is"),
    (
        "a file to resume",
        lambda: resumed(written("f", "")),
        FileNotFoundError,
        "f has no settings.json: it is no run's folder, or its run was stopped before",
    ),
    ("resume nowhere", lambda: run(resume=True), ValueError, "resume=True needs the directory of"),
    ("another seed", lambda: resumed(seed=3), ValueError, "the run was started with seed=3, not"),
    ("another cohort", lambda: resumed(cohort=3), ValueError, "the run was started with"),
    (
        "allow a name",
        lambda: run(directory=begun(), resume=True, allow="seed"),
        TypeError,
        'allow is a str; give several names, such as ("seed",)',
    ),
    (
        "settings a list",
        lambda: (written("x/settings.json", "[]"), resumed("x")),
        ValueError,
        "x/settings.json is damaged",
    ),
    (
        "settings cut",
        lambda: (written("x/settings.json", '{"rounds": '), resumed("x")),
        ValueError,
        "x/settings.json is damaged",
    ),
    # the probe
    ("no run to probe", lambda: probed(), FileNotFoundError, "nowhere has no settings.json: it"),
    (
        "a file to probe",
        lambda: probed(written("f", "")),
        FileNotFoundError,
        "f has no settings.json: it is no run's folder, or its run was stopped before",
    ),
    ("depth 0", lambda: probed(depth=0), ValueError, "depth=0; use at least 1"),
    ("depth half", lambda: probed(depth=1.5), TypeError, "depth=1.5 is a float; give a whole"),
    ("depth text", lambda: probed(depth="20"), TypeError, "depth='20' is a str; give a whole"),
    ("probes 1", lambda: probed(probes=1), ValueError, "probes=1; use at least 2"),
    ("a dict as host", lambda: run(host={"chunk": 2}), TypeError, "host is a dict; give Host("),
    ("a number as host", lambda: run(host=3), TypeError, "host is a int; give Host("),
    ("a name to run", lambda: jaxfed.run("mine"), TypeError, "experiment is a str; give Exper"),
    (
        "an algorithm to run",
        lambda: jaxfed.run(fedavg()),
        TypeError,
        "experiment is a Algorithm; give Experiment(data, algorithm, ...)",
    ),
    ("a number as directory", lambda: run(directory=3), TypeError, "directory is a int; give the"),
    ("an empty directory", lambda: run(directory=""), ValueError, "directory='' is empty; name"),
    ("resume yes", lambda: run(resume="yes"), TypeError, "resume is a str; give True or False"),
    (
        "settings without an experiment",
        lambda: run(directory=Path(written("r/settings.json", "{}")).parent, resume=True),
        ValueError,
        "settings.json is damaged (it has no experiment); put a copy of it back",
    ),
    ("top 0", lambda: probed(top=0), ValueError, "top=0; use at least 1"),
    ("top above depth", lambda: probed(top=21), ValueError, "top=21 is above depth=20; use at"),
    ("batch 0", lambda: probed(batch=0), ValueError, "batch=0; use at least 1"),
    ("batch True", lambda: probed(batch=True), TypeError, "batch=True is a bool; give a whole"),
    ("ranks empty", lambda: probed(ranks=()), ValueError, "ranks=(); give one or more, each at"),
    ("ranks 0", lambda: probed(ranks=(0, 1)), ValueError, "ranks[0]=0; use at least 1"),
    ("ranks a number", lambda: probed(ranks=4), TypeError, "ranks is a int; give several whole"),
    ("ranks half", lambda: probed(ranks=(1.5,)), TypeError, "ranks[0]=1.5 is a float; give a"),
    ("part", lambda: probed(part="all"), ValueError, "part='all'; use one of ('weights',"),
    ("paths", lambda: probed(paths="*dense"), ValueError, "paths='*dense' is no regular"),
    ("paths a list", lambda: probed(paths=["dense"]), TypeError, "paths=['dense'] is a list;"),
    ("clients a number", lambda: probed(clients=3), TypeError, "clients is a int; give several"),
    ("clients half", lambda: probed(clients=(0.5,)), TypeError, "clients[0]=0.5 is a float; give"),
    ("round -1", lambda: probed(round=-1), ValueError, "round=-1; use at least 0"),
    ("round half", lambda: probed(round=0.5), TypeError, "round=0.5 is a float; give a whole"),
    (
        "a dict as probe",
        lambda: probe.of_run(experiment(), "x", {"depth": 3}),
        TypeError,
        "probe is a dict; give a Probe, such as probe.Probe(depth=10)",
    ),
    ("a name to probe", lambda: probe.of_run("mine", "x"), TypeError, "experiment is a str; give"),
]


@pytest.mark.parametrize(
    ("call", "error", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_wrong_input_ends_in_one_sentence(call, error, sentence, tmp_path, monkeypatch, capfd):
    refusals.check(call, error, sentence, tmp_path, monkeypatch)
