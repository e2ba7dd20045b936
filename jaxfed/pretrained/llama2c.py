"""Checkpoints and tokenizers in llama2.c's format, such as those of TinyStories.

    model, params = pretrained.read_llama2c("stories260K.bin")
    tokenizer = pretrained.llama2c_tokenizer("tok512.bin")

Both are little endian. A checkpoint has seven int32 (width, feed-forward width, depth, heads, heads
of keys and values, vocabulary, positions; a negative vocabulary means an untied head), then float32
arrays, each for all layers at once, with matrices as [out, in].
"""

import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jax.typing import DTypeLike

from jaxfed import models, values
from jaxfed.algorithm import PyTree
from jaxfed.pretrained import layouts
from jaxfed.pretrained.folder import shapes_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN, BEGIN, END, BYTES = 0, 1, 2, 3  # ids; BYTES is the first of 256


def read_llama2c(
    path: str | Path,
    *,
    dtype: DTypeLike | None = None,
    remat: bool = False,
    base: layouts.Base = "float",
) -> tuple[models.Decoder, PyTree]:
    """(model, params): the decoder in a file and its weights, nested, on the host.

    Queries and keys are put in the order of Hugging Face, whose rotary planes are entries i and i +
    h / 2 of a head, where llama2.c has 2 i and 2 i + 1. `base` is as in `read_decoder`. Raises
    ValueError if the file's size is not that of its settings.
    """
    path = Path(path).expanduser()
    data = path.read_bytes()
    if len(data) < 28:
        raise ValueError(f"{path} has {len(data)} bytes; give a checkpoint of llama2.c")
    width, hidden, depth, heads, groups, vocabulary, positions = struct.unpack("<7i", data[:28])
    sizes = (width, hidden, depth, heads, groups, abs(vocabulary), positions)
    if min(sizes) < 1 or width % heads or heads % groups:
        raise ValueError(f"{path} begins with {sizes}; give a checkpoint of llama2.c")
    h, tied, vocabulary = width // heads, vocabulary > 0, abs(vocabulary)
    shapes = {
        "token/embedding": (vocabulary, width),
        "layers/norm_0/scale": (depth, width),
        "layers/query/kernel": (depth, heads * h, width),
        "layers/key/kernel": (depth, groups * h, width),
        "layers/value/kernel": (depth, groups * h, width),
        "layers/out/kernel": (depth, width, heads * h),
        "layers/norm_1/scale": (depth, width),
        "layers/gate/kernel": (depth, hidden, width),
        "layers/down/kernel": (depth, width, hidden),
        "layers/up/kernel": (depth, hidden, width),
        "norm/scale": (width,),
        "rotary": (2, positions, h // 2),  # tables that nobody reads any more
        **({} if tied else {"head/kernel": (vocabulary, width)}),
    }
    if len(data) != 28 + 4 * sum(math.prod(shape) for shape in shapes.values()):
        raise ValueError(f"{path} has {len(data)} bytes, not those of {sizes}; download it again")
    model = models.Decoder(
        vocabulary, width, depth, heads, hidden, positions, "llama", groups, tied=tied,
        dtype=dtype, remat=remat,
    )  # fmt: skip
    flat: dict[str, Any] = {}
    begin, wanted = 28, shapes_of(model)
    for name, shape in shapes.items():
        x = np.frombuffer(data, "<f4", math.prod(shape), begin).reshape(shape)
        begin += x.nbytes
        if name in ("layers/query/kernel", "layers/key/kernel"):
            x = x.reshape(depth, -1, h // 2, 2, width).swapaxes(2, 3).reshape(shape)
        if name in wanted:
            x = x.swapaxes(-1, -2) if name.endswith("kernel") else x
            x = layouts.narrowed(name, x, wanted[name].dtype, base)
            flat[name] = np.ascontiguousarray(x)
    return model, layouts.nested(flat, base)


def llama2c_tokenizer(path: str | Path) -> "Tokenizer":
    """The tokenizer in a file of llama2.c's, which puts `<s>` before a text.

    Byte pairs merge in the order of their scores, a text begins with a space, and characters that
    are no token become bytes. The ids of `<unk>`, `<s>` and `</s>` are 0, 1 and 2.
    """
    path = Path(path).expanduser()
    tokenizers = values.package("tokenizers", "text", path)
    pieces, scores = _pieces(path, path.read_bytes())
    pieces[:BYTES] = ["<unk>", "<s>", "</s>"]
    ids = {piece: i for i, piece in enumerate(pieces)}
    order = sorted(range(BYTES + 256, len(pieces)), key=lambda i: -scores[i])
    merges = [
        (piece[:n], piece[n:])
        for piece in (pieces[i] for i in order)
        for n in range(1, len(piece))
        if piece[:n] in ids and piece[n:] in ids
    ]
    bpe = tokenizers.models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True)
    made = tokenizers.Tokenizer(bpe)
    made.normalizer = tokenizers.normalizers.Prepend(" ")
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", BEGIN)]
    )
    decoders = tokenizers.decoders
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def _pieces(path: Path, data: bytes) -> tuple[list[str], list[float]]:
    """(tokens, scores) in the order of their ids."""
    pieces, scores, at = [], [], 4
    try:
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            if length < 0:
                raise ValueError(f"a token of {length} bytes")
            pieces.append(data[at + 8 : at + 8 + length].decode())
            scores.append(score)
            at += 8 + length
        if len(pieces) < BYTES + 256 or at != len(data):
            raise ValueError(f"{len(pieces)} tokens")
    except (struct.error, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is no tokenizer of llama2.c ({error}); give tok512.bin") from None
    return pieces, scores
