"""A decoder and its tokenizer from a folder of either format, Hugging Face's or llama2.c's."""

from pathlib import Path
from typing import TYPE_CHECKING

from jaxfed import models
from jaxfed.algorithm import PyTree
from jaxfed.pretrained import layouts
from jaxfed.pretrained.decoders import read_decoder
from jaxfed.pretrained.folder import tokenizer
from jaxfed.pretrained.llama2c import llama2c_tokenizer, read_llama2c

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def decoder_with_tokenizer(
    folder: str | Path, *, base: layouts.Base = "float"
) -> tuple[models.Decoder, PyTree, "Tokenizer"]:
    """(model, params, tokenizer) of a folder.

    It holds config.json, model.safetensors and tokenizer.json, or llama2.c's two files, of which
    that of the words is called tok*.bin. `base` is as in `read_decoder`. ValueError, with what it
    holds, for another one.
    """
    folder = Path(folder).expanduser()
    if (folder / "config.json").is_file():
        return *read_decoder(folder, base=base), tokenizer(folder)
    found = sorted(folder.glob("*.bin"))
    words = [path for path in found if path.name.startswith("tok")]
    weights = [path for path in found if not path.name.startswith("tok")]
    if len(words) != 1 or len(weights) != 1:
        has = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else "nothing"
        raise ValueError(
            f"{folder} has {has}; give a folder with config.json, or with llama2.c's two files, "
            "such as stories260K.bin and tok512.bin"
        )
    return *read_llama2c(weights[0], base=base), llama2c_tokenizer(words[0])
