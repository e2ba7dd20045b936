import gzip
import importlib.util
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest

from jaxfed.data import images, sources


@pytest.fixture(scope="session")
def prepared(shared, tmp_path_factory):
    """TFDS's Fashion-MNIST, prepared without TensorFlow."""
    folder = tmp_path_factory.mktemp("tfds")
    script = [sys.executable, shared / "prepare_tfds.py", "--data-dir", folder]
    subprocess.run(script, check=True, capture_output=True)
    return folder


def idx(path, offset):
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)


@pytest.mark.full
def test_tfds_reads_every_image_without_tensorflow(shared, prepared):
    source = sources.tfds("fashion_mnist", prepared)
    for examples, stem in zip(source, ("train", "t10k"), strict=True):
        label = idx(shared / f"fashion_mnist/{stem}-labels-idx1-ubyte.gz", 8)
        image = idx(shared / f"fashion_mnist/{stem}-images-idx3-ubyte.gz", 16).reshape(-1, 784)
        assert examples["image"].shape == (len(label), 28, 28, 1)
        assert (examples["image"].dtype, examples["label"].dtype) == (np.uint8, np.int32)
        got = np.c_[examples["label"].astype(np.uint8), examples["image"].reshape(-1, 784)]
        want = np.c_[label, image]
        assert sorted(map(bytes, got)) == sorted(map(bytes, want))  # TFDS shuffles
    assert "tensorflow" not in sys.modules


def test_cifar10_has_its_published_statistics(shared):
    spec = importlib.util.spec_from_file_location("read_cifar", shared / "read_cifar.py")
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    image, label = reader.read_cifar("cifar10", "test")
    source = sources.arrays(*2 * [{"image": image, "label": label}])
    mean, std = images.channel_statistics(source.train["image"])  # of 4,000
    np.testing.assert_allclose(mean, (0.4914, 0.4822, 0.4465), atol=0.01)
    np.testing.assert_allclose(std, (0.2470, 0.2435, 0.2616), atol=0.01)


def test_a_set_that_is_not_prepared_says_how_to_prepare_it(tmp_path):
    with pytest.raises(ValueError, match="tfds build mnist --file_format=array_record"):
        sources.tfds("mnist", tmp_path)


def test_a_set_in_tfdss_default_format_says_how_to_prepare_it(tmp_path):
    folder = tmp_path / "mnist/3.0.1"
    folder.mkdir(parents=True)
    feature = {"pythonClassName": "tensorflow_datasets.core.features.text_feature.Text"}
    (folder / "features.json").write_text(json.dumps(feature | {"text": {}}))
    info = {"name": "mnist", "version": "3.0.1", "fileFormat": "tfrecord", "splits": []}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="as tfrecord, which only TensorFlow reads") as refused:
        sources.tfds("mnist", tmp_path)
    assert "tfds build mnist --file_format=array_record --data_dir=ANOTHER" in str(refused.value)


def test_a_name_that_tfds_does_not_know_is_refused(tmp_path):
    with pytest.raises(ValueError, match="TFDS knows no 'fashion_mist'"):
        sources.tfds("fashion_mist", tmp_path)


def test_digits_are_all_there_and_stratified():
    train, test = sources.digits()
    assert train["image"].shape[1:] == (8, 8, 1)
    assert (train["image"].dtype, train["label"].dtype) == (np.uint8, np.int32)
    assert train["image"].max() == 16
    assert len(train["label"]) + len(test["label"]) == 1797
    share = np.bincount(test["label"]) / np.bincount(np.r_[train["label"], test["label"]])
    np.testing.assert_allclose(share, 0.2, atol=0.01)


def test_the_seed_decides_the_split_of_the_digits():
    once, again, other = (sources.digits(seed).test["label"].tolist() for seed in (1, 1, 2))
    assert once == again != other


def user_file(**changes):
    """The arrays of a file with 5 + 3 images, one of them changed or left out (None)."""
    file = {
        "train_image": np.zeros((5, 4, 6), np.uint8),
        "train_label": np.arange(5),
        "test_image": np.zeros((3, 4, 6), np.uint8),
        "test_label": np.arange(3, dtype=np.uint8),
    }
    return {key: x for key, x in {**file, **changes}.items() if x is not None}


@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_a_users_file_is_read(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (5, 4, 6, *channels), np.uint8)
    file = user_file(train_image=image, test_image=image[:3])
    np.savez(tmp_path / "mine.npz", **file)
    train, test = sources.npz(tmp_path / "mine.npz")
    np.testing.assert_array_equal(train["image"], image.reshape(5, 4, 6, -1))
    assert train["label"].dtype == test["label"].dtype == np.int32
    assert test["label"].tolist() == [0, 1, 2]


FILE_ERRORS = {
    "missing": ({"test_label": None}, r"mine.npz has no arrays \['test_label'\]; it has"),
    "lengths": ({"train_label": np.arange(4)}, r"train arrays have shapes .*\(4,\)"),
    "huge labels": ({"train_label": np.arange(5) * 2**40}, r"labels run from 0 to 4398046511104;"),
    "another size": (
        {"test_image": np.zeros((3, 4, 5), np.uint8)},
        r"training images \(4, 6, 1\) and test images \(4, 5, 1\)",
    ),
    "other channels": (
        {"train_image": np.zeros((5, 4, 6, 3), np.uint8)},
        r"training images \(4, 6, 3\) and test images \(4, 6, 1\)",
    ),
    "float labels": ({"train_label": np.arange(5) / 2}, "labels are float64"),
    "one-hot labels": ({"train_label": np.eye(5, dtype=int)}, r"labels are int64 \(5, 5\)"),
    "float images": ({"test_image": np.zeros((3, 4, 6))}, "images are float64"),
    "flat images": ({"test_image": np.zeros((3, 24), np.uint8)}, r"uint8 \(3, 24\)"),
}


@pytest.mark.parametrize(("changes", "message"), FILE_ERRORS.values(), ids=FILE_ERRORS)
def test_a_wrong_file_is_refused(tmp_path, changes, message):
    np.savez(tmp_path / "mine.npz", **user_file(**changes))
    with pytest.raises(ValueError, match=message):
        sources.npz(tmp_path / "mine.npz")


def test_a_users_arrays_keep_their_keys_and_types():
    tokens = np.zeros((4, 16), np.int32)
    source = sources.arrays(
        {"tokens": tokens, "user": [0, 0, 1, 1]}, {"tokens": tokens, "user": [0] * 4}
    )
    assert source.train["tokens"].dtype == np.int32
    assert source.train["user"].shape == (4,)


ARRAY_ERRORS = {
    "other keys": ({"a": [1]}, {"b": [1]}, "give both the same keys"),
    "no keys": ({}, {}, "give both the same keys"),
    "lengths": ({"a": [1, 2], "b": [1]}, {"a": [1], "b": [1]}, "train arrays have shapes"),
    "scalars": ({"a": [1]}, {"a": 1}, "test arrays have shapes"),
}


@pytest.mark.parametrize(("train", "test", "message"), ARRAY_ERRORS.values(), ids=ARRAY_ERRORS)
def test_wrong_arrays_are_refused(train, test, message):
    with pytest.raises(ValueError, match=message):
        sources.arrays(train, test)


def flipped(content):
    middle = content.index(b"train_image.npy") + 200
    return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: b"",
        lambda content: b"hello",
        lambda content: content[: len(content) // 2],
        lambda content: b"PK\x03\x04" + content[4:100],
        flipped,
        lambda content: pickle.dumps([1, 2]),
    ],
)
def test_a_damaged_file_is_named(tmp_path, damaged):
    path = tmp_path / "mine.npz"
    np.savez(path, **user_file())
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(ValueError, match=r"mine\.npz cannot be read \("):
        sources.npz(path)


def test_objects_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "mine.npz", **user_file(train_label=np.array([{}], object)))
    with pytest.raises(ValueError, match=r"mine\.npz cannot be read \(Object arrays"):
        sources.npz(tmp_path / "mine.npz")


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    np.savez(tmp_path / "mine.npz", **user_file())
    assert len(sources.npz("~/mine.npz").train["label"])


@pytest.mark.parametrize(
    ("shape", "classes", "message"),
    [
        ((4, 6, 3), 5, r"images are \(4, 6, 1\); this needs \(4, 6, 3\)"),
        ((4, 6, 1), 4, "there are 5 labels, 0 to 4; this needs 0 to 3"),
        ((4, 6, 1), 10, "there are 5 labels, 0 to 4; this needs 0 to 9"),
    ],
)
def test_a_config_made_for_one_set_refuses_another(tmp_path, shape, classes, message):
    np.savez(tmp_path / "mine.npz", **user_file())
    source = sources.npz(tmp_path / "mine.npz")
    assert sources.check_images(source, (4, 6, 1), classes=5) is source
    with pytest.raises(ValueError, match=message):
        sources.check_images(source, shape, classes=classes)
