"""CIFAR's published files: both versions, unpacked or not, are the same images and names."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from jaxfed.data import cifar, pictures

pytestmark = pytest.mark.filterwarnings("ignore:.* training and .* test images, of the 50,000")
RNG = np.random.default_rng(0)
EACH = 4  # images of a batch
IMAGES = RNG.integers(0, 256, (6 * EACH, 32, 32, 3), dtype=np.uint8)
TEN = ("airplane", "automobile", "bird", "cat")
FINE, COARSE = np.arange(6 * EACH) % 4, np.arange(6 * EACH) % 2
LAYOUTS = {layout.folder: layout for layout in cifar.LAYOUTS}


class Python2(pickle._Pickler):
    """As Python 2 pickled: its text is bytes, in opcodes that Python 3 does not write."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 (as in the class that it changes)

    def save_bytes(self, held):
        self.write(pickle.BINSTRING + len(held).to_bytes(4, "little") + held)

    dispatch[bytes] = save_bytes

    def save_global(self, thing, name=None):
        module = thing.__module__.replace("numpy._core", "numpy.core")  # of numpy before 2
        self.write(pickle.GLOBAL + f"{module}\n{thing.__name__}\n".encode())

    dispatch[type] = save_global
    dispatch[type(np.empty(0).__reduce__()[0])] = save_global


def python2(thing):
    file = io.BytesIO()
    Python2(file, 2).dump(thing)
    return file.getvalue()


def batch(layout, rows):
    """The bytes of a file with these rows of IMAGES."""
    planes = IMAGES[rows].transpose(0, 3, 1, 2).reshape(-1, 3072)
    if not layout.bytes_before:
        labels = {layout.labels.encode(): FINE[rows].tolist(), b"batch_label": b"one"}
        return python2({b"data": planes, **labels})
    before = [COARSE[rows], FINE[rows]][-layout.bytes_before :]
    return np.concatenate(
        [*(x[:, None] for x in before), planes], axis=1, dtype=np.uint8, casting="unsafe"
    ).tobytes()


def written(folder, name):
    """The files of a layout, in a folder of this name in `folder`."""
    layout = LAYOUTS[name]
    (folder / name).mkdir(parents=True)
    files = [*layout.train, *layout.test]
    for file, rows in zip(
        files,
        np.split(np.arange(len(IMAGES)), [*range(EACH, EACH * len(files), EACH)]),
        strict=True,
    ):
        (folder / name / file).write_bytes(batch(layout, rows))
    names = "\n".join(TEN).encode() + b"\n\n"
    if not layout.bytes_before:
        names = python2({layout.key.encode(): [n.encode() for n in TEN], b"num_vis": 3072})
    (folder / name / layout.names).write_bytes(names)
    return folder / name


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_versions_are_read_pixel_for_pixel(tmp_path, name):
    folder = written(tmp_path, name)
    table = pictures.read(folder)
    train, test = table.source
    np.testing.assert_array_equal(np.concatenate([train["image"], test["image"]]), IMAGES)
    np.testing.assert_array_equal(np.concatenate([train["label"], test["label"]]), FINE)
    assert table.classes == TEN
    assert len(train["label"]) == EACH * len(LAYOUTS[name].train)
    assert train["image"].flags.c_contiguous


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-100-binary"])
def test_the_archive_and_the_folder_around_it_are_the_set_as_well(tmp_path, name):
    folder = written(tmp_path, name)
    with tarfile.open(tmp_path / "downloaded.tar.gz", "w:gz") as archive:
        archive.add(folder, name)
    for path in (tmp_path, tmp_path / "downloaded.tar.gz"):
        source, classes = cifar.read(path)
        np.testing.assert_array_equal(source.train["image"], IMAGES[: len(source.train["label"])])
        assert classes == TEN


def test_a_part_of_the_set_is_a_warning(tmp_path):
    folder = written(tmp_path, "cifar-10-batches-bin")
    with pytest.warns(UserWarning, match="has 20 training and 4 test images, of the 50,000"):
        cifar.read(folder)


def test_other_folders_are_not_the_set(tmp_path):
    (tmp_path / "meta").write_bytes(b"notes")
    assert cifar.read(tmp_path) is None
    assert cifar.read(tmp_path / "meta") is None


def test_several_sets_in_one_folder_are_refused(tmp_path):
    written(tmp_path, "cifar-10-batches-py")
    written(tmp_path, "cifar-100-python")
    with pytest.raises(ValueError, match="cifar-10-batches-py and cifar-100-python; give the fold"):
        cifar.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "file", "held", "match"),
    [
        ("cifar-10-batches-py", "data_batch_3", None, "has no data_batch_3; unpack the whole arch"),
        (
            "cifar-10-batches-py",
            "data_batch_3",
            b"\x80\x02}q",
            "data_batch_3 cannot be read .*down",
        ),
        ("cifar-10-batches-py", "data_batch_3", python2([1]), "it holds a list"),
        ("cifar-10-batches-py", "test_batch", python2({b"labels": [1]}), "no array of bytes under"),
        (
            "cifar-10-batches-py",
            "test_batch",
            python2({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]}),
            r"data are \(2, 3072\) with 1 labels",
        ),
        (
            "cifar-10-batches-py",
            "test_batch",
            python2({b"data": np.zeros((1, 3072), np.uint8), b"labels": [7]}),
            "labels from 7 to 7, and there are 4 classes",
        ),
        ("cifar-10-batches-py", "batches.meta", python2({}), "it has no list of names"),
        (
            "cifar-10-batches-bin",
            "test_batch.bin",
            bytes(3072),
            "3,072 bytes are no multiple of 3,",
        ),
        ("cifar-100-binary", "train.bin", b"", "train.bin cannot be read .it has no image"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named(tmp_path, name, file, held, match):
    path = written(tmp_path, name) / file
    path.unlink()
    if held is not None:
        path.write_bytes(held)
    with pytest.raises(ValueError, match=match):
        cifar.read(tmp_path)


def test_an_archive_that_is_cut_off_is_refused(tmp_path):
    folder = written(tmp_path, "cifar-10-batches-bin")
    with tarfile.open(tmp_path / "cut.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    held = (tmp_path / "cut.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(held[: len(held) // 2])
    with pytest.raises(ValueError, match=r"cut.tar.gz cannot be read .*download it again"):
        cifar.read(tmp_path / "cut.tar.gz")


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_nothing_that_a_file_names_is_executed(tmp_path):
    folder, made = written(tmp_path, "cifar-10-batches-py"), tmp_path / "made"
    for protocol in (2, 4):
        harmful = pickle.dumps({"data": Harmful(str(made))}, protocol)
        (folder / "data_batch_1").write_bytes(harmful)
        with pytest.raises(ValueError, match=r"it asks for .*mkdir, which is no part of the set"):
            cifar.read(folder)
    assert not Path(made).exists()
