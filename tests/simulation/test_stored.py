"""Files that may be damaged or a stranger's: what is read of them, and where nothing is written."""

import io
import os
import zipfile

import numpy as np
import pytest

from jaxfed.simulation import stored


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 10**5, '{"a": ' * 10**5, "9" * 5000])
def test_what_is_no_object_is_named(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json is damaged"):
        stored.object_of(tmp_path / "a.json")


def test_nan_and_infinity_are_read_as_none():
    assert stored.parsed(b'{"a": NaN, "b": [-Infinity, 1]}', "x") == {"a": None, "b": [None, 1]}


def test_a_pipe_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (stored.read, stored.object_of, lambda path: list(stored.lines(path))):
        with pytest.raises(ValueError, match="pipe is no regular file"):
            read(tmp_path / "pipe")


def test_files_and_lines_have_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "LINE", 100)
    path = tmp_path / "long"
    path.write_bytes(b"a" * 99 + b"\n" + b"b" * 101)
    with pytest.raises(ValueError, match="line 2 has more than 100 bytes"):
        list(stored.lines(path))
    with pytest.raises(ValueError, match="has 201 bytes"):
        stored.read(path, 200)
    assert len(stored.read(path, 201)) == 201


def test_arrays_are_read_as_they_were_written(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", x=np.arange(6).reshape(2, 3), y=np.ones(0))
    found = stored.arrays((tmp_path / "a.npz").read_bytes(), ("x", "y"), "a.npz")
    np.testing.assert_array_equal(found["x"], np.arange(6).reshape(2, 3))
    assert found["y"].shape == (0,)


def packed(path, content, name="x.npy"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return path.read_bytes()


def header(shape):
    place = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        place, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return place.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x93NUMPY", header((2**50,)), header((2**62, 2**62)), header((3,)), b"\x80\x04K\x03."],
)
def test_an_array_that_is_none_is_refused(content, tmp_path):
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        stored.arrays(packed(tmp_path / "a.npz", content), ("x",), "a.npz")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    content = packed(tmp_path / "a.npz", bytes(2**20))
    assert len(content) < 2**12
    monkeypatch.setattr(stored, "FILE", 2**19)
    with pytest.raises(ValueError, match=r"a\.npz is damaged \(it unpacks to more than 524,288"):
        stored.arrays(content, ("x",), "a.npz")


def test_objects_are_never_unpickled(tmp_path):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harmed"),))

    np.savez(tmp_path / "a.npz", x=np.array([Harm()], object))
    with pytest.raises(ValueError, match=r"a\.npz is damaged"):
        stored.arrays((tmp_path / "a.npz").read_bytes(), ("x",), "a.npz")
    assert not (tmp_path / "harmed").exists()


def test_a_file_takes_the_place_of_a_link_and_of_what_a_kill_left(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    for name in ("a", "a.new"):
        (tmp_path / name).symlink_to(tmp_path / "theirs")
    stored.replace(tmp_path / "a", "mine")
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert (tmp_path / "a").read_text() == "mine"
    assert not (tmp_path / "a").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "theirs"]


@pytest.mark.parametrize(
    "text", ["\x1b[2J", "\x9b1m", "\x07", "\r", "\n", "\u202e", "\ud800", "\0"]
)
def test_what_a_terminal_might_obey_is_not_shown(text):
    assert stored.plain(f"a{text}b é 漢") == f"a{'?' + text[1:]}b é 漢"


def test_a_kind_that_is_wrong_is_named():
    stored.check_kinds({"a": 1, "b": None}, {"a": (int,), "b": (str, type(None))}, "x.json")
    with pytest.raises(ValueError, match=r"x\.json is damaged \(a is true or false, not a whole"):
        stored.check_kinds({"a": True}, {"a": (int,)}, "x.json")
    with pytest.raises(ValueError, match=r"a is a list, not text or null"):
        stored.check_kinds({"a": []}, {"a": (str, type(None))}, "x.json")


def test_a_file_that_was_asked_for_takes_no_other_of_the_users(tmp_path):
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "a.new").write_text("mine too")
    (tmp_path / "a").symlink_to(tmp_path / "theirs")
    assert stored.save(tmp_path / "a", "mine") == tmp_path / "a"
    stored.save(tmp_path / "deep" / "b", b"b")
    found = {p.name: p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == {"a": "mine", "a.new": "mine too", "theirs": "theirs", "b": "b"}
    with pytest.raises(OSError, match=r"could not be written: .*; choose another file"):
        stored.save(tmp_path / "a" / "b", "")


def test_what_a_killed_save_left_is_removed_once_nobody_writes_it(tmp_path):
    dead, alive, other = (tmp_path / n for n in (".a.csv.7.new", ".a.csv.8.new", ".b.csv.7.new"))
    for path in (dead, alive, other):
        path.write_text("half")
    for path in (dead, other):
        os.utime(path, (0, 0))
    stored.save(tmp_path / "a.csv", "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.csv.8.new", ".b.csv.7.new", "a.csv"]
