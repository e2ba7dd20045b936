"""What evaluations measure has names that records can have; a user's own are of the server."""

import dataclasses

import at_once
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refusals

import jaxfed
from jaxfed.algorithms import fedavg
from jaxfed.simulation import measures

HOST = jaxfed.Host(devices=2, chunk=1, fuse=1, checkpoint_every=0)


@pytest.mark.quick
@pytest.mark.parametrize("name", ["f1/macro", "../f1", "a\nb", ""])
def test_a_measure_has_a_name_that_a_file_can_have(name):
    sums = {"loss": np.zeros((1,))}
    measures.check(lambda sums, count: {"loss": 0.0, "top-5 of 10": 1.0}, sums)
    with pytest.raises(ValueError, match=r"a measure is called .* rename it"):
        measures.check(lambda sums, count: {"loss": 0.0, name: 1.0}, sums)
    with pytest.raises(ValueError, match=r"a measure is called .* rename it"):
        measures.of_server(lambda server, done: {name: 1.0}, None, 0)


def experiment(server_measures, **settings):
    algorithm = fedavg(refusals.task(), refusals.WORK, client_optimizer=refusals.SGD)
    sizes = {"rounds": 5, "cohort": 2, "evaluate_every": 2, **settings}
    return jaxfed.Experiment(refusals.data(), algorithm, **sizes, server_measures=server_measures)


def norm(server, done):
    """Of the model that the server then has, and the round."""
    return {"norm": jnp.linalg.norm(jax.tree.leaves(server.theta)[0]), "at": done}


def test_each_evaluation_measures_the_server_also_in_a_resumed_run(tmp_path):
    """The last one's is that of the model that the run left behind."""
    e = at_once.experiment(rounds=5, server_measures=norm)
    records = list(jaxfed.run(dataclasses.replace(e, rounds=4), tmp_path, HOST))
    records += jaxfed.run(e, tmp_path, HOST, resume=True)
    assert [(r["round"], r.get("at")) for r in records] == [
        (1, None), (2, 2), (3, None), (4, 4), (5, 5)
    ]  # fmt: skip
    left = jaxfed.load(tmp_path, experiment=e)
    assert records[-1]["norm"] == pytest.approx(float(norm(left.model.server, 5)["norm"]))
    assert len({r["norm"] for r in records if "norm" in r}) == 3
    assert "norm" in jaxfed.results(tmp_path).columns


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (lambda server, done: 3.0, TypeError, "what server_measures returns is a float; give numb"),
        (lambda server, done: {"x": np.zeros(2)}, TypeError, r"gives 'x': ndarray \(2,\); give ea"),
        (lambda server, done: {"x": "high"}, TypeError, "gives 'x': str"),
        (lambda server, done: {3: 1.0}, TypeError, "server_measures gives 3: float"),
        (lambda server, done: {"accuracy": 1.0}, ValueError, "'accuracy' has a name that records"),
        (lambda server, done: {"f1": 1.0}, ValueError, "gives 'f1', which records have; rename it"),
    ],
)
def test_what_is_no_measure_of_a_server_is_refused_before_the_first_round(
    given, error, message, tmp_path
):
    e = experiment(given)
    task = e.task._replace(summary=lambda sums, count: {"loss": sums["loss"] / count, "f1": 0.5})
    algorithm = fedavg(task, refusals.WORK, client_optimizer=refusals.SGD)
    with pytest.raises(error, match=message):
        jaxfed.run(dataclasses.replace(e, algorithm=algorithm), tmp_path / "run", HOST)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_measure_of_the_rounds_is_not_overwritten():
    """Which is known at the first evaluation only."""
    e = at_once.experiment(server_measures=lambda server, done: {"drift": 1.0})

    def run_round(server, cohort, for_each_client):
        found, states, metrics = e.algorithm.run_round(server, cohort, for_each_client)
        return found, states, {**metrics, "drift": 2.0}

    made = dataclasses.replace(e, algorithm=e.algorithm._replace(run_round=run_round))
    with pytest.raises(ValueError, match="server_measures gives 'drift', which records have"):
        list(jaxfed.run(made, host=HOST))


def test_it_needs_evaluations_and_a_function():
    with pytest.raises(ValueError, match="server_measures is asked after each evaluation, and"):
        experiment(norm, evaluate_every=0)
    with pytest.raises(TypeError, match="give a function of server and round, or None"):
        experiment({"norm": 1.0})
