"""What is written for each client is read as it was, up to where a run goes on from."""

import numpy as np
import pytest

from jaxfed.simulation import by_client, stored

pytestmark = pytest.mark.quick
EACH = {
    "client": np.arange(3),
    "examples": np.array([4, 5, 6]),
    "loss": np.array([1, np.nan, 1 / 3]),
}


@pytest.fixture
def folder(tmp_path):
    for t in (2, 4):
        by_client.append(tmp_path, t, EACH, ("anna", "ben", 7))
    return tmp_path


def contents(folder):
    return [found for _, found in by_client.lines(folder)]


def test_an_evaluation_is_read_as_it_was_written(folder):
    expected = {
        "round": 2,
        "client": ["anna", "ben", 7],
        "examples": [4, 5, 6],
        "loss": [1.0, None, 0.3333333],
    }
    assert contents(folder) == [expected, {**expected, "round": 4}]


def test_many_clients_are_cut_into_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(by_client, "MOST", 2)
    by_client.append(tmp_path, 1, EACH, None)
    assert [found["client"] for found in contents(tmp_path)] == [[0, 1], [2]]


@pytest.mark.parametrize(("rounds", "left"), [(1, []), (2, [2]), (3, [2]), (4, [2, 4])])
def test_what_comes_after_the_rounds_that_are_kept_is_cut_off(folder, rounds, left):
    by_client.keep(folder, rounds)
    assert [found["round"] for found in contents(folder)] == left


def test_a_torn_line_is_left_out_and_a_damaged_one_named(folder):
    path = folder / by_client.NAME
    path.write_bytes(path.read_bytes()[:-9])
    assert [found["round"] for found in contents(folder)] == [2]
    by_client.keep(folder, 4)
    assert path.read_bytes().endswith(b"}\n")
    path.write_text('{"round": 1, "client": [1, 2], "loss": [3.0]}\n')
    with pytest.raises(ValueError, match=r"clients.jsonl, line 1 is damaged .* differ in length"):
        contents(folder)


def test_the_file_may_outgrow_what_is_read_at_once(folder, monkeypatch):
    path = folder / by_client.NAME
    first = path.read_bytes().splitlines(keepends=True)[0]
    monkeypatch.setattr(stored, "FILE", len(first) + 1)
    with pytest.raises(ValueError, match="put a copy"):
        stored.check(path, stored.FILE)
    assert [found["round"] for found in contents(folder)] == [2, 4]
    by_client.keep(folder, 2)
    assert path.read_bytes() == first


def test_a_line_is_never_longer_than_its_reader_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "LINE", 90)
    by_client.append(tmp_path, 1, EACH, ("anna" * 5, "ben", 7))
    assert [x for found in contents(tmp_path) for x in found["client"]] == ["anna" * 5, "ben", 7]
    assert len(contents(tmp_path)) > 1


def test_a_last_line_that_lacks_its_end_alone_gets_it(folder):
    path = folder / by_client.NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    by_client.keep(folder, 4)
    assert path.read_bytes() == whole


def test_nothing_is_cut_off_through_a_link(folder, tmp_path):
    path = folder / by_client.NAME
    theirs = path.rename(tmp_path / "theirs")
    path.symlink_to(theirs)
    before = theirs.read_bytes()
    with pytest.raises(ValueError, match="is a link"):
        by_client.keep(folder, 2)
    assert theirs.read_bytes() == before


def test_a_measure_that_an_evaluation_lacks_is_empty_in_the_table(folder):
    """As where a config was changed between two parts of a run."""
    parquet = pytest.importorskip("pyarrow.parquet")
    by_client.append(folder, 6, {**EACH, "accuracy": np.ones(3)}, ("anna", "ben", 7))
    by_client.write_parquet(folder)
    table = parquet.read_table(folder / by_client.PARQUET).to_pydict()
    assert table["round"] == [2] * 3 + [4] * 3 + [6] * 3
    assert table["accuracy"] == [None] * 6 + [1.0] * 3
    assert table["client"] == ["anna", "ben", "7"] * 3
