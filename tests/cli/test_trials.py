"""Trials at once: their records are those of the single runs, and a group goes on after a kill."""

import signal
from pathlib import Path

import at_once
import jax
import jax.numpy as jnp
import launched
import pytest
from forked import Forked

from jaxfed.cli import main, trials
from jaxfed.cli.product import Trial
from jaxfed.simulation import engine

SMALL = launched.SMALL
QUICK = ("--chunk", 5, "--fuse", 2, "--evaluate-every", 2, "--checkpoint-every", 2)
RUN = (SMALL, "--method", "fedloru", "--rounds", 6, *QUICK)
NAMES = [f"learning_rate={rate}" for rate in (0.02, 0.2)]


def command(*arguments):
    main.main(list(map(str, arguments)))


def numbers(folder):
    """{"0/loss": number} of all that a run recorded."""
    flat, _ = jax.tree.flatten_with_path(launched.records(folder))
    return {jax.tree_util.keystr(path): value for path, value in flat}


@pytest.mark.full
def test_a_sweep_of_trials_at_once_that_was_killed_goes_on_by_the_same_command(tmp_path):
    """Its trials are the single runs, also if some have a checkpoint already and others none."""
    folder = tmp_path / "s"
    asked = ("sweep", *RUN, "--learning-rate", 0.02, 0.2, "--at-once", 2, "--out", folder)
    launched.finished(Forked(*asked, at=95, folder=folder), -signal.SIGKILL)
    assert all((folder / name / "settings.json").exists() for name in NAMES)
    assert launched.finished(Forked(*asked)).count("finished ") == 2
    command("run", *RUN, "--learning-rate", 0.2, "--devices", 1, "--out", tmp_path / "run")
    assert numbers(folder / NAMES[1]) == pytest.approx(numbers(tmp_path / "run"), rel=1e-4)
    assert [len(launched.records(folder / name)) for name in NAMES] == [6, 6]


@pytest.mark.full
def test_what_is_measured_for_trials_at_once_begins_none_of_them(tmp_path):
    """Else the first would be a run that was started on other devices, with a warning."""
    asked = ("sweep", *RUN, "--learning-rate", 0.1, 0.2, "--cpu-devices", 2, "--devices", 2)
    printed = launched.finished(Forked(*asked, "--at-once", 2, "--out", tmp_path / "s"))
    assert printed.count("finished ") == 2
    assert "the run started with other" not in printed


@pytest.mark.full
def test_trials_that_cannot_go_on_at_once_do_so_one_after_another(monkeypatch):
    rates = (1.0, 0.3, 0.1)  # the first may seem a number of some formula
    members = at_once.prepared([at_once.experiment("fedlora", 0, rate) for rate in rates])
    with monkeypatch.context() as patch:
        patch.setattr(engine, "memory_limit", lambda machine: 1)
        with pytest.warns(UserWarning, match="at most 1 go at once"):
            assert trials._parts(members, trials.Spread(1, None)) == ([[0], [1], [2]], None)
    assert trials._parts(members, trials.Spread(1, None))[0] == [[0, 1, 2]]
    e = at_once.experiment("fedlora")

    def run_round(server, cohort, for_each_client):
        found, states, metrics = e.algorithm.run_round(server, cohort, for_each_client)
        read = jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct((), jnp.int32), cohort.id[0])
        return found, states, {**metrics, "first": read}

    algorithm = e.algorithm._replace(run_round=run_round)
    members = at_once.prepared(
        [at_once.experiment("fedlora", seed, algorithm=algorithm) for seed in (0, 1)]
    )
    with pytest.warns(UserWarning, match="one after another"):
        assert trials._parts(members, trials.Spread(1, None)) == ([[0], [1]], None)


@pytest.mark.quick
def test_a_group_is_of_one_kind_and_groups_are_equally_large():
    made = [
        Trial(Path(f"{rank},{seed}"), [], {"rank": rank, "seed": seed, "rate": 0.1 * seed})
        for seed in range(7)
        for rank in (2, 4)
    ]
    groups = trials.groups(made, 3)
    assert sorted(map(len, groups)) == [2, 2, 2, 2, 3, 3]
    assert all(len({trial.settings["rank"] for trial in group}) == 1 for group in groups)
    assert trials.groups(made, 1) == [[trial] for trial in made]


@pytest.mark.quick
@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (("--at-once", 0), "--at-once 0: give a whole number of trials from 1 on"),
        (("--at-once", "all"), "--at-once all: give a whole number"),
        (("--at-once",), "give a whole number"),
        (("--at-once", 2, "--population", "host"), "leave it or --at-once out"),
        (("--at-once", 2, "--stream", "True"), "leave it or --at-once out"),
    ],
)
def test_what_cannot_be_at_once_ends_in_a_sentence(asked, reason, capsys, tmp_path):
    with pytest.raises(SystemExit) as ended:
        command("sweep", SMALL, "--seed", 0, 1, *asked, "--out", tmp_path / "s")
    assert ended.value.code == 2
    printed = launched.without_progress(capsys.readouterr().err)
    assert reason in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "s" / "sweep.json").exists()
