"""Sweeps: which trials there are, that they are the single runs, and that a sweep goes on."""

import json
import shutil
import signal

import jax
import launched
import pytest
from forked import Forked

from jaxfed.cli import main, options, product, scoring, sweep

SMALL = launched.SMALL
QUICK = ("--chunk", "5", "--fuse", "2", "--devices", "1")
NAMES = tuple(f"seed={seed},learning_rate={rate}" for seed in (0, 1) for rate in (0.01, 0.1))
ASKED = (SMALL, "--rounds", 2, "--seed", 0, 1, "--learning-rate", ".01", "0.1", *QUICK)


def command(*arguments):
    main.main(list(map(str, arguments)))


def sentence(capsys, *arguments):
    """The sentence in which the command ends."""
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code == 2
    return launched.without_progress(capsys.readouterr().err)


def numbers(folder):
    """{"0/loss": number} of all that a run recorded."""
    flat, _ = jax.tree.flatten_with_path(launched.records(folder))
    return {jax.tree_util.keystr(path): value for path, value in flat}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of a sweep over two rates and two seeds, which deal the data otherwise."""
    folder = tmp_path_factory.mktemp("sweep") / "s"
    command("sweep", *ASKED, "--out", folder)
    return folder


def test_a_trial_is_the_run_of_its_settings(swept, tmp_path):
    for name in NAMES:
        saved = json.loads((swept / name / "settings.json").read_text())
        assert [saved["settings"][n] for n in ("seed", "learning_rate")] == [
            float(part.partition("=")[2]) for part in name.split(",")
        ]
    name = NAMES[3]
    saved = json.loads((swept / name / "settings.json").read_text())
    command("run", SMALL, *saved["arguments"][:-1], tmp_path / name)
    assert numbers(swept / name) == pytest.approx(numbers(tmp_path / name), rel=1e-4)


def test_only_trials_that_are_not_finished_are_run(swept, capsys):
    before = [(swept / name / "metrics.jsonl").stat().st_mtime_ns for name in NAMES]
    shutil.rmtree(swept / NAMES[0])
    command("sweep", *ASKED, "--out", swept)
    printed = capsys.readouterr().out
    assert "4, 3 of them finished" in printed
    assert printed.count("finished ") == 1
    after = [(swept / name / "metrics.jsonl").stat().st_mtime_ns for name in NAMES]
    assert after[0] > before[0]
    assert after[1:] == before[1:]


def test_the_best_value_is_that_of_trials_that_ended(swept, tmp_path, capsys):
    """Stopped early is an end; diverged is none."""
    folder = tmp_path / "s"
    shutil.copytree(swept, folder)
    _, trials = product.trials(
        options.read(SMALL), product.given([str(word) for word in (*ASKED[1:], "--out", folder)])
    )
    trials = [t for t in trials if t.settings["seed"] == 0]
    scores = {t.settings["learning_rate"]: sweep._score(t, scoring.COMMON) for t in trials}
    good = max(scores, key=lambda rate: scores[rate])
    for trial in trials:  # as if stop_when had ended them
        path = trial.folder / "settings.json"
        content = json.loads(path.read_text())
        content["experiment"]["rounds"] = 6
        path.write_text(json.dumps(content))
    tuning = product.Tuning(("learning_rate",), {}, ("seed", "on"))
    asked = trials, "learning_rate", tuning, scoring.COMMON
    assert set(sweep._best(*asked).values()) == {good}
    (folder / "ended.json").write_text(
        json.dumps({t.folder.name: t.settings["learning_rate"] != good for t in trials})
    )
    assert set(sweep._best(*asked).values()) == set(scores) - {good}
    (folder / "ended.json").write_text(json.dumps({t.folder.name: False for t in trials}))
    with pytest.raises(ValueError, match=r"--tune learning_rate: every trial of 0\.01, 0\.1 div"):
        sweep._best(*asked)
    capsys.readouterr()


def test_report_and_resume_read_a_trial(swept, capsys):
    command("report", *(swept / name for name in NAMES))
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    command("report", swept, "--group", "seed")
    printed = capsys.readouterr().out
    assert f"{swept / 'plots' / 'accuracy_by_round.png'}" in printed
    command("report", *swept.iterdir())
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    command("resume", swept / NAMES[0])
    assert [r["round"] for r in launched.records(swept / NAMES[0])] == [1, 2]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ((*ASKED, "--rank", 3), "other settings, or is none of"),
        ((SMALL, "--rounds", 2, "--learning-rate", 0.1, 0.2), "other settings, or is none of"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(swept, asked, reason, capsys):
    assert reason in sentence(capsys, "sweep", *asked, "--out", swept)


def test_a_folder_that_holds_something_else_is_refused(swept, capsys, tmp_path):
    assert "holds a run already" in sentence(capsys, "sweep", *ASKED, "--out", swept / NAMES[0])
    (tmp_path / "f").touch()
    assert "is a file; choose" in sentence(capsys, "sweep", *ASKED, "--out", tmp_path / "f")
    (tmp_path / "sweep.json").write_text("{}")
    assert "damaged" in sentence(capsys, "sweep", *ASKED, "--out", tmp_path)
    edited = {**json.loads((swept / "sweep.json").read_text()), "text": "pass"}
    (tmp_path / "sweep.json").write_text(json.dumps(edited))
    assert "another config" in sentence(capsys, "sweep", *ASKED, "--out", tmp_path)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ((), "give a config: jaxfed sweep CONFIG"),
        ((SMALL, "--seed", 0), "no setting has several values"),
        ((SMALL, "--seed", 0, 0), "two trials have the same seed"),
        ((SMALL, "--seed", 0, "--seed", 1), "--seed is given twice"),
        ((SMALL, "--seed", 0, "x"), "--seed wants int, not 'x'"),
        ((SMALL, "--sed", 0, 1), "no option --sed; did you mean --seed?"),
        ((SMALL, "--chunk", 1, 2), "--chunk wants int or auto, not '1 2'"),
        ((SMALL, 3, "--seed", 0, 1), "cannot read"),
        ((SMALL, "--tune", "rank", "--seed", 0, 1), "name settings that have several values"),
        ((SMALL, "--tune", "--seed", 0, 1), "name settings that have several values"),
        ((*ASKED, "--tune", "learning_rate", "learning-rate"), "name settings that have several"),
        ((*ASKED, "--tune", "seed"), "a seed is nothing to tune"),
        ((*ASKED, "--tune", "learning_rate", "--tune-seed", 7, 8), "give one seed"),
        ((*ASKED, "--tune-seed", 7), "--tune-seed is for the trials of --tune; give both"),
        ((*ASKED, "--tune-rounds", 7), "--tune-rounds is for the trials of --tune; give both"),
        ((*ASKED, "--tune", "learning_rate", "--tune-seed", "x"), "--tune-seed x: give one seed"),
        ((*ASKED, "--tune", "learning_rate", "--tune-rounds", 0), "give one number from 1 on"),
        ((SMALL, "--tune", "rounds", "--rounds", 2, 3, "--tune-rounds", 2), "exclude each other"),
        ((*ASKED, "--tune", "learning_rate", "--on", "test"), "leave --on out"),
        ((SMALL, "--measure", "a b/c", "--seed", 0, 1), "--measure a b/c: give one measure"),
        ((SMALL, "--measure", "--seed", 0, 1), "--measure : give one measure"),
        ((SMALL, "--seed", 0, 1, "--name", "n"), "--out and --name both name"),
        ((SMALL, "--learning-rate", 0.1, "nan"), "learning_rate"),
        ((SMALL, "--rank", 4, 0), "rank"),
    ],
)
def test_what_no_sweep_can_be_of_ends_in_a_sentence(asked, reason, capsys, tmp_path):
    printed = sentence(capsys, "sweep", *asked, "--out", tmp_path / "s")
    assert reason in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "s" / "sweep.json").exists()


@pytest.mark.full
def test_a_rate_is_chosen_on_validation_and_run_for_all_seeds(tmp_path, capsys):
    asked = (SMALL, "--rounds", 6, *QUICK, "--tune", "learning_rate", "--seed", 0, 1)
    command("sweep", *asked, "--learning-rate", 1e-6, 0.1, "--out", tmp_path / "s")
    printed = capsys.readouterr()
    assert "chosen   learning_rate=0.1, of 1e-06, 0.1" in printed.out
    assert "best at an end of what was tried" in printed.err
    names = {path.name for path in (tmp_path / "s").iterdir()}
    assert names == {
        "sweep.json",
        "ended.json",
        "tune",
        *(f"seed={s},learning_rate=0.1" for s in (0, 1)),
    }
    tuned = json.loads((tmp_path / "s/tune/learning_rate=0.1/settings.json").read_text())
    assert (tuned["settings"]["on"], tuned["settings"]["seed"]) == ("validation", 0)


@pytest.mark.full
def test_several_settings_are_tuned_in_turn_with_a_seed_of_their_own(tmp_path, capsys):
    """The rate beside the rank in the middle, then the rank beside the best rate.

    After two rounds of three.
    """
    asked = (SMALL, "--rounds", 3, *QUICK, "--seed", 0, 1, "--learning-rate", 1e-4, 0.1, 0.03)
    asked = ("sweep", *asked, "--rank", 4, 2, "--out", tmp_path / "s")
    asked = (*asked, "--tune", "learning_rate", "rank", "--tune-seed", 7, "--tune-rounds", 2)
    command(*asked)
    tune = tmp_path / "s" / "tune"
    lengths = {len(launched.records(tune / name)) for name in sweep._ended(tune)}
    ends = {len(launched.records(tmp_path / "s" / n)) for n in sweep._ended(tmp_path / "s")}
    assert (lengths, ends) == ({2}, {3})
    ran = {name: launched.records(tune / name)[-1]["accuracy"] for name in sweep._ended(tune)}
    rates = {rate: ran[f"learning_rate={rate},rank=4"] for rate in (0.0001, 0.1, 0.03)}
    rate = max(rates, key=lambda r: rates[r])
    ranks = {rank: ran[f"learning_rate={rate},rank={rank}"] for rank in (4, 2)}
    rank = max(ranks, key=lambda r: ranks[r])
    assert len(ran) == 4
    assert f"chosen   learning_rate={rate},rank={rank}, of 4, 2" in capsys.readouterr().out
    settings = json.loads((tune / next(iter(ran)) / "settings.json").read_text())["settings"]
    assert (settings["on"], settings["seed"]) == ("validation", 7)
    names = [f"seed={seed},learning_rate={rate},rank={rank}" for seed in (0, 1)]
    assert sorted(sweep._ended(tmp_path / "s")) == names
    command(*asked)
    assert "trials   3, 3 of them finished" in capsys.readouterr().out


PERSONAL = """
import dataclasses, runpy
import optax
from jaxfed import Experiment, local
from jaxfed.algorithms import fedper

small = runpy.run_path({small!r})["experiment"]

def experiment(rounds: int = 4, learning_rate: float = 0.1, seed: int = 0) -> Experiment:
    made = small(rounds=rounds, seed=seed)
    work, sgd = local.Work(10, epochs=1), optax.sgd(learning_rate)
    algorithm = fedper(made.task, work, personal="^full/", client_optimizer=sgd)
    return dataclasses.replace(made, algorithm=algorithm)
"""


@pytest.mark.full
def test_a_method_with_models_of_clients_own_is_tuned_by_them(tmp_path, capsys):
    config = tmp_path / "personal.py"
    config.write_text(PERSONAL.format(small=str(SMALL)))
    rates = (1e-3, 0.01, 0.1, 1.0)
    asked = ("sweep", config, *QUICK, "--learning-rate", *rates, "--seed", 0, 1)
    command(*asked, "--tune", "learning_rate", "--out", tmp_path / "s")
    folders = [tmp_path / f"s/tune/learning_rate={rate}" for rate in rates]
    last = [launched.records(folder)[-1] for folder in folders]
    own = [record["personal"]["accuracy"]["mean"] for record in last]
    best = rates[max(range(len(rates)), key=lambda i: own[i])]
    assert f"chosen   learning_rate={best}," in capsys.readouterr().out
    assert (tmp_path / f"s/learning_rate={best},seed=1").exists()
    assert json.loads((tmp_path / "s/tune/sweep.json").read_text())["own_models"] is True

    common = [record["accuracy"] for record in last]  # asked for, the common model's counts
    other = rates[max(range(len(rates)), key=lambda i: common[i])]
    shutil.copytree(tmp_path / "s/tune", tmp_path / "t/tune")
    asked = (*asked, "--tune", "learning_rate", "--out", tmp_path / "t")
    command(*asked, "--measure", "accuracy")
    assert f"chosen   learning_rate={other}," in capsys.readouterr().out
    printed = sentence(capsys, *asked, "--measure", "f1")
    assert "has no such measure; it has accuracy, test_loss, personal/loss/mean" in printed


@pytest.mark.full
def test_a_sweep_that_was_killed_goes_on_by_the_same_command(swept, tmp_path):
    begun = 0
    for at in (2, 40, 90):
        folder = tmp_path / f"s{at}"
        asked = ("sweep", *ASKED, "--out", folder)
        launched.finished(Forked(*asked, at=at, folder=folder), -signal.SIGKILL)
        begun += (folder / "sweep.json").exists()
        launched.finished(Forked(*asked))
        for name in NAMES:
            assert launched.records(folder / name) == launched.records(swept / name)
    assert begun


@pytest.mark.quick
def test_two_trials_never_share_a_folder(tmp_path):
    path = tmp_path / "words.py"
    path.write_text("def experiment(word: str = ''):\n    pass\n")
    given = ["--out", str(tmp_path / "s"), "--word"]
    _, trials = product.trials(options.read(path), product.given([*given, "a/b", "a_c"]))
    assert [t.folder.name for t in trials] == ["word=a_b", "word=a_c"]
    with pytest.raises(ValueError, match=r"one folder, .*word=a_b: their values differ only in"):
        product.trials(options.read(path), product.given([*given, "a/b", "a_b"]))
