"""A run's folder: what is written and read back, and where a new run may begin."""

import json

import numpy as np
import pytest

from jaxfed.simulation import run_folder


def begun(folder, rounds=3):
    folder.mkdir()
    run_folder.write_json(folder / "host.json", {"chunk": 1})
    run_folder.begin(folder, {"experiment": {"rounds": rounds}}, config="x = 1", labels=np.eye(2))
    sent = {"down": 1, "up": 2, "broadcast": 0}
    run_folder.append(folder, [{"round": t, **sent} for t in range(1, rounds + 1)])
    return folder


def test_a_number_that_json_does_not_have_is_null(tmp_path):
    nan = float("nan")
    run_folder.append(tmp_path, [{"round": 1, "loss": nan, "personal": {"loss": {"p10": -nan}}}])
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    record = json.loads(line, parse_constant=refuse)
    assert record == {"round": 1, "loss": None, "personal": {"loss": {"p10": None}}}


@pytest.mark.parametrize("content", ["host.json", "host.json config.py clients.npz"])
def test_where_a_run_was_killed_before_it_began_another_can(content, tmp_path):
    for name in content.split():
        (tmp_path / name).write_text("{")
    assert not run_folder.why_not_new(tmp_path)
    run_folder.begin(tmp_path, {"experiment": {}})
    assert {p.name for p in tmp_path.iterdir()} == {"host.json", "settings.json"}


@pytest.mark.parametrize(
    "content", ["config.py", "clients.npz", "host.json metrics.jsonl", "checkpoints/1/a"]
)
def test_what_a_run_may_have_left_is_not_overwritten(content, tmp_path):
    for name in content.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert "no settings.json" in run_folder.why_not_new(tmp_path)


def test_records_are_kept_up_to_a_checkpoint(tmp_path):
    folder = begun(tmp_path / "a")
    assert [r["round"] for r in run_folder.keep_records(folder, 2)] == [1, 2]
    assert (folder / "metrics.jsonl").read_bytes().count(b"\n") == 2
    with pytest.raises(ValueError, match="does not hold rounds 1 to 3"):
        run_folder.keep_records(folder, 3)


def test_a_last_record_that_lacks_its_end_alone_gets_it(tmp_path):
    path = begun(tmp_path / "a") / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    run_folder.keep_records(path.parent, 3)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("cut", range(1, 45, 4))
def test_a_last_line_that_a_kill_cut_is_no_damage(cut, tmp_path):
    path = begun(tmp_path / "a") / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    assert [r["round"] for _, r in run_folder.records(path)] == ([1, 2, 3] if cut == 1 else [1, 2])


def test_records_without_their_checkpoints_are_never_cut(tmp_path):
    """Unless no checkpoint was complete when the run was stopped."""
    folder = begun(tmp_path / "a")
    assert "checkpoints is gone" in run_folder.why_lost(folder, 50)
    (folder / "checkpoints").mkdir()
    assert not run_folder.why_lost(folder, 50)
    assert not run_folder.why_lost(folder, 0)
    assert "has no checkpoint" in run_folder.why_lost(folder, 1)
    (folder / "checkpoints" / "2").mkdir()
    assert not run_folder.why_lost(folder, 1)


def test_nothing_is_written_through_a_link(tmp_path):
    folder, elsewhere = begun(tmp_path / "a"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "tensorboard").symlink_to(elsewhere)
    with pytest.raises(ValueError, match="tensorboard is a link"):
        run_folder.tensorboard(folder, 0)
    (folder / "metrics.jsonl.new").symlink_to(elsewhere / "metrics")
    run_folder.keep_records(folder, 2)
    assert not list(elsewhere.iterdir())
