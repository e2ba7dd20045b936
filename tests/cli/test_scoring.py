"""By what trials are compared."""

import json
import math

import launched
import pytest

from jaxfed.cli import recorded, scoring

pytestmark = pytest.mark.quick


def run(tmp_path, **changes):
    """After rounds 5, 10, 15 and 20: accuracy 1 - .9^t, clients' own the same; test_loss 1."""
    folder = launched.recorded_folder(tmp_path / "a", **changes)
    return recorded.read(folder)


def test_the_newest_value_by_a_round_counts(tmp_path):
    found = run(tmp_path)
    assert scoring.score(found, scoring.COMMON) == 1 - 0.9**20
    assert scoring.score(found, scoring.COMMON, 14) == 1 - 0.9**10
    assert scoring.score(found, scoring.COMMON, 4) == -math.inf
    assert scoring.score(found, ("personal/accuracy/p10",)) == pytest.approx(0.9 - 0.9**20)


def test_of_what_falls_less_is_better(tmp_path):
    found = run(tmp_path)
    assert scoring.score(found, ("test_loss",)) == -1
    for record in found.records:
        if "personal" in record:
            record["personal"]["loss"] = {"mean": 3.0}
    assert scoring.score(found, ("personal/loss/mean",)) == -3


@pytest.mark.parametrize(
    ("asked", "own", "expected"),
    [
        (None, False, ("accuracy", "test_loss")),
        (None, True, ("personal/accuracy/mean", "personal/loss/mean", "accuracy", "test_loss")),
        ("f1", True, ("f1",)),
    ],
)
def test_what_clients_deploy_comes_first(asked, own, expected):
    assert scoring.measures(asked, own) == expected


def test_clients_without_tests_leave_the_common_model(tmp_path):
    found = run(tmp_path, personal=False)
    with pytest.warns(UserWarning, match="compared by the common model; give federate a personal"):
        assert scoring.score(found, scoring.measures(None, own=True)) == 1 - 0.9**20


def test_a_score_that_is_not_finite_is_the_worst(tmp_path):
    found = run(tmp_path)
    found.records[-1]["accuracy"] = math.nan
    assert scoring.score(found, scoring.COMMON) == -math.inf


def test_a_measure_that_no_evaluation_has_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--measure f1: a has no such measure; it has accuracy, "):
        scoring.score(run(tmp_path), ("f1",))


@pytest.mark.parametrize("words", ["f1", "test_loss", "personal/f1/p10", "personal/accuracy/union"])
def test_measures_of_the_records_can_be_asked_for(words):
    assert scoring.measure(["--measure", words]) == words
    assert scoring.measure(None) is None


@pytest.mark.parametrize(
    "words", ["", "a b/c", "personal/accuracy", "personal/a/median", "../x", "a/b/c"]
)
def test_what_no_record_can_have_is_refused(words):
    with pytest.raises(ValueError, match="personal/accuracy/mean"):
        scoring.measure(["--measure", *words.split()])


def test_names_of_measures_come_from_folders_as_they_may_be_shown(tmp_path):
    folder = launched.recorded_folder(tmp_path / "a", rounds=5)
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    last["personal"]["\u001b[31mred"] = {"mean": 1.0}
    (folder / "metrics.jsonl").write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    names = recorded.personal(recorded.read(folder))
    assert "personal/accuracy/mean" in names
    assert not any("red" in name for name in names)
