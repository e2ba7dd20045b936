"""A run ends when its stop_when says so, and stays ended."""

import dataclasses

import pytest
import refusals

import jaxfed
from jaxfed.algorithms import fedavg

HOST = jaxfed.Host(devices=1, chunk=2, fuse=1, checkpoint_every=0)


def test_a_run_ends_after_the_evaluation_that_it_is_told_to_and_stays_ended(tmp_path):
    algorithm = fedavg(refusals.task(), refusals.WORK, client_optimizer=refusals.SGD)
    seen = []

    def stop_when(records):
        seen.append([r["round"] for r in records])
        return len(records) >= 4

    e = jaxfed.Experiment(
        refusals.data(), algorithm, rounds=8, cohort=2, evaluate_every=2, stop_when=stop_when
    )
    records = list(jaxfed.run(e, tmp_path, HOST))
    assert seen == [[1, 2], [1, 2, 3, 4]]
    assert [r["round"] for r in records] == [1, 2, 3, 4]
    assert list(jaxfed.run(e, tmp_path, HOST, resume=True)) == []
    assert jaxfed.load(tmp_path, experiment=e).round == 4
    longer = dataclasses.replace(e, stop_when=lambda records: len(records) >= 6)
    more = list(jaxfed.run(longer, tmp_path, HOST, resume=True))
    assert [r["round"] for r in more] == [5, 6]


def test_a_resumed_run_stops_where_an_unbroken_one_does(tmp_path):
    """What is not finite is None in both, as it is in the folder."""
    task = refusals.task()

    def summary(sums, count):
        return {"loss": sums["loss"] / count, "f1": float("nan")}

    algorithm = fedavg(task._replace(summary=summary), refusals.WORK, client_optimizer=refusals.SGD)
    seen = []

    def stop_when(records):
        seen.append([r.get("f1", "") for r in records if "test_loss" in r])
        return False

    e = jaxfed.Experiment(
        refusals.data(), algorithm, rounds=1, cohort=2, evaluate_every=1, stop_when=stop_when
    )
    list(jaxfed.run(e, tmp_path, HOST))
    list(jaxfed.run(dataclasses.replace(e, rounds=2), tmp_path, HOST, resume=True))
    assert seen[0] == [None]
    assert seen[-1] == [None, None]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("values", "ends"),
    [
        ([0.1, 0.2, 0.3], False),
        ([0.1, 0.3, 0.3, 0.2], True),
        ([0.1, 0.3, 0.2, 0.4], False),
        ([0.1, None, 0.3, 0.3], False),
        ([0.3, 0.1], False),
    ],
)
def test_patience_ends_after_evaluations_without_a_new_best(values, ends):
    records = [{"round": i} | ({} if v is None else {"f1": v}) for i, v in enumerate(values)]
    assert jaxfed.patience("f1", 2)(records) is ends
    losses = [{n: 1 - v if n == "f1" else v for n, v in r.items()} for r in records]
    losses = [{"test_loss" if n == "f1" else n: v for n, v in r.items()} for r in losses]
    assert jaxfed.patience("test_loss", 2)(losses) is ends
    own = [{"personal": {"f1": {"mean": r.get("f1")}}} for r in records]
    assert jaxfed.patience("personal/f1/mean", 2)(own) is ends


@pytest.mark.quick
@pytest.mark.parametrize("measure", ["f1", "personal/f1/mean"])
def test_a_measure_that_has_not_been_finite_yet_is_no_wrong_name(measure):
    records = [{"round": 1, "f1": None, "personal": {"f1": {"mean": None}}}]
    assert jaxfed.patience(measure)(records) is False
    with pytest.raises(ValueError, match="no record has 'personal/f1/median'"):
        jaxfed.patience("personal/f1/median")(records)


@pytest.mark.quick
def test_a_wrong_stop_is_refused():
    with pytest.raises(ValueError, match="no record has 'f1'; they have round, loss"):
        jaxfed.patience("f1")([{"round": 1, "loss": 2.0}])
    with pytest.raises(ValueError, match="'personal' is no number in a record; it is"):
        jaxfed.patience("personal")([{"round": 1, "personal": {}}])
    with pytest.raises(ValueError, match="evaluations=0; use at least 1"):
        jaxfed.patience(evaluations=0)
    algorithm = fedavg(refusals.task(), refusals.WORK, client_optimizer=refusals.SGD)
    for wrong, error, sentence in (
        ({"stop_when": 3}, TypeError, "stop_when=3 is a int; give a function"),
        ({"stop_when": all, "evaluate_every": 0}, ValueError, "evaluate_every=0 has none"),
    ):
        with pytest.raises(error, match=sentence):
            jaxfed.Experiment(refusals.data(), algorithm, rounds=1, cohort=2, **wrong)
