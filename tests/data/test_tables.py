"""Tables are read as they are written, and each that cannot be used is refused in a sentence."""

import csv
import gzip
import json
import tracemalloc

import numpy as np
import pytest

from jaxfed.data import federate, memory, partition, tables

TEXTS = ["good, really", 'so "good"', "bad\nbad", "größer als schlecht", "fine", "poor"] * 2
STARS = ["up", "up", "down", "down", "up", "down"] * 2
USERS = ["anna", "bert", "anna", "bert", "carl", "carl"] * 2
AGES = [1.5, 2, -3, 4e-3, 5, 6] * 2
COLUMNS = {"review": TEXTS, "stars": STARS, "who": USERS, "age": AGES}
WORDS = {"text": "review", "label": "stars", "user": "who", "numbers": ["age"]}


def objects():
    return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]


def write_csv(path, columns=COLUMNS, **form):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, **form).writerows([[*columns], *zip(*columns.values(), strict=True)])
    return path


def write_tsv(path):
    lines = ["\t".join(COLUMNS)]
    lines += ["\t".join(map(str, one.values())).replace("\n", " ") for one in objects()]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_jsonl(path):
    path.write_text("\n\n".join(map(json.dumps, objects())), encoding="utf-8")
    return path


def write_parquet(path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(COLUMNS), path, row_group_size=5)
    return path


def write_gz(path):
    path.write_bytes(gzip.compress(write_csv(path.with_suffix("")).read_bytes()))
    return path


FORMS = {
    "t.csv": write_csv,
    "bom.csv": lambda path: (
        path.write_bytes(b"\xef\xbb\xbf" + write_csv(path).read_bytes()) and path
    ),
    "semicolons.csv": lambda path: write_csv(path, delimiter=";"),
    "t.csv.gz": write_gz,
    "t.tsv": write_tsv,
    "t.jsonl": write_jsonl,
    "t.parquet": write_parquet,
}


class Indexed:
    """As a torch Dataset of dicts behaves."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


class ColumnsOfHub:
    """As a `datasets.Dataset` behaves; its labels are numbers with names."""

    class Names:
        names = ("down", "up")

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)
        self.features = {name: self.Names if name == "stars" else None for name in columns}

    def __len__(self):
        return len(self.columns["stars"])

    def __getitem__(self, rows):
        return {name: values[rows] for name, values in self.columns.items()}

    def select_columns(self, names):
        return ColumnsOfHub({name: self.columns[name] for name in names})


def hub():
    return ColumnsOfHub({**COLUMNS, "stars": [["down", "up"].index(star) for star in STARS]})


def check(table, texts=TEXTS):
    train, _ = table.source
    assert table.classes == ("down", "up")
    assert train["text"].tolist() == texts
    assert train["label"].tolist() == [star == "up" for star in STARS]
    np.testing.assert_array_equal(train["x"][:, 0], np.float32(AGES))
    assert table.users[0].tolist() == USERS
    assert (train["label"].dtype, train["x"].dtype) == (np.int32, np.float32)


@pytest.mark.parametrize("name", FORMS)
def test_all_kinds_of_files_hold_the_same_table(tmp_path, name):
    path = FORMS[name](tmp_path / name)
    texts = [text.replace("\n", " ") for text in TEXTS] if name == "t.tsv" else TEXTS
    check(tables.read(path, path, **WORDS), texts)


@pytest.mark.parametrize("made", [lambda: Indexed(objects()), hub], ids=["torch", "datasets"])
def test_objects_are_taken_as_they_are(made):
    check(tables.read(made(), made(), **WORDS))


def test_arrays_in_tuples_are_columns_of_numbers():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 3, 2)).astype(np.float32), np.arange(20) % 2
    table = tables.read(Indexed(list(zip(x, y, strict=True))), label="1")
    assert len(table.source.train["x"]) + len(table.source.test["x"]) == 20
    assert table.source.train["x"].shape[1:] == (6,)


def test_numbers_are_all_other_columns_and_labels_count_as_numbers(tmp_path):
    columns = {"a": range(24), "y": [10, 9, -1] * 8, "b": range(24)}
    table = tables.read(write_csv(tmp_path / "n.csv", columns), label="y", test_fraction=0.25)
    assert table.classes == ("-1", "9", "10")
    train, test = table.source
    assert train["x"].shape == (18, 2)
    assert test["label"].tolist().count(0) == 2
    scaled = tables.standardise(table.source).train["x"]
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-6)


def test_only_training_rows_decide_the_scale():
    source = tables.Source({"x": np.float32([[1, 7], [3, 7]])}, {"x": np.float32([[5, 8]])})
    assert tables.standardise(source).test["x"].tolist() == [[3, 1]]


def test_users_are_matched_by_name_and_strangers_stay_in_the_test_set(tmp_path):
    train = write_csv(tmp_path / "train.csv")
    whole = {**COLUMNS, "who": ["carl", "dora"] * 6}
    table = tables.read(train, write_csv(tmp_path / "test.csv", whole), **WORDS)
    arrays = tables.Source(*({"label": part["label"]} for part in table.source))
    data = federate(arrays, table.parts, personal_parts=table.personal_parts)
    assert data.names == ("anna", "bert", "carl")
    assert data.personal.count.tolist() == [0, 0, 6]
    assert len(data.test["label"]) == 12


def test_each_user_gives_rows_to_the_test_set(tmp_path):
    columns = {"who": list("ab") * 20, "y": [0, 0, 1, 1] * 10, "x": range(40)}
    table = tables.read(write_csv(tmp_path / "u.csv", columns), label="y", user="who")
    assert table.users[1].tolist().count("a") == table.users[1].tolist().count("b") == 4
    assert partition.natural(table.users[0]).names == ("a", "b")


def test_rows_with_an_empty_field_are_left_out_if_asked(tmp_path):
    columns = {**COLUMNS, "age": ["", *AGES[1:]], "stars": [STARS[0], " ", *STARS[2:]]}
    path = write_csv(tmp_path / "e.csv", columns)
    with pytest.warns(UserWarning, match=r"e.csv: 2 of 12 rows have an empty field"):
        table = tables.read(path, path, missing="drop", **WORDS)
    assert table.source.train["text"].tolist() == TEXTS[2:]


def wrong(change, name="w.csv", **words):
    """(the file's text, its name, the arguments) of a table that is refused."""
    text = "review,stars,who,age\n" + "good,up,anna,1\nbad,down,bert,2\n" * 8
    return change(text), name, {**WORDS, **words}


WRONG = {
    "empty": (wrong(lambda t: ""), "w.csv is empty; give a file with a row"),
    "header only": (wrong(lambda t: t[:21]), "w.csv has no row to learn from"),
    "unknown": (wrong(str, label="star"), r"has no column 'star'; its columns are 'review', 'st"),
    "doubled": (
        wrong(lambda t: t.replace("age", "who", 1), numbers=None),
        "line 1 has 'who' for a column 2",
    ),
    "ragged": (
        wrong(lambda t: t.replace("bert,2", "bert", 1)),
        r"w.csv, line 3 has 3 fields, and the header has 4; mend the line",
    ),
    "empty field": (
        wrong(lambda t: t.replace("bert,2", "bert,", 1)),
        r"w.csv, line 3: 'age' is empty; fill it in, .*missing='drop'",
    ),
    "no user": (wrong(lambda t: t.replace("anna", "", 1)), "line 2: 'who' is empty"),
    "no number": (
        wrong(lambda t: t.replace("bert,2", "bert,old", 1)),
        "line 3: 'age' has 'old', which is no finite number; mend it",
    ),
    "infinite": (wrong(lambda t: t.replace("bert,2", "bert,inf", 1)), "line 3: 'age' has 'inf'"),
    "vast": (wrong(lambda t: t.replace("bert,2", "bert,1e99", 1)), r"line 3 has a number above"),
    "open quote": (
        wrong(lambda t: t.replace("bad", '"bad', 1)),
        r"w.csv, line 3: unexpected end of data; close each quote",
    ),
    "one class": (wrong(lambda t: t.replace("down", "up")), r"has 'up' for 'stars' in every row"),
    "no classes": (
        wrong(lambda t: "age,y\n" + "".join(f"1,{i / 7}\n" for i in range(30)), label="y",
              text=None, user=None, numbers=None),
        r"has 30 different values of 'y' in 30 rows, such as '0.0'",
    ),
    "an index": (
        wrong(lambda t: ",x,y\n" + "0,1,2\n" * 4, label="y", text=None, user=None, numbers=None),
        "has a column without a name, as of an index; name those to read",
    ),
    "json": (wrong(lambda t: '{"review": "a"}\n[1]\n', "w.jsonl"), "line 2 is a list; write one"),
    "half json": (wrong(lambda t: '{"review": "a"}\n{"re', "w.jsonl"), r"line 2 is no JSON \(Unte"),
    "no text": (
        wrong(lambda t: '{"review": 5, "stars": "up", "who": "a", "age": 1}\n' * 3, "w.jsonl"),
        "line 1: 'review' has 5, which is no text",
    ),
    "absent": (
        wrong(lambda t: json.dumps(objects()[0]) + '\n{"review": "a"}\n', "w.jsonl"),
        "w.jsonl, line 2: 'stars' is empty",
    ),
    "unequal": (
        wrong(
            lambda t: '{"x": [1, 2], "y": "a"}\n{"x": [1], "y": "b"}\n', "w.jsonl", label="y",
            text=None, user=None, numbers=("x",),
        ),
        "w.jsonl, line 2 has 1 numbers, and the rows before it have 2",
    ),
    "another kind": (wrong(str, "w.xlsx"), r"w.xlsx is no .csv, .tsv, .jsonl"),
    "no parquet": (wrong(str, "w.parquet"), "w.parquet is no Parquet file"),
    "one purpose": (wrong(str, user="stars"), "the column 'stars' is given twice"),
    "a second text": (wrong(str, text=None, pair="review"), "pair='review' is a second text"),
    "fraction": (wrong(str, test_fraction=1.0), "test_fraction=1.0; use a number above 0"),
    "encoding": (wrong(str, encoding="utf-9"), "encoding='utf-9' is unknown"),
    "missing": (wrong(str, missing="fill"), "missing='fill'; use one of"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_table_that_cannot_be_used_is_refused_in_a_sentence(tmp_path, name):
    (text, file, words), sentence = WRONG[name]
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        tables.read(tmp_path / file, **words)


def test_another_encoding_is_named_with_its_line(tmp_path):
    path = tmp_path / "l.csv"
    text = "review,stars,who,age\n" + "good,up,anna,1\nschön,down,bert,2\n" * 3
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"l.csv, line 3: the byte 0xf6 is no utf-8; .*'cp1252'"):
        tables.read(path, **WORDS)
    assert "schön" in tables.read(path, path, encoding="cp1252", **WORDS).source.train["text"]
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match=r"line 1: the byte 0xff .*encoding='utf-16'"):
        tables.read(path, **WORDS)
    assert "schön" in tables.read(path, path, encoding="utf-16", **WORDS).source.train["text"]


def test_a_label_that_the_training_set_lacks_is_refused_with_its_line(tmp_path):
    train = write_csv(tmp_path / "train.csv")
    test = write_csv(tmp_path / "test.csv", {**COLUMNS, "stars": [*STARS[:-1], "middle"]})
    with pytest.raises(ValueError, match=r"test.csv, line 15 has the label 'middle' .*leave such"):
        tables.read(train, test, **WORDS)


def test_what_has_no_rows_is_refused():
    with pytest.raises(TypeError, match="the training set is a int; give a path"):
        tables.read(5, label="y")
    with pytest.raises(TypeError, match=r"the training set is a dict of \['train'\]; give one"):
        tables.read({"train": Indexed(objects())}, label="stars")
    with pytest.raises(ValueError, match="the training set is empty"):
        tables.read([], label="y")
    with pytest.raises(ValueError, match=r"there is no file nowhere.csv"):
        tables.read("nowhere.csv", label="y")
    with pytest.raises(ValueError, match="name their column, user="):
        _ = tables.read(Indexed(objects()), label="stars", text="review").parts


def test_a_table_beyond_the_memory_is_refused_before_it_is_read(tmp_path, monkeypatch):
    columns = {"y": [0, 1] * 20_000, "x": [0.5] * 40_000}
    path = write_csv(tmp_path / "large.csv", columns)
    monkeypatch.setattr(memory, "free", lambda: 1_000_000)
    with pytest.raises(ValueError, match=r"needs about 0.00.. GB of memory, and 0.001 GB are free"):
        tables.read(path, label="y")


def test_only_the_columns_that_are_asked_for_are_kept(tmp_path):
    """2 MB of other text pass by."""
    columns = {"y": [0, 1] * 1000, "x": [0.5] * 2000, "other": ["word " * 200] * 2000}
    path = write_csv(tmp_path / "wide.csv", columns)
    tracemalloc.start()
    tables.read(path, label="y", numbers=("x",))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 800_000
