"""Wrong texts, GLUE folders and checkpoints are refused where they are given."""

import json
from pathlib import Path

import numpy as np
import pytest
import refusals
import tiny_bert
from refusals import written

from jaxfed import pretrained
from jaxfed.data import glue, sources, text

pytestmark = pytest.mark.quick

TEXTS = {"text": np.array(["a b", "c d e"], object), "label": np.arange(2)}


def tokenise(examples=TEXTS, tokenizer=None, **options):
    tokenizer = tokenizer or tiny_bert.tokenizer()
    return text.tokenise(examples, tokenizer, **{"pad": 0, **options})


def cola(content, name="train.tsv"):
    written(f"CoLA/{name}", content)
    written("CoLA/dev.tsv", "a\t1\t\tgood\n")
    return glue.tsv("cola", ".")


def sst2(content):
    written("SST-2/train.tsv", content)
    written("SST-2/dev.tsv", content)
    return glue.tsv("sst2", ".")


def checkpoint(**changes):
    config = {
        "model_type": "bert",
        "vocab_size": 14,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 40,
        "type_vocab_size": 2,
        "pad_token_id": 0,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    } | changes
    written("config.json", json.dumps(config))
    return pretrained.read(".")


def latin():
    Path("SST-2").mkdir()
    Path("SST-2/train.tsv").write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    written("SST-2/dev.tsv", "sentence\tlabel\n")
    return glue.tsv("sst2", ".")


CASES = [
    ("longer", lambda: tokenise(longer="shorten"), ValueError, "longer='shorten'; use \"cut\" or"),
    ("pad -1", lambda: tokenise(pad=-1), ValueError, "pad=-1; use at least 0"),
    ("pad None", lambda: tokenise(pad=None), TypeError, "pad=None is a NoneType; give a whole"),
    ("max_length 0", lambda: tokenise(max_length=0), ValueError, "max_length=0; use at least 1"),
    ("max_length half", lambda: tokenise(max_length=12.5), TypeError, "max_length=12.5 is a"),
    (
        "max_length of special tokens",
        lambda: tokenise(max_length=2),
        ValueError,
        "max_length=2 holds only the 2 special tokens",
    ),
    (
        "all too long",
        lambda: tokenise(max_length=3, longer="drop"),
        ValueError,
        "no example fits into 3 tokens; raise max_length",
    ),
    ("bucket 0", lambda: tokenise(buckets=(0, 16)), ValueError, "a bucket=0; use at least 1"),
    ("buckets a number", lambda: tokenise(buckets=16), TypeError, "buckets is a int; give"),
    ("no text", lambda: tokenise({"label": np.arange(2)}), ValueError, "the examples have no"),
    (
        "no examples",
        lambda: tokenise({"text": np.array([], object)}),
        ValueError,
        "no example fits into 128 tokens; raise max_length",
    ),
    (
        "text of numbers",
        lambda: tokenise({"text": np.arange(2)}),
        ValueError,
        "'text' has np.int64(0) in row 0; give strings",
    ),
    (
        "text None",
        lambda: tokenise({"text": np.array(["a", None], object)}),
        ValueError,
        "'text' has None in row 1; give strings",
    ),
    (
        "pairs of another length",
        lambda: tokenise({**TEXTS, "pair": np.array(["a"], object)}),
        ValueError,
        "the examples have lengths {'text': 2, 'label': 2, 'pair': 1}; give each array",
    ),
    (
        "labels of another length",
        lambda: tokenise({**TEXTS, "label": np.arange(1)}),
        ValueError,
        "the examples have lengths {'text': 2, 'label': 1}; give each array one row an",
    ),
    (
        "a name as tokenizer",
        lambda: tokenise(tokenizer="bert-base-uncased"),
        TypeError,
        "tokenizer is a str; give one, such as pretrained.tokenizer(folder)",
    ),
    ("padding of nothing", lambda: text.padding(TEXTS), ValueError, "the examples have no"),
    ("glue task", lambda: glue.tsv("rte", "."), ValueError, "there is no GLUE task 'rte' here;"),
    ("glue task of tfds", lambda: glue.tfds("sst-2", None), ValueError, "there is no GLUE task"),
    ("glue nowhere", lambda: glue.tsv("cola", "nowhere"), ValueError, "there is no"),
    ("glue labels", lambda: cola("a\t2\t\tgood\n"), ValueError, "CoLA/train.tsv has labels"),
    ("glue columns", lambda: sst2("text\tlabel\ngood\t1\n"), ValueError, "SST-2/train.tsv has no"),
    ("glue empty", lambda: sst2(""), ValueError, "SST-2/train.tsv has no columns ['label',"),
    ("glue without rows", lambda: sst2("sentence\tlabel\n"), ValueError, "SST-2/train.tsv has no"),
    ("glue in latin-1", latin, ValueError, "SST-2/train.tsv cannot be read"),
    (
        "glue no gzip",
        lambda: cola("a\t1\t\tgood\n", "train.tsv.gz"),
        ValueError,
        "CoLA/train.tsv.gz cannot be read",
    ),
    (
        "tfds unprepared",
        lambda: sources.tfds("mnist", data_dir=Path.cwd()),
        ValueError,
        "TFDS has no 'mnist' prepared in",
    ),
    (
        "tfds unknown",
        lambda: sources.tfds("mnistt", data_dir=Path.cwd()),
        ValueError,
        "TFDS knows no 'mnistt'; see tensorflow.org/datasets/catalog for the names",
    ),
    (
        "tfds empty",
        lambda: sources.tfds("", data_dir=Path.cwd()),
        ValueError,
        "TFDS knows no ''; see tensorflow.org/datasets/catalog for the names",
    ),
    ("no checkpoint", lambda: pretrained.read("nowhere"), ValueError, "nowhere has no"),
    (
        "checkpoint a file",
        lambda: pretrained.read(written("f", "")),
        ValueError,
        "f has no config.json; it has nothing",
    ),
    (
        "config broken",
        lambda: (written("config.json", "{"), pretrained.read(".")),
        ValueError,
        "config.json cannot be read",
    ),
    (
        "config a list",
        lambda: (written("config.json", "[]"), pretrained.read(".")),
        ValueError,
        "config.json holds a list, not an object; download it again",
    ),
    ("another family", lambda: checkpoint(model_type="gpt2"), ValueError, ". holds a 'gpt2'"),
    ("family a number", lambda: checkpoint(model_type=3), ValueError, ". holds a 3 model;"),
    ("width None", lambda: checkpoint(hidden_size=None), ValueError, "./config.json does not say"),
    ("width text", lambda: checkpoint(hidden_size="8"), ValueError, "config.json has"),
    ("width -8", lambda: checkpoint(hidden_size=-8), ValueError, "config.json has"),
    ("heads", lambda: checkpoint(num_attention_heads=3), ValueError, ". has no"),
    ("activation", lambda: checkpoint(hidden_act="swish"), ValueError, ". has"),
    (
        "relative positions",
        lambda: checkpoint(position_embedding_type="relative_key"),
        ValueError,
        ". has {'position_embedding_type': 'relative_key'}; supported is",
    ),
    ("a decoder", lambda: checkpoint(is_decoder=True), ValueError, ". has {'is_decoder': True};"),
    ("no weights", lambda: checkpoint(), ValueError, ". has no model.safetensors; it has"),
    (
        "weights broken",
        lambda: (written("model.safetensors", "x"), checkpoint()),
        ValueError,
        "model.safetensors cannot be read",
    ),
    ("no tokenizer", lambda: pretrained.tokenizer("."), ValueError, ". has no tokenizer.json; it"),
    (
        "tokenizer broken",
        lambda: pretrained.tokenizer(str(Path(written("tokenizer.json", "{")).parent)),
        ValueError,
        "tokenizer.json cannot be read",
    ),
    (
        "an adapter elsewhere",
        lambda: pretrained.write_adapters(".", ".", {}, {"../x": None}),
        ValueError,
        "an adapter is called '../x', which is no name of a folder in .; use letters,",
    ),
    (
        "an adapter without name",
        lambda: pretrained.write_adapters(".", ".", {}, {"": None}),
        ValueError,
        "an adapter is called '', which is no name of a folder in .; use letters,",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_wrong_input_ends_in_one_sentence(call, error, sentence, tmp_path, monkeypatch, capfd):
    refusals.check(call, error, sentence, tmp_path, monkeypatch)
