"""What is exported is the run's model, also where other programs run it."""

import jax
import numpy as np
import pytest
import tiny_bert
from pages import ROOT

import jaxfed
from jaxfed import pretrained, trees
from jaxfed.cli import export, main

QUICK = ("--chunk", 1, "--fuse", 1, "--devices", 1)
FEDSA = ("--method", "fedsa", "--clients", 2, "--rounds", 2, "--local-steps", 1, "--rank", 2)


def command(*arguments):
    main.main([str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(the folder of a run of FedSA-LoRA on a tiny BERT, the run as it is read back)."""
    place = tmp_path_factory.mktemp("run")
    bert, data = tiny_bert.write(place / "bert"), tiny_bert.write_cola(place / "data", 40, 12)
    glue = ROOT / "configs/pf2lora/glue.py"
    given = (
        "--model",
        bert,
        "--data-dir",
        data,
        "--learning-rate",
        0.1,
        "--batch-size",
        4,
        "--evaluate-every",
        0,
    )
    command("run", glue, "--out", place / "r", *given, *FEDSA, *QUICK)
    return place / "r", jaxfed.load(place / "r")


def tokens(found):
    return {name: x[:5] for name, x in found.experiment.data.test.items()}


@pytest.mark.full
def test_a_folder_for_hugging_face_holds_the_merged_weights_of_a_client(run, tmp_path, capsys):
    folder, found = run
    command("export", folder, "--hf", tmp_path / "hf", "--npz", tmp_path / "w.npz", "--client", 1)
    assert "the model of client 1 after round 2" in capsys.readouterr().out
    _, params = pretrained.read(tmp_path / "hf", classes=2)
    expected = found.params(1)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    with np.load(tmp_path / "w.npz") as arrays:
        assert set(arrays) == set(flat := trees.by_path(expected))
        assert all(np.array_equal(arrays[name], w) for name, w in flat.items())
    pretrained.tokenizer(tmp_path / "hf")
    others = trees.by_path(found.params())
    assert not np.array_equal(others["layer_0/query/kernel"], flat["layer_0/query/kernel"])


@pytest.mark.full
def test_transformers_and_peft_run_what_was_exported(run, tmp_path):
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    peft = pytest.importorskip("peft")
    folder, found = run
    command("export", folder, "--hf", tmp_path / "hf", "--peft", tmp_path / "common")
    command("export", folder, "--peft", tmp_path / "mine", "--client", 1)
    rows = tokens(found)
    given = {
        "input_ids": torch.tensor(rows["tokens"]).long(),
        "token_type_ids": torch.tensor(rows["types"]).long(),
        "attention_mask": torch.tensor(rows["tokens"] != tiny_bert.PAD).long(),
    }

    def logits(model):
        with torch.no_grad():
            return model.eval()(**given).logits.numpy()

    of = transformers.AutoModelForSequenceClassification.from_pretrained
    np.testing.assert_allclose(logits(of(tmp_path / "hf")), found.predict(rows), atol=1e-5)
    bert = folder.parent / "bert"
    for name, client in (("common", None), ("mine", 1)):
        plain = of(bert, num_labels=2)
        adapted = peft.PeftModel.from_pretrained(plain, tmp_path / name)
        np.testing.assert_allclose(logits(adapted), found.predict(rows, client), atol=1e-5)


def refused(sentence, *arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        command(*arguments)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_what_cannot_be_exported_is_refused_in_a_sentence(run, tmp_path, capsys):
    folder, found = run
    there = tmp_path / "there"
    there.mkdir()
    for sentence, arguments in (
        ("give the form", ()),
        (f"{there} exists", ("--hf", there)),
        ("has no option --onnx", ("--onnx", "w")),
        ("there is no client anna; use 0 to 1", ("--npz", tmp_path / "w", "--client", "anna")),
    ):
        refused(sentence, "export", folder, *arguments, capsys=capsys)
    with pytest.raises(ValueError, match=r"no setting of r .* use --npz"):
        export.checkpoint_of({"settings": {"model": "bert", "rank": 2}}, "r", None)
    other = tiny_bert.write(tmp_path / "another")
    config = (other / "config.json").read_text()
    (other / "config.json").write_text(config.replace('hidden_layers": 1', 'hidden_layers": 2'))
    with pytest.raises(ValueError, match=r"not of a model like .*: layer_1/.* is not there"):
        pretrained.write_model(tmp_path / "new", other, found.params())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("pair", [("hf", "peft", ""), ("npz", "hf", ""), ("npz", "hf", "/in")])
def test_two_forms_have_two_places(run, pair, tmp_path, capsys):
    first, second, inside = pair
    place = tmp_path / "x"
    given = (f"--{first}", f"{place}{inside}", f"--{second}", place)
    refused("give each a place of its own", "export", run[0], *given, capsys=capsys)
    refused("in nobody's home", "export", run[0], "--npz", "~nobody-at-all/x", capsys=capsys)
    assert not place.exists()


def test_any_text_may_be_a_setting_beside_the_pretrained_folder(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "model.safetensors.index.json").write_text("{}")
    texts = {"a": "~nobody-at-all/x", "b": "x" * 5000, "c": "a\0b", "d": "parts"}
    saved = {"settings": texts, "directory": str(tmp_path)}
    assert export.checkpoint_of(saved, tmp_path / "r", None) == tmp_path / "parts"


def test_arrays_are_written_beside_what_a_user_has(tmp_path):
    (tmp_path / "w.npz.new").symlink_to(tmp_path / "mine")
    (tmp_path / "mine").write_text("mine")
    export.write_npz(tmp_path / "w.npz", {"a/b": np.arange(3)})
    with np.load(tmp_path / "w.npz") as arrays:
        np.testing.assert_array_equal(arrays["a/b"], np.arange(3))
    assert (tmp_path / "w.npz.new").is_symlink()
    assert (tmp_path / "mine").read_text() == "mine"
