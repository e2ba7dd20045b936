"""Tokens with a mark on those to predict, JSON lines, and WebNLG's files."""

import gzip
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from jaxfed.data import nlg

END = 9
WEBNLG = Path(os.environ.get("JAXFED_DATA", "absent")) / "webnlg"


def tokenizer():
    """Words a to h at spaces, ids 1 to 8, with 10 before a text."""
    words = {word: i for i, word in enumerate("?abcdefgh")}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({**words, "<s>": 10}, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 10)]
    )
    return made


def of(*columns):
    names = ("prompt", "response") if len(columns) == 2 else ("text",)
    return {n: np.array(c, object) for n, c in zip(names, columns, strict=True)}


def test_the_response_and_its_end_are_scored_and_the_prompt_is_not():
    examples = {**of(["a b", "c"], ["d", "e f"]), "label": np.array([7, 8])}
    found = nlg.prompted(examples, tokenizer(), end=END, buckets=(6,))
    assert found["tokens"].tolist() == [[10, 1, 2, 4, END, 0], [10, 3, 5, 6, END, 0]]
    assert found["scored"].tolist() == [[0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 0]]
    assert (found["length"].tolist(), found["label"].tolist()) == ([5, 5], [7, 8])


def test_of_a_text_all_but_the_first_token_is_scored():
    found = nlg.prompted(of(["a b", "c"]), tokenizer(), end=None, pad=3, buckets=(4,))
    assert found["tokens"].tolist() == [[10, 1, 2, 3], [10, 3, 3, 3]]
    assert found["scored"].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]


def test_long_rows_are_cut_or_dropped_and_rows_without_a_response_left_always():
    examples = of(["a b c d", "a", "b"], ["e", "b c d e", "c"])
    with pytest.warns(UserWarning, match=r"^1 of 3 examples do not fit into 4 tokens"):
        cut = nlg.prompted(examples, tokenizer(), end=END, max_length=4)
    assert cut["tokens"].tolist() == [[10, 1, 2, 3], [10, 2, 3, END]]
    with pytest.warns(UserWarning, match=r"^2 of 3 examples"):
        dropped = nlg.prompted(examples, tokenizer(), end=END, max_length=4, longer="drop")
    assert dropped["tokens"].tolist() == [[10, 2, 3, END]]


WRONG = {
    "an empty response": (of(["a", "b"], ["c", " "]), {}, "'response' is empty in row 1"),
    "no text": ({"label": np.zeros(2)}, {}, r"the examples have no \['text'\]; they have"),
    "no string": (of([3]), {}, "'text' has 3 in row 0; give strings"),
    "nothing fits": (
        of(["a b c"], ["d"]),
        {"max_length": 3},
        "no example fits into 3 tokens; raise",
    ),
    "longer": (of(["a"]), {"longer": "keep"}, "longer='keep'; use \"cut\""),
    "buckets": (of(["a"]), {"buckets": (0,)}, "a bucket=0; use at least 1"),
    "end": (of(["a"]), {"end": -1}, "end=-1; use at least 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_text_is_refused_in_a_sentence(name):
    examples, options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        nlg.prompted(examples, tokenizer(), **{"end": END, **options})


@pytest.mark.parametrize("compressed", [False, True])
def test_json_lines_are_read_by_name(tmp_path, compressed):
    lines = [{"prompt": "a", "response": "b", "id": 3}, {"prompt": "é", "response": "d"}]
    data = "\n".join(map(json.dumps, lines)).encode()
    path = tmp_path / ("x.jsonl.gz" if compressed else "x.jsonl")
    path.write_bytes(gzip.compress(data) if compressed else data)
    found = nlg.jsonl(path)
    assert {n: x.tolist() for n, x in found.items()} == {
        "prompt": ["a", "é"],
        "response": ["b", "d"],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "response": "b"}\n{"prompt"', "line 2 is no JSON"),
        ('{"prompt": "a"}', r"line 1 has no string 'response'; it has \['prompt'\]"),
        ("3", "line 1 has no string 'prompt'; it has int"),
        ("", "has no lines"),
    ],
)
def test_wrong_lines_are_refused_by_number(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        nlg.jsonl(tmp_path / "x.jsonl")


ENTRY = """<benchmark><entries><entry category="City" eid="Id1" size="2"><originaltripleset/>
<modifiedtripleset><mtriple>A | b | C</mtriple><mtriple>A | d | E</mtriple></modifiedtripleset>
<lex comment="good" lid="Id1">One.</lex><lex comment="good" lid="Id2"> Two. </lex></entry>
<entry category="Food"><modifiedtripleset><mtriple>F | g | H</mtriple></modifiedtripleset>
<lex>Three.</lex></entry></entries></benchmark>"""


def test_a_folder_and_a_tar_of_webnlg_are_read_alike(tmp_path):
    place = tmp_path / "webnlg" / "train" / "2triples" / "x.xml"
    place.parent.mkdir(parents=True)
    place.write_text(ENTRY)
    with tarfile.open(tmp_path / "webnlg.tar.xz", "w:xz") as tar:
        tar.add(tmp_path / "webnlg", "webnlg")
    for path in (tmp_path / "webnlg", tmp_path / "webnlg.tar.xz"):
        found = {n: x.tolist() for n, x in nlg.webnlg(path, "train").items()}
        assert found["prompt"] == ["A | b | C && A | d | E"] * 2 + ["F | g | H"]
        assert found["response"] == ["One.", "Two.", "Three."]
        assert (found["entry"], found["category"]) == ([0, 0, 1], ["City", "City", "Food"])
    below = tmp_path / "train" / "webnlg"
    shutil.copytree(tmp_path / "webnlg" / "train", below / "dev")
    assert len(nlg.webnlg(below, "dev")["prompt"]) == 3
    with pytest.raises(ValueError, match=r"has no train/"):
        nlg.webnlg(below, "train")
    with pytest.raises(ValueError, match=r"has no testdata_with_lex\.xml of WebNLG"):
        nlg.webnlg(tmp_path / "webnlg", "test")
    place.write_text(ENTRY[:-5])
    with pytest.raises(ValueError, match=r"x\.xml cannot be read"):
        nlg.webnlg(tmp_path / "webnlg", "train")


@pytest.mark.skipif(not WEBNLG.is_dir(), reason="set JAXFED_DATA")
def test_the_real_webnlg_has_its_published_counts():
    (path,) = WEBNLG.glob("*.tar*")
    counts = {"train": (6940, 18102), "dev": (872, 2268), "test": (1862, 4928)}
    for split, (entries, texts) in {**counts, "unseen": (891, 2433)}.items():
        found = nlg.webnlg(path, split)
        assert (len(np.unique(found["entry"])), len(found["response"])) == (entries, texts)


E2E = """mr,ref
"name[Aromi], eatType[pub]",Aromi is a pub.
"name[Zizzi]","Zizzi, a place
to eat."
"name[Aromi], eatType[pub]",A pub called Aromi.
"""


@pytest.mark.parametrize("layout", ["csv", "csv.gz", "text"])
def test_both_forms_of_e2e_are_read_alike(tmp_path, layout):
    """With the byte order mark that spreadsheets write, and equal meanings far apart."""
    prompt = ["name[Aromi], eatType[pub]", "name[Zizzi]", "name[Aromi], eatType[pub]"]
    response = ["Aromi is a pub.", "Zizzi, a place\nto eat.", "A pub called Aromi."]
    if layout == "text":
        response[1] = "Zizzi, a place to eat."
        text = "".join(f"{p}||{r} \n" for p, r in zip(prompt, response, strict=True))
    else:
        text = E2E.replace("mr,ref", "\ufeffMR,ref")
    path = tmp_path / f"e2e.{layout.replace('text', 'txt')}"
    path.write_bytes((gzip.compress if layout == "csv.gz" else bytes)(text.encode()))
    found = {n: x.tolist() for n, x in nlg.e2e(path).items()}
    assert found == {"prompt": prompt, "response": response, "entry": [0, 1, 0]}


def test_references_of_one_entry_are_gathered_in_order():
    examples = {
        "prompt": np.array(["x", "y", "x", "z"], object),
        "response": np.array(["1", "2", "3", "4"], object),
        "entry": np.array([5, 2, 5, 3]),
    }
    rows, several = nlg.grouped(examples)
    assert {n: x.tolist() for n, x in rows.items()} == {
        "prompt": ["x", "y", "z"],
        "entry": [5, 2, 3],
    }
    assert several == [["1", "3"], ["2"], ["4"]]
    with pytest.raises(ValueError, match=r"the examples have no \['entry', 'response'\]"):
        nlg.grouped({"prompt": examples["prompt"]})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "mr\na", r"has no columns \['ref'\]; it has \['mr'\]"),
        ("x.csv", "mr,ref\na", "line 2 has fewer than its columns"),
        ("x.csv", "", r"has no columns \['mr', 'ref'\]"),
        ("x.csv", "mr,ref\n", "has no rows; give the file as the E2E"),
        ("x.txt", "a||b\nc|d", r"line 2 has no '\|\|'"),
    ],
)
def test_wrong_files_of_e2e_are_refused_in_a_sentence(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        nlg.e2e(tmp_path / name)
