"""A BERT of a few thousand weights in a Hugging Face folder, and GLUE files that it can learn."""

import json
from pathlib import Path

import numpy as np
import safetensors.numpy
import tokenizers

PAD, CLS, SEP = 0, 1, 2
WORDS = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghij")
WIDTH, HIDDEN, POSITIONS = 8, 16, 40


def tokenizer() -> tokenizers.Tokenizer:
    """Of words at spaces, with BERT's template."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return made


def tensors() -> dict[str, np.ndarray]:
    """All of the checkpoint's, random; there is no classifier among them."""
    rng = np.random.default_rng(0)
    dense = {
        **dict.fromkeys((f"attention.self.{n}" for n in ("query", "key", "value")), (WIDTH, WIDTH)),
        "attention.output.dense": (WIDTH, WIDTH),
        "intermediate.dense": (HIDDEN, WIDTH),
        "output.dense": (WIDTH, HIDDEN),
    }
    layers = {f"bert.encoder.layer.0.{n}": shape for n, shape in dense.items()}
    layers["bert.pooler.dense"] = (WIDTH, WIDTH)
    tables = {"word": len(WORDS), "position": POSITIONS, "token_type": 2}
    weights = {f"{n}.weight": shape for n, shape in layers.items()}
    weights |= {f"bert.embeddings.{n}_embeddings.weight": (k, WIDTH) for n, k in tables.items()}
    found = {n: rng.normal(0, 0.5, shape) for n, shape in weights.items()}
    found |= {f"{n}.bias": rng.normal(0, 0.1, shape[0]) for n, shape in layers.items()}
    for name in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        found[f"bert.{name}.LayerNorm.weight"] = np.ones(WIDTH)
        found[f"bert.{name}.LayerNorm.bias"] = np.zeros(WIDTH)
    return {n: x.astype(np.float32) for n, x in found.items()}


def write(folder: Path) -> Path:
    """The folder, with config.json, model.safetensors and tokenizer.json in it."""
    folder.mkdir()
    config = {
        "model_type": "bert",
        "vocab_size": len(WORDS),
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": HIDDEN,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "pad_token_id": PAD,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors(), folder / "model.safetensors")
    tokenizer().save(str(folder / "tokenizer.json"))
    return folder


def write_cola(folder: Path, train: int = 160, dev: int = 60) -> Path:
    """The folder, with CoLA's files: a sentence is acceptable if it has more a than b in it."""
    rng = np.random.default_rng(1)
    (folder / "CoLA").mkdir(parents=True)
    for name, count in (("train", train), ("dev", dev)):
        lines = []
        for i in range(count):
            words = ["ab"[i % 2]] * int(rng.integers(2, 4)) + list(rng.choice(list("cdefg"), 3))
            lines.append(f"src\t{1 - i % 2}\t\t{' '.join(rng.permutation(words))}\n")
        (folder / "CoLA" / f"{name}.tsv").write_text("".join(lines))
    return folder
