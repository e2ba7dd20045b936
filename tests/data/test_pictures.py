"""Image sets of all kinds become the same arrays, and those that cannot are refused by file."""

import gzip

import numpy as np
import pytest

from jaxfed.data import cache, federate, memory, pictures

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 6, 5), dtype=np.uint8)
RGB = RNG.integers(0, 256, (20, 6, 5, 3), dtype=np.uint8)
NAMES = np.array(["cat", "dog"] * 10)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(folder, images, names=NAMES, suffix=".png"):
    """A folder of class folders, whose files have their row for a name."""
    image = pytest.importorskip("PIL.Image")
    for i, (x, name) in enumerate(zip(images, names, strict=True)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        if suffix == ".npy":
            np.save(folder / name / f"{i:02}.npy", x)
        else:
            image.fromarray(x).save(folder / name / f"{i:02}{suffix}")
    return folder


def by_class(x):
    """In the order in which a folder has them."""
    return np.concatenate([x[NAMES == "cat"], x[NAMES == "dog"]])


def write_idx(path, x):
    shape = np.array(x.shape, ">i4").tobytes()
    made = b"\0\0\x08" + bytes([x.ndim]) + shape + x.tobytes()
    path.write_bytes(gzip.compress(made) if path.suffix == ".gz" else made)


@pytest.mark.parametrize("images", [GREY, RGB], ids=["grey", "colour"])
@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_a_folder_of_class_folders_is_read_pixel_for_pixel(tmp_path, images, suffix):
    write(tmp_path / "set" / "train", images, suffix=suffix)
    write(tmp_path / "set" / "test", images[:4], NAMES[:4], suffix=suffix)
    table = pictures.read(tmp_path / "set")
    want = by_class(images).reshape(20, 6, 5, -1)
    np.testing.assert_array_equal(table.source.train["image"], want)
    assert table.source.train["image"].dtype == np.uint8
    assert table.source.train["label"].tolist() == [0] * 10 + [1] * 10
    assert table.classes == ("cat", "dog")
    assert table.source.test["image"].shape == (4, 6, 5, want.shape[-1])


def test_a_folder_without_a_test_set_is_divided(tmp_path):
    train, test = pictures.read(write(tmp_path / "set", GREY), test_fraction=0.2).source
    assert (len(train["label"]), np.bincount(test["label"]).tolist()) == (16, [2, 2])


def test_grey_images_among_coloured_ones_become_coloured_and_all_get_one_size(tmp_path):
    write(tmp_path / "set", [GREY[0], RGB[1], np.repeat(RGB[2], 2, axis=0)], NAMES[:3])
    with pytest.raises(ValueError, match=r"02.png is uint8 \(12, 5\), and .*00.png uint8 \(6, 5\)"):
        pictures.read(tmp_path / "set", test_fraction=0.5)
    whole = pictures.read(tmp_path / "set", size=5, test_fraction=0.5).source
    assert whole.train["image"].shape[1:] == (5, 5, 3)


def test_mnists_files_are_read(tmp_path):
    for stem, count in (("train", 20), ("t10k", 6)):
        write_idx(tmp_path / f"{stem}-images-idx3-ubyte.gz", GREY[:count])
        write_idx(tmp_path / f"{stem}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)
    table = pictures.read(tmp_path)
    np.testing.assert_array_equal(table.source.train["image"][..., 0], GREY)
    assert table.classes == tuple("0123456789")
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x08\1\0\0\0\6" + bytes(5))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte cannot be read .*download it"):
        pictures.read(tmp_path)


def test_numpy_files_are_read(tmp_path):
    arrays = {
        f"{split}_{name}": x[:n]
        for split, n in (("train", 20), ("test", 4))
        for name, x in (("image", RGB), ("label", np.arange(20) % 2))
    }
    np.savez(tmp_path / "set.npz", **arrays)
    for name, x in arrays.items():
        np.save(tmp_path / f"{name}.npy", x)
    np.save(tmp_path / "train_image.npy", RGB.astype(np.int64))
    for path in (tmp_path / "set.npz", tmp_path):
        table = pictures.read(path)
        np.testing.assert_array_equal(table.source.train["image"], RGB)
        assert table.source.test["label"].tolist() == [0, 1, 0, 1]
    np.save(tmp_path / "train_image.npy", RGB.astype(np.int64) + 1)
    with pytest.raises(ValueError, match="has values from 1 to 256; give 0 to 255"):
        pictures.read(tmp_path)


class Pairs:
    """As a torch Dataset behaves; with names of labels, as torchvision's have them."""

    classes = ("cat", "dog")

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images[i], i % 2


def test_torch_datasets_of_images_are_taken_as_they_are():
    image = pytest.importorskip("PIL.Image")
    table = pictures.read(Pairs([image.fromarray(x) for x in RGB]), Pairs(RGB[:4]))
    np.testing.assert_array_equal(table.source.train["image"], RGB)
    assert table.classes == ("cat", "dog")
    assert table.source.test["label"].tolist() == [0, 1, 0, 1]


@pytest.mark.full
def test_tensors_have_their_channels_moved_to_the_end():
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(RGB.transpose(0, 3, 1, 2).copy()).float() / 255  # as by ToTensor
    pairs = torch.utils.data.TensorDataset(x, torch.arange(20) % 2)
    table = pictures.read(pairs, pairs)
    np.testing.assert_allclose(table.source.train["image"], RGB / 255, atol=1e-6)


def test_users_of_dicts_are_kept():
    items = [
        {"image": x, "label": n, "who": f"w{i % 4}"}
        for i, (x, n) in enumerate(zip(RGB, NAMES, strict=True))
    ]
    table = pictures.read(items, user="who", test_fraction=0.4)
    data = federate(table.source, table.parts, personal_parts=table.personal_parts)
    assert data.names == ("w0", "w1", "w2", "w3")
    assert data.personal.count.tolist() == [2] * 4


def test_what_is_no_set_of_images_is_refused(tmp_path):
    folder = write(tmp_path / "set", GREY)
    with pytest.raises(ValueError, match="there is no folder or file nowhere; give"):
        pictures.read("nowhere")
    with pytest.raises(ValueError, match=r"cat has no folders in it; give one folder of images"):
        pictures.read(folder / "cat")
    (folder / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no image in it .*; remove it"):
        pictures.read(folder)
    (folder / "empty" / "a.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a.png cannot be read .*; replace or remove it"):
        pictures.read(folder)
    (folder / "empty" / "a.png").rename(folder / "cat" / "notes.txt")
    (folder / "empty").rmdir()
    with pytest.warns(UserWarning, match="1 files are no images and are left out"):
        pictures.read(folder)
    write(tmp_path / "other", GREY[:2], ["cat", "fox"])
    with (
        pytest.warns(UserWarning, match="1 files"),
        pytest.raises(ValueError, match=r"fox/01.png has the label 'fox' .*only \['cat', 'dog'\]"),
    ):
        pictures.read(folder, tmp_path / "other")
    with pytest.raises(ValueError, match="the training set, row 0: 'label' is empty"):
        pictures.read([{"image": GREY[0], "label": None}])
    with pytest.raises(ValueError, match=r"row 0 is int64 \(3,\); give images \[H, W\]"):
        pictures.read([{"image": np.arange(3), "label": "a"}])


def test_images_beyond_the_memory_are_refused_before_the_second_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda: 1000)
    with pytest.raises(ValueError, match=r"needs about .* GB of memory, .*smaller size="):
        pictures.read(write(tmp_path / "set", GREY))


def test_decoded_images_are_kept_and_made_again_when_a_file_changes(tmp_path, monkeypatch):
    folder = write(tmp_path / "set", GREY)
    first = pictures.read(folder).source.train["image"]
    with monkeypatch.context() as patched:
        patched.setattr(pictures.decoding, "decoded", None)  # nothing is decoded
        np.testing.assert_array_equal(pictures.read(folder).source.train["image"], first)
        with pytest.raises(TypeError):
            pictures.read(folder, size=4)
    write(folder, GREY[:1] ^ 1, NAMES[:1])
    changed = pictures.read(folder, test_fraction=0.05)
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2
    assert np.concatenate([part["image"] for part in changed.source]).sum() != first.sum()
    assert cache.MOST > 0
