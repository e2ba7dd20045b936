"""Wrong sources, partitions and transforms are refused where they are given."""

import numpy as np
import pytest
import refusals
from refusals import LABELS, source

from jaxfed.data import Source, federate, federated, images, partition, sources

pytestmark = pytest.mark.quick

ROWS = [np.arange(20), np.arange(20, 40)]
OBJECTS = np.array([1, "a"] * 20, object)


def iid(n=40, clients=4, seed=0):
    return partition.iid(n, clients, seed=seed)


def lognormal(sigma=1.0, **options):
    return partition.lognormal(40, 4, sigma=sigma, seed=0, **options)


def dirichlet(labels=LABELS, clients=4, concentration=1.0, **options):
    return partition.dirichlet(labels, clients, concentration=concentration, seed=0, **options)


def pathological(classes):
    return partition.pathological(LABELS, 4, classes=classes, seed=0)


def similar(s):
    return partition.label_similarity(LABELS, 4, s=s, seed=0)


def parts(*rows, **options):
    return federate(source(), list(rows) or ROWS, **options)


def named(train, test):
    examples = {"x": np.ones((len(train), 1))}, {"x": np.ones((len(test), 1))}
    by_test = partition.natural(test)
    return federate(Source(*examples), partition.natural(train), personal_parts=by_test)


def with_values(x, test=None):
    train = {"x": np.asarray(x), "label": np.arange(len(x))}
    test = train if test is None else {**train, "x": np.asarray(test)}
    return federate(Source(train, test), partition.iid(len(x), 1, seed=0))


def npz(**changes):
    arrays = {
        "train_image": np.zeros((4, 2, 2), np.uint8),
        "train_label": np.arange(4),
        "test_image": np.zeros((2, 2, 2), np.uint8),
        "test_label": np.arange(2),
        **changes,
    }
    np.savez("mine.npz", **arrays)
    return sources.npz("mine.npz")


CASES = [
    # partitions
    ("iid n -1", lambda: iid(n=-1), ValueError, "n=-1; use at least 0"),
    ("iid n half", lambda: iid(n=1.5), TypeError, "n=1.5 is a float; give a whole number"),
    ("iid n text", lambda: iid(n="40"), TypeError, "n='40' is a str; give a whole number"),
    ("iid n True", lambda: iid(n=True), TypeError, "n=True is a bool; give a whole number"),
    ("iid n an array", lambda: iid(n=LABELS), TypeError, "n=array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9,"),
    ("iid clients 0", lambda: iid(clients=0), ValueError, "clients=0; use at least 1"),
    ("iid clients -1", lambda: iid(clients=-1), ValueError, "clients=-1; use at least 1"),
    ("iid clients 2.0", lambda: iid(clients=2.0), TypeError, "clients=2.0 is a float; give a"),
    ("iid clients None", lambda: iid(clients=None), TypeError, "clients=None is a NoneType; give"),
    ("iid clients above rows", lambda: iid(n=3), ValueError, "4 clients cannot have 1 of 3 rows"),
    ("iid seed -1", lambda: iid(seed=-1), ValueError, "seed=-1; use at least 0"),
    ("iid seed None", lambda: iid(seed=None), TypeError, "seed=None is a NoneType; give a whole"),
    ("iid seed text", lambda: iid(seed="0"), TypeError, "seed='0' is a str; give a whole number"),
    ("sigma -1", lambda: lognormal(-1), ValueError, "sigma=-1; use a finite number from 0"),
    ("sigma nan", lambda: lognormal(float("nan")), ValueError, "sigma=nan; use a finite number"),
    ("sigma inf", lambda: lognormal(float("inf")), ValueError, "sigma=inf; use a finite number"),
    ("sigma text", lambda: lognormal("1"), TypeError, "sigma='1' is a str; give a number"),
    ("sigma None", lambda: lognormal(None), TypeError, "sigma=None is a NoneType; give a number"),
    ("least -1", lambda: lognormal(least=-1), ValueError, "least=-1; use at least 0"),
    ("least half", lambda: lognormal(least=1.5), TypeError, "least=1.5 is a float; give a whole"),
    ("least above rows", lambda: lognormal(least=11), ValueError, "4 clients cannot have 11 of"),
    ("labels in rows", lambda: dirichlet(np.zeros((4, 2))), ValueError, "labels have shape (4,"),
    ("labels None", lambda: dirichlet(None), ValueError, "labels have shape (); give one label a"),
    ("labels empty", lambda: dirichlet([]), ValueError, "4 clients cannot have 1 of 0 rows each;"),
    ("labels mixed", lambda: dirichlet(OBJECTS), ValueError, "labels are of several types, int"),
    (
        "labels nan",
        lambda: dirichlet([0.0, float("nan"), 1.0, 1.0]),
        ValueError,
        "row 1 has no label (nan); leave it out",
    ),
    ("labels ragged", lambda: dirichlet([[0], [1, 2]]), ValueError, "labels makes no array"),
    ("concentration 0", lambda: dirichlet(concentration=0), ValueError, "concentration=0 is no"),
    (
        "concentration -1",
        lambda: dirichlet(concentration=-1.0),
        ValueError,
        "concentration=-1.0 is no Dirichlet parameter; use a positive number, such as",
    ),
    (
        "concentration nan",
        lambda: dirichlet(concentration=float("nan")),
        ValueError,
        "concentration=nan; use a finite number",
    ),
    (
        "concentration inf",
        lambda: dirichlet(concentration=float("inf")),
        ValueError,
        "concentration=inf; use a finite number",
    ),
    (
        "concentration text",
        lambda: dirichlet(concentration="0.5"),
        TypeError,
        "concentration='0.5' is a str; give a number",
    ),
    (
        "concentration list",
        lambda: dirichlet(concentration=[1.0]),
        TypeError,
        "concentration=[1.0] is a list; give a number",
    ),
    ("classes 0", lambda: pathological(0), ValueError, "classes=0; use at least 1"),
    ("classes 11", lambda: pathological(11), ValueError, "classes=11, but there are 10 labels;"),
    ("classes half", lambda: pathological(1.5), TypeError, "classes=1.5 is a float; give a whole"),
    ("classes True", lambda: pathological(True), TypeError, "classes=True is a bool; give a"),
    ("classes too few", lambda: pathological(1), ValueError, "4 clients of 1 classes hold 4"),
    ("s -0.1", lambda: similar(-0.1), ValueError, "s=-0.1; use a finite number from 0 to 1"),
    ("s 1.1", lambda: similar(1.1), ValueError, "s=1.1; use a finite number from 0 to 1"),
    ("s nan", lambda: similar(float("nan")), ValueError, "s=nan; use a finite number from 0 to 1"),
    ("s text", lambda: similar("half"), TypeError, "s='half' is a str; give a number"),
    ("keys empty", lambda: partition.natural([]), ValueError, "keys have shape (0,); give one"),
    (
        "keys in rows",
        lambda: partition.natural(np.zeros((2, 2))),
        ValueError,
        "keys have shape (2, 2); give one key a row, [n] with n above 0",
    ),
    (
        "keys missing",
        lambda: partition.natural(np.array(["anna", None], object)),
        ValueError,
        "row 1 has no key (None); leave such rows out",
    ),
    (
        "keys nan",
        lambda: partition.natural([1.0, float("nan")]),
        ValueError,
        "row 1 has no key (nan); leave such rows out",
    ),
    ("keys mixed", lambda: partition.natural(OBJECTS), ValueError, "keys are of several types,"),
    # federate
    (
        "a dict as source",
        lambda: federate(source().train, ROWS),
        TypeError,
        "source is a dict; give a Source, as sources.arrays(train, test) makes it",
    ),
    (
        "a tuple as source",
        lambda: federate((source().train, source().test), ROWS),
        TypeError,
        "source is a tuple; give a Source, as sources.arrays(train, test) makes it",
    ),
    ("None as source", lambda: federate(None, ROWS), TypeError, "source is a NoneType; give a"),
    ("parts None", lambda: federate(source(), None), TypeError, "parts is None; give a list of"),
    ("parts a number", lambda: federate(source(), 4), TypeError, "parts is 4; give a list of one"),
    (
        "parts a dict",
        lambda: federate(source(), {"anna": ROWS[0], "bert": ROWS[1]}),
        TypeError,
        "parts is {'anna': array([ 0,  1...  17, 18, 19]), 'bert': array([20, 21...",
    ),
    ("parts of numbers", lambda: federate(source(), [0, 1]), TypeError, "parts is [0, 1]; give a"),
    ("parts empty", lambda: federate(source(), []), ValueError, "parts is empty; give one array"),
    (
        "an empty client",
        lambda: parts(np.arange(40), np.arange(0)),
        ValueError,
        "client 1 of 2 has no row to train on; give it one",
    ),
    ("rows as floats", lambda: parts(np.arange(40.0)), ValueError, "parts[0] is float64 (40,);"),
    ("rows as a mask", lambda: parts(np.ones(40, bool)), ValueError, "parts[0] is bool (40,);"),
    ("rows as text", lambda: parts(["a", "b"]), ValueError, "parts[0] is <U1 (2,); give integer"),
    ("row too large", lambda: parts([39, 40]), ValueError, "parts[0] has row 40; rows run from 0"),
    ("row negative", lambda: parts([-1, 0]), ValueError, "parts[0] has row -1; rows run from 0"),
    (
        "row owned twice",
        lambda: parts(np.arange(20), np.arange(19, 40)),
        ValueError,
        "parts give row 19 to clients [0, 1]; give it to one, or use shared=True",
    ),
    ("row twice", lambda: parts([1, 1]), ValueError, "parts give row 1 to client 0 more than once"),
    ("fraction -0.1", lambda: parts(personal_fraction=-0.1), ValueError, "personal_fraction=-0.1"),
    ("fraction 1", lambda: parts(personal_fraction=1), ValueError, "personal_fraction=1 is not"),
    (
        "fraction nan",
        lambda: parts(personal_fraction=float("nan")),
        ValueError,
        "personal_fraction=nan; use a finite number",
    ),
    ("fraction text", lambda: parts(personal_fraction="0.2"), TypeError, "personal_fraction='0.2'"),
    ("fraction True", lambda: parts(personal_fraction=True), TypeError, "personal_fraction=True"),
    (
        "personal twice",
        lambda: parts(personal_fraction=0.1, personal_parts=ROWS),
        ValueError,
        "personal_fraction and personal_parts are two sources of one thing; use one",
    ),
    (
        "personal for one",
        lambda: parts(personal_parts=ROWS[:1]),
        ValueError,
        "1 personal_parts for 2 clients",
    ),
    (
        "personal too large",
        lambda: parts(personal_parts=[[0], [10]]),
        ValueError,
        "personal_parts[1] has row 10; rows run from 0 to 9",
    ),
    (
        "personal a dict",
        lambda: parts(personal_parts={0: [1], 1: [2]}),
        TypeError,
        "personal_parts is {0: [1], 1: [2]}; give a list of one array of rows for each",
    ),
    (
        "personal for strangers",
        lambda: named(["anna", "bert"], ["anna", "carl"]),
        ValueError,
        "1 of 2 names in personal_parts train on nothing: 'carl'; leave their test",
    ),
    ("federate seed", lambda: parts(seed=1.5), TypeError, "seed=1.5 is a float; give a whole"),
    (
        "nan in data",
        lambda: with_values([[0.0], [float("nan")]]),
        ValueError,
        "train 'x' has nan in row 1, column 0 (1 such values in all); leave such rows",
    ),
    (
        "inf in data",
        lambda: with_values([1.0, 2.0], [1, np.inf]),
        ValueError,
        "test 'x' has inf in row 1 (1 such values in all); leave such rows out or fill",
    ),
    ("strings in data", lambda: with_values(["a", "b"]), ValueError, "train 'x' is <U1; give"),
    (
        "dates in data",
        lambda: with_values(np.array(["2024-01-01"] * 2, "datetime64[D]")),
        ValueError,
        "train 'x' is datetime64[D]; give numbers, such as np.unique(x,",
    ),
    ("complex data", lambda: with_values([1j, 2j]), ValueError, "train 'x' is complex128; give"),
    ("ids too large", lambda: with_values([1, 2**40]), ValueError, "train 'x' runs from 1 to"),
    (
        "another type in the test set",
        lambda: with_values([1, 2], [0.1, 0.2]),
        ValueError,
        "'x' is int64 in the training set and float64 in the test set; give both in",
    ),
    (
        "another unit in the test set",
        lambda: with_values(np.full((2, 2, 2), 255.0), np.ones((2, 2, 2))),
        ValueError,
        "'x' reaches 255 in the training set and 1 in the test set; give both in one",
    ),
    (
        "table of 5 labels",
        lambda: federated.label_table(refusals.data().train, 5),
        ValueError,
        "labels run from 0 to 9; classes=5",
    ),
    (
        "table of 0 labels",
        lambda: federated.label_table(refusals.data().train, 0),
        ValueError,
        "classes=0; use at least 1",
    ),
    (
        "table of no labels",
        lambda: federated.label_table(refusals.data().train, 10, label="digit"),
        ValueError,
        "label='digit'; use one of ('image', 'label')",
    ),
    (
        "pack too small",
        lambda: federated.pack(refusals.data().train, [0, 1], 19),
        ValueError,
        "the clients own 20 rows, above the capacity of 19",
    ),
    # sources
    (
        "digits without test",
        lambda: sources.digits(test_fraction=0),
        ValueError,
        "test_fraction=0; use a number above 0 and below 1",
    ),
    (
        "digits all test",
        lambda: sources.digits(test_fraction=1.5),
        ValueError,
        "test_fraction=1.5; use a number above 0 and below 1",
    ),
    (
        "digits nan test",
        lambda: sources.digits(test_fraction=float("nan")),
        ValueError,
        "test_fraction=nan; use a finite number",
    ),
    ("digits seed", lambda: sources.digits(seed=-1), ValueError, "seed=-1; use at least 0"),
    ("digits seed text", lambda: sources.digits(seed="a"), TypeError, "seed='a' is a str; give a"),
    (
        "arrays of other keys",
        lambda: sources.arrays({"x": [1]}, {"y": [1]}),
        ValueError,
        "train has ['x'] and test has ['y']; give both the same keys",
    ),
    ("arrays empty", lambda: sources.arrays({}, {}), ValueError, "train has [] and test has [];"),
    (
        "arrays of other lengths",
        lambda: sources.arrays({"x": [1], "y": [1, 2]}, {"x": [1], "y": [1]}),
        ValueError,
        "train arrays have shapes {'x': (1,), 'y': (2,)}; give each one row an example",
    ),
    (
        "arrays of scalars",
        lambda: sources.arrays({"x": 1}, {"x": 1}),
        ValueError,
        "train arrays have shapes {'x': ()}; give each one row an example",
    ),
    (
        "arrays without keys",
        lambda: sources.arrays([1, 2], [1, 2]),
        TypeError,
        "train is a list; give arrays by name, {'x': [n, ...], 'y': [n, ...]}",
    ),
    (
        "arrays ragged",
        lambda: sources.arrays({"x": [[1], [1, 2]]}, {"x": [[1], [1, 2]]}),
        ValueError,
        "train 'x' makes no array",
    ),
    ("no npz", lambda: sources.npz("no.npz"), FileNotFoundError, "[Errno 2] No such file or"),
    ("npz a folder", lambda: sources.npz("."), IsADirectoryError, "[Errno 21] Is a directory: '.'"),
    (
        "npz text",
        lambda: sources.npz(refusals.written("mine.npz", "mine")),
        ValueError,
        "mine.npz cannot be read",
    ),
    (
        "npz empty",
        lambda: sources.npz(refusals.written("mine.npz", "")),
        ValueError,
        "mine.npz cannot be read",
    ),
    (
        "npz float images",
        lambda: npz(train_image=np.zeros((4, 2, 2))),
        ValueError,
        "images are float64 (4, 2, 2); give uint8 [n, H, W, C] or [n, H, W], or use",
    ),
    (
        "npz flat images",
        lambda: npz(train_image=np.zeros((4, 4), np.uint8)),
        ValueError,
        "images are uint8 (4, 4); give uint8 [n, H, W, C] or [n, H, W], or use",
    ),
    (
        "npz float labels",
        lambda: npz(train_label=np.arange(4.0)),
        ValueError,
        "labels are float64 (4,); give integers [n]",
    ),
    (
        "npz one-hot labels",
        lambda: npz(train_label=np.eye(4, dtype=int)),
        ValueError,
        "labels are int64 (4, 4); give integers [n]",
    ),
    (
        "npz large labels",
        lambda: npz(train_label=np.arange(4) + 2**40),
        ValueError,
        "labels run from 1099511627776 to 1099511627779; number them from 0,",
    ),
    (
        "npz of other sizes",
        lambda: npz(test_image=np.zeros((2, 3, 3), np.uint8)),
        ValueError,
        "mine.npz has training images (2, 2, 1) and test images (3, 3, 1); give both",
    ),
    (
        "npz of other lengths",
        lambda: npz(train_label=np.arange(3)),
        ValueError,
        "train arrays have shapes {'image': (4, 2, 2, 1), 'label': (3,)}; give each",
    ),
    (
        "npz of objects",
        lambda: npz(train_label=np.array([1, None, 2, 3], object)),
        ValueError,
        "mine.npz cannot be read",
    ),
    (
        "images of another size",
        lambda: sources.check_images(source(), (28, 28, 1), classes=10),
        ValueError,
        "images are (2, 2, 1); this needs (28, 28, 1)",
    ),
    (
        "images of other labels",
        lambda: sources.check_images(source(), (2, 2, 1), classes=9),
        ValueError,
        "there are 10 labels, 0 to 9; this needs 0 to 8",
    ),
    (
        "no images",
        lambda: sources.check_images(sources.arrays({"x": [1]}, {"x": [1]}), (2, 2, 1), classes=9),
        ValueError,
        "there is no ['image', 'label']; there are ['x']",
    ),
    # transforms
    ("std 0", lambda: images.normalise([0.5], [0.0]), ValueError, "mean=[0.5] and std=[0.0];"),
    (
        "mean nan",
        lambda: images.normalise([float("nan")], [1.0]),
        ValueError,
        "mean=[nan] and std=[1.0]; give both for each channel, finite and std above 0",
    ),
    ("mean a number", lambda: images.normalise(0.5, 0.5), ValueError, "mean=0.5 and std=0.5;"),
    ("mean text", lambda: images.normalise(["a"], [1.0]), ValueError, "mean or std makes no array"),
    (
        "mean ragged",
        lambda: images.normalise([[1], [1, 2]], [1.0]),
        ValueError,
        "mean or std makes no array",
    ),
    (
        "mean and std of other lengths",
        lambda: images.normalise([0.5], [0.5, 0.5]),
        ValueError,
        "mean=[0.5] and std=[0.5, 0.5]; give both for each channel, finite and std",
    ),
    (
        "scale 0",
        lambda: images.normalise([0.5], [0.5], scale=0),
        ValueError,
        "scale=0; use a number above 0",
    ),
    (
        "scale nan",
        lambda: images.normalise([0.5], [0.5], scale=float("nan")),
        ValueError,
        "scale=nan; use a finite number",
    ),
    (
        "scale text",
        lambda: images.normalise([0.5], [0.5], scale="255"),
        TypeError,
        "scale='255' is a str; give a number",
    ),
    (
        "other channels",
        lambda: images.normalise([0.5], [0.5])(np.ones((1, 2, 2, 3)), None),
        ValueError,
        "images (2, 2, 3) have 3 channels, and mean=(0.5,) is of 1; give one mean and",
    ),
    (
        "constant images",
        lambda: images.standardise(np.ones((2, 2, 2, 1))),
        ValueError,
        "mean=(1.0,) and std=(0.0,); give both for each channel, finite and std above 0",
    ),
    (
        "grey images",
        lambda: images.standardise(np.ones((2, 2, 2))),
        ValueError,
        "images are (2, 2, 2), not [n, H, W, C]; give grey ones a last axis, x[...,",
    ),
    (
        "a list of images",
        lambda: images.standardise([[1, 2], [3, 4]]),
        ValueError,
        "images are (2, 2), not [n, H, W, C]; reshape them",
    ),
    (
        "no images to standardise",
        lambda: images.standardise(np.ones((0, 2, 2, 1))),
        ValueError,
        "images are (0, 2, 2, 1), scale=1; give some, and a scale above 0",
    ),
    (
        "statistics by 0",
        lambda: images.channel_statistics(np.ones((1, 2, 2, 1)), scale=0),
        ValueError,
        "images are (1, 2, 2, 1), scale=0; give some, and a scale above 0",
    ),
    ("padding -1", lambda: images.random_crop(-1), ValueError, "padding=-1; use at least 0"),
    ("padding half", lambda: images.random_crop(1.5), TypeError, "padding=1.5 is a float; give a"),
    ("padding True", lambda: images.random_crop(True), TypeError, "padding=True is a bool; give"),
    ("brightness -1", lambda: images.jitter(-1, 0, 0), ValueError, "brightness=-1; use a finite"),
    (
        "contrast nan",
        lambda: images.jitter(0, float("nan"), 0),
        ValueError,
        "contrast=nan; use a finite number from 0",
    ),
    ("saturation text", lambda: images.jitter(0, 0, "0.1"), TypeError, "saturation='0.1' is a"),
    (
        "jitter scale 0",
        lambda: images.jitter(0, 0, 0, scale=0),
        ValueError,
        "scale=0; use a number above 0",
    ),
    ("size 0", lambda: images.resize(0), ValueError, "size=0; use at least 1"),
    ("size half", lambda: images.resize(2.5), TypeError, "size=2.5 is a float; give a whole"),
    (
        "no transform",
        lambda: images.chain(images.random_flip(), 3),
        TypeError,
        "3 is no transform; give functions of images and a key",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_wrong_input_ends_in_one_sentence(call, error, sentence, tmp_path, monkeypatch, capfd):
    refusals.check(call, error, sentence, tmp_path, monkeypatch)
