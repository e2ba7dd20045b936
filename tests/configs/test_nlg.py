"""configs/pf2lora/nlg.py from files to scores, with a tiny decoder and tiny WebNLG and E2E."""

import os
import runpy
import tarfile
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny_llama2c

import jaxfed
from jaxfed import trees
from jaxfed.cli import main

PATH = Path(__file__).parents[2] / "configs/pf2lora/nlg.py"
CONFIG = runpy.run_path(str(PATH))
SMALL = {"clients": 2, "similarity": 0.0, "end": "</s>", "max_length": 40, "rank": 2}
REAL = Path(os.environ.get("JAXFED_DATA", "absent"))
SHORT = {"rounds": 1, "local_steps": 1, "batch_size": 2}
ENTRY = """<entry category="{}"><modifiedtripleset><mtriple>{} | is | {}</mtriple>
</modifiedtripleset><lex>{} {}</lex><lex>{}</lex></entry>"""


def webnlg(folder):
    """Two categories to train on, of which the test set has one and another."""
    sets = {"train/x.xml": ("City", "Food"), "testdata_with_lex.xml": ("City", "Sport")}
    for name, categories in sets.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        entries = [ENTRY.format(c, a, b, a, b, b) for c in categories for a, b in ("ab", "cd")]
        text = f"<benchmark><entries>{''.join(entries)}</entries></benchmark>"
        (folder / name).write_text(text)
    return folder


def e2e(folder):
    folder.mkdir()
    rows = [
        (f"x[{n}], eatType[{kind}]", f"{n} {kind[0]}") for n in "ab" for kind in ("pub", "cafe")
    ]
    lines = "".join(f'"{mr}",{ref}\n"{mr}",{ref} a\n' for mr, ref in rows)
    for name in ("trainset.csv", "testset_w_refs.csv"):
        (folder / name).write_text(f"mr,ref\n{lines}")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("nlg")
    model = tiny_llama2c.write(place, positions=64)
    return {"model": str(model), "webnlg": webnlg(place / "w"), "e2e": e2e(place / "e")}


def settings(folders, dataset):
    return {"model": folders["model"], "data": str(folders[dataset]), "dataset": dataset}


@pytest.mark.parametrize("dataset", ["webnlg", "e2e"])
def test_clients_have_entries_of_a_category_with_all_their_texts(folders, dataset):
    data = CONFIG["experiment"](**settings(folders, dataset), **SMALL, method="fedlora").data
    assert (data.train.count.tolist(), data.personal.count.tolist()) == ([4, 4], [4, 4])
    for split in (data.train, data.personal):
        owned = [set(split.examples["entry"][s : s + 4].tolist()) for s in split.start]
        expected = [{0, 1}, {2, 3}] if dataset == "webnlg" else [{1, 3}, {0, 2}]
        assert owned == expected


def test_a_prompt_is_read_up_to_the_bars_and_padded_behind(folders):
    experiment = CONFIG["experiment"](**settings(folders, "webnlg"), **SMALL, method="fedlora")
    _, _, tokenizer = CONFIG["pretrained"].decoder_with_tokenizer(folders["model"])
    examples = experiment.data.test
    prompt, real = CONFIG["prompts"](examples, np.array([0, 2]), 24)
    texts = [tokenizer.decode(p[r]) for p, r in zip(prompt, real, strict=True)]
    assert texts == ["a | is | b ||", "c | is | d ||"]
    assert (real[:, 1:] <= real[:, :-1]).all()
    said = examples["tokens"][0][examples["scored"][0] > 0]
    assert tokenizer.decode(said[:-1]).strip() == "a b"


def test_a_text_ends_before_its_first_end():
    for tokens, expected in (([5, 6, 2, 7, 2], [5, 6]), ([5, 6], [5, 6]), ([2, 5], [])):
        assert CONFIG["before"](np.array(tokens), 2).tolist() == expected


WRONG = {
    "a method from scratch": ({"method": "fedpara"}, "method='fedpara'; use one of fedavg,"),
    "an end": ({"end": "<eos>"}, "the tokenizer has no token '<eos>'; give the one that ends"),
    "a model": ({"model": "absent"}, "absent has nothing; give a folder with config.json"),
    "no E2E": ({"dataset": "e2e"}, r"there is no .*trainset.csv or train.txt; give the folder"),
    "a long text": ({"max_length": 80}, "do not fit the model's 64 positions"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_refused_in_a_sentence(folders, tmp_path, name):
    change, message = WRONG[name]
    given = {**settings(folders, "webnlg"), **SMALL, "method": "fedlora"}
    if name == "a long text":
        long = webnlg(tmp_path / "w")
        file = long / "train" / "x.xml"
        file.write_text(file.read_text().replace("<lex>a b<", f"<lex>{'a' * 70}<"))
        given["data"] = str(long)
    with pytest.raises(ValueError, match=message):
        CONFIG["experiment"](**{**given, **change})


@pytest.mark.full
@pytest.mark.parametrize("method", ["fedper", "fedrep"])
def test_clients_may_keep_the_factors_of_values(folders, method):
    made = CONFIG["experiment"](**settings(folders, "webnlg"), **SMALL, **SHORT, method=method)
    _, theta = jax.eval_shape(made.task.init, jax.random.key(0))
    server = jax.eval_shape(made.algorithm.init, jax.random.key(0))
    state = jax.eval_shape(made.algorithm.init_client, server, jax.random.key(0))
    assert trees.size(state) == trees.size(theta.factors["layers/value/kernel"])


@pytest.mark.full
@pytest.mark.parametrize(("dataset", "method"), [("webnlg", "pf2lora"), ("e2e", "fedsa")])
def test_each_clients_own_model_writes_and_is_scored(folders, tmp_path, dataset, method):
    given = {**settings(folders, dataset), **SMALL, **SHORT, "method": method}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    main.main(["run", str(PATH), *words, f"--out={tmp_path / 'run'}", "--chunk=2", "--fuse=1"])
    options = {"end": "</s>", "beams": 2, "most": 4, "batch": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without WordNet one says so
        found = CONFIG["scored"](str(tmp_path / "run"), **settings(folders, dataset), **options)
    assert found.pop("texts") == 4
    groups = found.values() if dataset == "webnlg" else [found]
    assert set(found) == {"all", "seen", "unseen"} or dataset == "e2e"
    assert all(np.isfinite(value) for group in groups for value in group.values())


def part_of_webnlg(tar, folder):
    """Every 40th entry of one triple to train on, and of the test set, from the real files."""
    with tarfile.open(tar) as files:
        for member in files:
            name = member.name.partition("webnlg_challenge_2017/")[2] or member.name
            wanted = "train/1triples" in name or name.endswith("testdata_with_lex.xml")
            if not (member.isfile() and wanted and name.endswith(".xml")):
                continue
            root = ElementTree.fromstring(files.extractfile(member).read())
            entries = root.find("entries")
            for i, entry in enumerate(list(entries)):
                if i % 40:
                    entries.remove(entry)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(ElementTree.tostring(root))
    return folder


@pytest.mark.full
@pytest.mark.skipif(not (REAL / "webnlg").is_dir(), reason="set JAXFED_DATA")
def test_the_whole_path_on_real_data_with_260_thousand_weights(tmp_path):
    """That it runs, and lowers the loss. So small a model cannot write such text."""
    model, (tar,) = REAL.parent / "models" / "stories260K", (REAL / "webnlg").glob("*.tar*")
    data = part_of_webnlg(tar, tmp_path / "webnlg")
    words = [f"--model={model}", f"--data={data}", "--end=</s>", "--max-length=128"]
    short = ["--rounds=2", "--local-steps=4", "--batch-size=4", "--evaluate-every=2"]
    quick = [
        "--clients=4",
        "--chunk=4",
        "--fuse=1",
        "--method=fedlora",
        f"--out={tmp_path / 'run'}",
    ]
    main.main(["run", str(PATH), *words, *short, *quick])
    records = jaxfed.load(tmp_path / "run").records
    assert records[-1]["loss"] < records[0]["loss"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without WordNet one says so
        found = CONFIG["scored"](
            str(tmp_path / "run"), str(model), str(data), end="</s>", beams=2, most=16, entries=1
        )
    assert found["texts"] == 4
    assert 0 <= found["all"]["bleu"] < 20
    assert found["all"]["rouge_l"] > 0  # something was written
