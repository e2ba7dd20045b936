"""Successive halving: the rule, and that a sweep follows it and goes on after a kill."""

import json
import math
import shutil
import signal

import launched
import pytest
from forked import Forked

from jaxfed.cli import halving, main, product, scoring, trials

SMALL = launched.SMALL
RATES = (".0001", "0.03", "0.1", ".001")
ASKED = (SMALL, "--rounds", 4, "--evaluate-every", 1, "--learning-rate", *RATES)
QUICK = ("--chunk", "5", "--fuse", "1", "--devices", "1")


def command(*arguments):
    main.main(list(map(str, arguments)))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("settings", "rounds", "every", "eta", "expected"),
    [
        (8, 80, 10, 2, [10, 20, 40]),
        (9, 81, 1, 3, [9, 27]),
        (10, 81, 1, 3, [3, 9, 27]),
        (4, 10, 3, 2, [3, 6]),
        (16, 4, 2, 2, [2]),  # several halvings would be of one evaluation
        (1, 50, 10, 2, []),
        (4, 10, 10, 2, []),
    ],
)
def test_rungs_are_powers_of_eta_before_the_end_at_evaluations(
    settings, rounds, every, eta, expected
):
    assert halving.rungs(settings, rounds, every, eta) == expected


@pytest.mark.quick
def test_the_best_of_every_eta_are_kept_and_of_equal_ones_the_first():
    scores = {"a": 0.5, "b": 0.7, "c": -math.inf, "d": 0.7, "e": 0.5}
    assert halving.kept(scores, 2) == ["a", "b", "d"]
    assert halving.kept(scores, 3) == ["b", "d"]
    assert halving.kept(scores, 5) == ["b"]


@pytest.mark.quick
def test_a_score_is_the_mean_over_seeds_of_the_newest_evaluation_by_then(tmp_path):
    tried = []
    for rate, seed in ((0.1, 0), (0.1, 1), (0.3, 0), (0.3, 1)):
        settings = {"rate": rate, "seed": seed}
        folder = tmp_path / f"{rate},{seed}"
        launched.recorded_folder(folder, rate=rate + seed / 10, seed=seed)
        tried.append(product.Trial(folder, [], settings))
    low, high = halving.scores(tried, 12, [tried[3].folder], scoring.COMMON).values()
    assert low == pytest.approx(1 - (0.9**10 + 0.8**10) / 2)
    assert high == -math.inf


@pytest.fixture(scope="module")
def halved(tmp_path_factory):
    """(folder, printed) of a sweep over four rates, which is halved twice."""
    folder = tmp_path_factory.mktemp("halved") / "s"
    command("sweep", *ASKED, *QUICK, "--successive-halving", 2, "--out", folder)
    return folder


def accuracies(folder):
    """{rate: [accuracy after each round]}."""
    found = {}
    for rate in map(float, RATES):
        found[rate] = [r["accuracy"] for r in launched.records(folder / f"learning_rate={rate}")]
    return found


def test_a_sweep_drops_those_that_an_oracle_drops(halved):
    """The oracle is the rule in plain Python, on the accuracies that were recorded."""
    recorded, going = accuracies(halved), list(map(float, RATES))
    expected = {}
    for rung in (1, 2):
        ranked = sorted(going, key=lambda rate: -recorded[rate][rung - 1])
        expected |= dict.fromkeys(ranked[len(going) // 2 :], rung)
        going = ranked[: len(going) // 2]
    expected |= dict.fromkeys(going, 4)
    assert {rate: len(values) for rate, values in recorded.items()} == expected
    assert sorted(expected.values()) == [1, 1, 2, 4]
    ended = json.loads((halved / "ended.json").read_text())
    assert ended == {f"learning_rate={going[0]}": True}


def test_the_same_command_runs_nothing_again_and_one_that_was_cut_goes_on(halved, tmp_path, capsys):
    folder = tmp_path / "s"
    shutil.copytree(halved, folder)
    best = max(accuracies(halved), key=lambda rate: len(accuracies(halved)[rate]))
    shutil.rmtree(folder / f"learning_rate={best}")
    (folder / "ended.json").unlink()
    for _ in range(2):
        command("sweep", *ASKED, *QUICK, "--successive-halving", "--out", folder)
        for rate in map(float, RATES):
            name = f"learning_rate={rate}"
            assert launched.records(folder / name) == launched.records(halved / name)
    assert capsys.readouterr().out.count("finished ") == 1


@pytest.mark.full
def test_survivors_of_a_rung_fill_the_axis_of_trials_again(halved, tmp_path, monkeypatch):
    """Two at once: each of the first two axes loses one of its trials, and the others share one."""
    axes, go = [], trials.go

    def noted(group, *how):
        axes.append([trial.settings["learning_rate"] for trial in group])
        return go(group, *how)

    monkeypatch.setattr(trials, "go", noted)
    folder = tmp_path / "s"
    command("sweep", *ASKED, *QUICK, "--at-once", 2, "--successive-halving", "--out", folder)
    rates = list(map(float, RATES))
    assert [len(axis) for axis in axes] == [2, 2, 2, 1]
    assert axes[:2] == [rates[:2], rates[2:]]
    assert [rate in rates[:2] for rate in axes[2]] == [True, False]
    for rate, alone in accuracies(halved).items():
        found = accuracies(folder)[rate]
        assert len(found) == len(alone)
        assert found == pytest.approx(alone)


@pytest.mark.full
def test_a_halved_sweep_that_was_killed_goes_on_by_the_same_command(halved, tmp_path):
    begun = 0
    for at in (30, 90):
        folder = tmp_path / f"s{at}"
        asked = ("sweep", *ASKED, *QUICK, "--successive-halving", "--out", folder)
        launched.finished(Forked(*asked, at=at, folder=folder), -signal.SIGKILL)
        begun += (folder / "sweep.json").exists()
        launched.finished(Forked(*asked))
        for rate in map(float, RATES):
            name = f"learning_rate={rate}"
            assert launched.records(folder / name) == launched.records(halved / name)
    assert begun


@pytest.mark.quick
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (("--successive-halving", 1), "--successive-halving 1: give a whole number from 2"),
        (("--successive-halving", "x"), "--successive-halving x: give a whole number from 2"),
        (("--successive-halving", "--tune", "learning_rate"), "both choose"),
        (("--evaluate-every", 0, "--successive-halving"), "needs evaluations"),
        (("--rounds", 2, 4, "--successive-halving"), "rounds and evaluations of all trials"),
    ],
)
def test_what_cannot_be_halved_ends_in_a_sentence(asked, reason, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        command("sweep", SMALL, "--learning-rate", *RATES, *asked, "--out", tmp_path / "s")
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "s" / "sweep.json").exists()
