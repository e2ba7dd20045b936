"""llama2.c's files: the model against a plain loop, and the real one's greedy text."""

import functools
import hashlib
import os
import struct
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxfed import lowrank, pretrained, tasks

STORIES = Path(os.environ.get("JAXFED_DATA", "absent")).parent / "models" / "stories260K"
real = pytest.mark.skipif(not STORIES.is_dir(), reason="set JAXFED_DATA")
GREEDY = "beeb5cb46785efee81a8545300b31e396b595e5ce6f3b77db201545501981d14"  # sha256 of its text
SIZES = (
    8,
    12,
    2,
    4,
    2,
    270,
    10,
)  # width, feed-forward, depth, heads, groups, vocabulary, positions


def written(path, tied=True):
    """(a random checkpoint's path, its arrays)."""
    width, hidden, depth, heads, groups, vocabulary, positions = SIZES
    kv = groups * width // heads
    shapes = {
        "table": (vocabulary, width),
        "norm_0": (depth, width),
        "q": (depth, width, width),
        "k": (depth, kv, width),
        "v": (depth, kv, width),
        "o": (depth, width, width),
        "norm_1": (depth, width),
        "gate": (depth, hidden, width),
        "down": (depth, width, hidden),
        "up": (depth, hidden, width),
        "norm": (width,),
        "unused": (positions, width // heads),
        "head": (0 if tied else vocabulary, width),
    }
    rng = np.random.default_rng(0)
    arrays = {n: rng.normal(0, 0.5, shape).astype("<f4") for n, shape in shapes.items()}
    sizes = (*SIZES[:5], vocabulary if tied else -vocabulary, positions)
    parts = (struct.pack("<7i", *sizes), *(x.tobytes() for x in arrays.values()))
    path.write_bytes(b"".join(parts))
    return path, arrays


def plain(arrays, tokens):
    """Logits [L, vocabulary] as llama2.c computes them: position by position, pair by pair."""
    width, _, depth, heads, groups, _, _ = SIZES
    h = width // heads
    keys, values = ([[] for _ in range(depth)] for _ in range(2))

    def scaled(x, by):
        return x / np.sqrt(np.mean(x * x) + 1e-5) * by

    def turned(x, place):
        x = x.reshape(-1, h // 2, 2)
        angle = place / 10000 ** (np.arange(0, h, 2) / h)
        turn = np.exp(1j * angle)
        z = (x[..., 0] + 1j * x[..., 1]) * turn
        return np.stack([z.real, z.imag], axis=-1).reshape(-1, h)

    found = []
    for place, token in enumerate(tokens):
        x = arrays["table"][token].astype(np.float64)
        for n in range(depth):
            w = {name: arrays[name][n] for name in arrays if name not in ("table", "head", "norm")
                 and name != "unused"}  # fmt: skip
            y = scaled(x, w["norm_0"])
            q = turned(w["q"] @ y, place)
            keys[n].append(turned(w["k"] @ y, place))
            values[n].append((w["v"] @ y).reshape(-1, h))
            out = []
            for head in range(heads):
                group = head // (heads // groups)
                score = np.array([q[head] @ k[group] for k in keys[n]]) / np.sqrt(h)
                share = np.exp(score - score.max())
                out.append(share @ np.array([v[group] for v in values[n]]) / share.sum())
            x = x + w["o"] @ np.concatenate(out)
            y = scaled(x, w["norm_1"])
            gate = w["gate"] @ y
            x = x + w["down"] @ (gate / (1 + np.exp(-gate)) * (w["up"] @ y))
        table = arrays["head"] if len(arrays["head"]) else arrays["table"]
        found.append(table @ scaled(x, arrays["norm"]))
    return np.array(found)


quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_a_plain_loop(tmp_path, tied):
    path, arrays = written(tmp_path / "model.bin", tied)
    model, params = pretrained.read_llama2c(path)
    tokens = [1, 50, 269, 7, 7, 3]
    found = quickly(model.apply)({"params": params}, np.array([tokens]))[0]
    np.testing.assert_allclose(found, plain(arrays, tokens), atol=1e-4)


def test_a_file_of_another_size_is_refused(tmp_path):
    path, _ = written(tmp_path / "model.bin")
    whole = path.read_bytes()
    for data, message in (
        (whole[:20], "has 20 bytes; give a checkpoint of llama2.c"),
        (whole[:-4], "bytes, not those of"),
        (bytes(100), "begins with"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            pretrained.read_llama2c(path)
        with pytest.raises(ValueError, match="is no tokenizer of"):
            pretrained.llama2c_tokenizer(path)


def tokens_file(path, pieces):
    entries = [("", 0.0)] * 3 + [(f"<0x{i:02X}>", 0.0) for i in range(256)] + pieces
    parts = (struct.pack("<fi", score, len(p.encode())) + p.encode() for p, score in entries)
    path.write_bytes(struct.pack("<i", 9) + b"".join(parts))
    return path


def test_a_token_of_a_length_below_zero_is_refused(tmp_path):
    path = tmp_path / "tok.bin"
    path.write_bytes(struct.pack("<ifi", 9, 0.0, -8))
    with pytest.raises(ValueError, match=r"is no tokenizer of llama2\.c \(a token of -8 bytes\)"):
        pretrained.llama2c_tokenizer(path)


PIECES = [*((c, -9.0) for c in " abc"), ("ab", -2.0), ("bc", -1.0), (" a", -3.0), ("abc", -1.5)]


def test_pairs_merge_in_the_order_of_their_scores(tmp_path):
    made = pretrained.llama2c_tokenizer(tokens_file(tmp_path / "tok.bin", PIECES))
    found = made.encode("abcaé")
    assert found.tokens == ["<s>", " ", "abc", "a", "<0xC3>", "<0xA9>"]
    assert made.decode(found.ids) == "abcaé"


@real
def test_real_pieces_are_those_of_the_greedy_merge():
    made = pretrained.llama2c_tokenizer(STORIES / "tok512.bin")
    scores = {}
    data, at = (STORIES / "tok512.bin").read_bytes(), 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        scores[data[at + 8 : at + 8 + length].decode()] = score
        at += 8 + length
    for text in (
        "Once upon a time, there was a little girl named Lily.",
        "To be, or not to be: 'tis",
    ):
        parts = list(f" {text}")
        while pairs := [i for i in range(len(parts) - 1) if parts[i] + parts[i + 1] in scores]:
            best = max(pairs, key=lambda i: (scores[parts[i] + parts[i + 1]], -i))
            parts[best : best + 2] = [parts[best] + parts[best + 1]]
        assert made.encode(text).tokens[1:] == parts
        assert made.decode(made.encode(text).ids) == text


@real
def test_the_greedy_text_of_the_real_one_is_that_of_llama2c():
    """The 464 bytes that its own test expects after 200 steps from the begin of a text."""
    model, params = pretrained.read_llama2c(STORIES / "stories260K.bin")

    _, theta = lowrank.split(params, {}, lowrank.everything, jax.random.key(0))
    run = functools.partial(tasks.generate, model, most=200, choose=tasks.greedy)
    begin = np.ones((1, 1), np.int32)
    tokens = jax.jit(run)({}, theta, begin, key=jax.random.key(0))[0].tolist()
    text = pretrained.llama2c_tokenizer(STORIES / "tok512.bin").decode([1, *tokens]).encode()
    assert len(text) == 464
    assert hashlib.sha256(text).hexdigest() == GREEDY
