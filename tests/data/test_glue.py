"""GLUE's files as they are laid out, TFDS's as it prepares them, and the real ones' counts."""

import gzip
import sys

import numpy as np
import pytest

from jaxfed.data import glue

# {task: ((train lines, dev lines), (train examples, dev examples))}; an example: text, pair, label
FILES = {
    "cola": (
        (["x1\t1\t\tBirds sing.", 'x1\t0\t*\tSing "the'], ["x2\t0\t*\tBirds birds."]),
        ([("Birds sing.", None, 1), ('Sing "the', None, 0)], [("Birds birds.", None, 0)]),
    ),
    "sst2": (
        (["sentence\tlabel", "so good \t1"], ["sentence\tlabel", "so bad \t0"]),
        ([("so good ", None, 1)], [("so bad ", None, 0)]),
    ),
    "mnli": (
        (
            [
                "index\tsentence1\tgenre\tsentence2\tgold_label",
                "0\tIt rains.\tx\tIt is wet.\tneutral",
            ],
            ["index\tsentence1\tsentence2\tgold_label", "0\tOne.\tTwo.\tcontradiction"],
        ),
        ([("It rains.", "It is wet.", 1)], [("One.", "Two.", 2)]),
    ),
    "qqp": (
        (["id\tquestion1\tquestion2\tis_duplicate", "0\tWho?\tWhom?\t1"],) * 2,
        ([("Who?", "Whom?", 1)],) * 2,
    ),
    "qnli": (
        (["index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tnot_entailment"],) * 2,
        ([("Who?", "He.", 1)],) * 2,
    ),
}


def written(folder, task, train, dev, compressed=False, dev_name="dev"):
    place = folder / glue.TASKS[task].folder
    place.mkdir()
    for name, lines in (("train", train), (dev_name, dev)):
        data = "".join(f"{line}\n" for line in lines).encode()
        path = place / f"{name}.tsv{'.gz' * compressed}"
        path.write_bytes(gzip.compress(data) if compressed else data)
    return folder


def rows(examples):
    pairs = examples.get("pair", [None] * len(examples["label"]))
    return list(zip(examples["text"], pairs, examples["label"].tolist(), strict=True))


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("task", FILES)
def test_a_task_is_read_from_its_files(tmp_path, task, compressed):
    lines, expected = FILES[task]
    source = glue.tsv(task, written(tmp_path, task, *lines, compressed))
    assert (rows(source.train), rows(source.test)) == expected
    assert source.train["label"].dtype == np.int32


def test_the_matched_development_set_of_mnli_comes_first(tmp_path):
    (train, dev), (_, expected) = FILES["mnli"]
    written(tmp_path, "mnli", train, dev, dev_name="dev_matched")
    assert rows(glue.tsv("mnli", tmp_path).test) == expected


def test_rows_without_a_sentence_or_label_are_left_out_and_counted(tmp_path):
    (train, dev), (expected, _) = FILES["qqp"]
    written(tmp_path, "qqp", [*train, "1\tWhen?", "2\tWhen?\t\t0"], dev)
    with pytest.warns(UserWarning, match="2 of 3 rows lack a sentence or a label"):
        assert rows(glue.tsv("qqp", tmp_path).train) == expected


ERRORS = {
    "task": ("rte", FILES["sst2"][0], "no GLUE task 'rte' here; use one of cola"),
    "column": ("sst2", (["sentence\tscore", "good\t1"],) * 2, r"no columns \['label'\]; it has"),
    "label": ("sst2", (["sentence\tlabel", "good\t2"],) * 2, r"labels \['2'\]; they must be"),
}


@pytest.mark.parametrize(("task", "lines", "match"), ERRORS.values(), ids=ERRORS)
def test_wrong_files_are_refused(tmp_path, task, lines, match):
    written(tmp_path, "sst2", *lines)
    with pytest.raises(ValueError, match=match):
        glue.tsv(task, tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no .*/CoLA/train.tsv or train.tsv.gz; give the folder"):
        glue.tsv("cola", tmp_path)


def test_a_task_that_tfds_has_not_prepared_says_how_to_prepare_it(tmp_path):
    with pytest.raises(ValueError, match="tfds build glue/qqp --file_format=array_record"):
        glue.tfds("qqp", tmp_path)


@pytest.mark.parametrize("task", ["cola", "mnli"])
def test_tfds_and_the_files_hold_the_same(tmp_path, task):
    """TFDS's own builder, given these files in place of a download; it shuffles."""
    from tensorflow_datasets.text import glue as official

    lines, expected = FILES[task]
    written(tmp_path, task, *lines)
    places = [tmp_path / glue.TASKS[task].folder / f"{name}.tsv" for name in ("train", "dev")]
    splits = ("train", glue.TASKS[task].validation)

    class Offline(official.Glue, skip_registration=True):
        __module__ = official.Glue.__module__  # the name under which it is written
        name = "glue"

        def _split_generators(self, _):
            named = zip(splits, places, ("train", "dev"), strict=True)
            return {split: self._generate_examples(path, kind) for split, path, kind in named}

    folder = tmp_path / "tfds"
    Offline(config=task, data_dir=folder, file_format="array_record").download_and_prepare()
    source = glue.tfds(task, folder)
    assert [sorted(rows(part)) for part in source] == [sorted(part) for part in expected]
    assert "tensorflow" not in sys.modules


def test_the_real_files_have_the_published_numbers_of_rows(shared):
    for task, train, dev, ones in (("cola", 8551, 1043, 0.704), ("sst2", 67349, 872, 0.558)):
        source = glue.tsv(task, shared / "glue")
        assert [len(part["label"]) for part in source] == [train, dev]
        np.testing.assert_allclose(source.train["label"].mean(), ones, atol=1e-3)
        assert set(source.train) == {"text", "label"}
    for task in ("mnli", "qqp", "qnli"):
        source = glue.tsv(task, shared / "glue")
        assert set(source.train) == {"text", "pair", "label"}
        assert set(source.test["label"].tolist()) == set(range(len(glue.TASKS[task].classes)))
