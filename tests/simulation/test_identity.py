"""What identifies a run: it is the same in every process, and changes with what changes the run."""

import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import at_once
import launched
import numpy as np
import optax
import pytest
from small import experiment

import jaxfed
from jaxfed import local
from jaxfed.algorithms import fedavg
from jaxfed.simulation import identity


@pytest.fixture(scope="module")
def first():
    return experiment()


def of(e, settings=(), config=None):
    return identity.identity(e, dict(settings), config)


def changed(before, after):
    return identity.changes(json.loads(json.dumps(before)), after)


ELSEWHERE = """
import json, sys
sys.path.insert(0, sys.argv[1])
from small import experiment
from jaxfed.simulation import identity
experiment(method="fedloru")  # traced before, which must not matter
print(json.dumps(identity.identity(experiment(), {}, "text")))
"""


@pytest.mark.full
def test_it_is_the_same_in_another_process(first):
    here = str(Path(launched.__file__).parent)
    printed = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, here], capture_output=True, text=True, check=True
    )
    assert json.loads(printed.stdout) == of(first, config="text")


def test_a_rate_is_named_with_both_values(first):
    assert changed(of(first), of(experiment(learning_rate=0.3))) == {
        "algorithm.run_round.client.learning_rate": [0.03, 0.3]
    }


def test_a_rate_inside_an_optimizer_is_named(first):
    def trained(rate):
        made = fedavg(first.task, local.Work(10, epochs=1), client_optimizer=optax.sgd(rate))
        return dataclasses.replace(first, algorithm=made)

    found = changed(of(trained(0.1)), of(trained(5.0)))
    assert {identity.short(name): values for name, values in found.items()} == {
        "learning_rate": [0.1, 5.0]
    }
    identity.check_allowed(found, ["learning-rate"])


def test_a_constant_that_no_closure_names_is_seen(first):
    def scaled(by):
        def run_round(server, cohort, for_each_client):
            server, states, metrics = first.algorithm.run_round(server, cohort, for_each_client)
            return server, states, {**metrics, "scaled": eval(by)}

        return dataclasses.replace(first, algorithm=first.algorithm._replace(run_round=run_round))

    before = of(scaled("server.base['dense_0/kernel'].sum() * 2"))
    after = of(scaled("server.base['dense_0/kernel'].sum() * 3"))
    before["hyperparameters"] = after["hyperparameters"]  # only the text `by` is named there
    assert list(changed(before, after)) == ["algorithm"]


@pytest.mark.parametrize("where", ["train", "personal", "test"])
def test_one_changed_byte_of_the_data_is_seen(first, where):
    split = getattr(first.data, where)
    examples = split if where == "test" else split.examples
    image = np.array(examples["image"])
    image.reshape(-1)[-1] += 1
    examples = {**examples, "image": image}
    other = examples if where == "test" else dataclasses.replace(split, examples=examples)
    data = dataclasses.replace(first.data, **{where: other})
    found = changed(of(first), of(dataclasses.replace(first, data=data)))
    assert list(found) == ["data"]


def test_of_a_large_array_both_ends_count(monkeypatch):
    monkeypatch.setattr(identity, "SAMPLE", 2**12)
    array = np.zeros((5000, 7), np.float32)

    def checksum():
        return identity._checksum(*identity._of_arrays(array))

    before = checksum()
    for row in (0, -1):
        array[row, -1] = 1
        assert checksum() != before
        array[row, -1] = 0
    assert checksum() == before


def test_settings_explain_the_algorithm_that_they_make(first):
    before = of(first, {"learning_rate": 0.03, "rounds": 20}, "text")
    after = of(experiment(learning_rate=0.3), {"learning_rate": 0.3, "rounds": 30}, "text")
    assert changed(before, after) == {"learning_rate": [0.03, 0.3]}


def test_another_text_is_another_config(first):
    assert list(changed(of(first, config="a"), of(first, config="b"))) == ["config"]


def test_versions_are_one_name_with_what_differs(first):
    before = of(first)
    before["versions"]["jax"] = "0.9"
    found = changed(before, of(first))
    assert found == {"versions": ["jax 0.9", f"jax {identity.versions()['jax']}"]}


def test_a_run_of_before_is_compared_by_what_it_holds(first):
    assert changed({"experiment": {"cohort": 5, "seed": 1}}, of(first)) == {"seed": [1, 0]}


def test_a_change_is_refused_with_its_remedy_or_allowed_by_name():
    found = {"rate": [0.03, 0.3], "a.client.work.epochs": [1, 2], "data": ["x", "y"]}
    with pytest.raises(ValueError, match=r"rate=0.03, not 0.3; epochs=1, not 2; another data") as e:
        identity.check_allowed(found, ())
    assert "`--allow data epochs rate`" in str(e.value)
    with pytest.raises(ValueError, match="started with epochs=1, not 2: resume"):
        identity.check_allowed(found, ("rate", "data"))
    identity.check_allowed(found, ("rate", "data", "epochs"))


@pytest.mark.full
def test_a_changed_run_from_python_is_refused_or_allowed_and_recorded(tmp_path):
    host = jaxfed.Host(devices=1, chunk=5, fuse=1)
    list(jaxfed.run(experiment(rounds=2), tmp_path, host))
    other = experiment(rounds=3, learning_rate=0.3)
    with pytest.raises(ValueError, match=r"learning_rate=0.03, not 0.3.*allow=\('learning_rate',"):
        jaxfed.run(other, tmp_path, host, resume=True)
    assert not (tmp_path / "lock").exists()
    list(jaxfed.run(other, tmp_path, host, resume=True, allow=["learning_rate"]))
    list(jaxfed.run(other, tmp_path, host, resume=True))  # it holds from now on
    (change,) = json.loads((tmp_path / "settings.json").read_text())["changes"]
    assert change["from_round"] == 3
    assert [0.03, 0.3] in change.values()


@pytest.mark.quick
def test_examples_of_64_bits_on_the_host_are_no_warning():
    """JAX 0.12 warns of a shape that asks for more bits than it has."""
    made = at_once.experiment()
    assert made.data.train.examples["label"].dtype == np.int64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        identity.algorithm_checksum(made)
