"""From strings to tokens: arrays of one length a split.

Clients are an array axis, so all of them take a local step on batches of one static shape, and a
batch cannot have a length of its own: under `vmap`, a choice among lengths would run every branch.
Nor are clients' batches alike in length at the same step, unless examples were no longer drawn at
random. So each split has ONE length, the smallest of a few buckets that holds its longest example:
few, so that data sets and limits share compiled rounds. What decides the cost is then `max_length`,
with what becomes of longer examples; what is lost to padding is told by `padding`.
"""

import itertools
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxfed import values
from jaxfed.data import cache
from jaxfed.data.sources import Examples

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BUCKETS = (16, 32, 64, 128, 256, 512)


def tokenise(
    examples: Examples,
    tokenizer: "Tokenizer",
    *,
    pad: int,
    max_length: int = 128,
    longer: Literal["cut", "drop"] = "cut",
    buckets: Sequence[int] = BUCKETS,
    keep: bool = False,
) -> Examples:
    """The examples with arrays of tokens in place of "text" [n] (and of "pair" [n], if given).

    "tokens" int32 [n, L], filled up with `pad`, the model's own padding token; "types" int8 [n, L],
    which of the two sentences each belongs to; "length" int32 [n], how many tokens are real.
    Special tokens such as [CLS] and [SEP], and the types, are the tokenizer's own post-processor's.

    Examples of more than `max_length` tokens are cut there (of a pair, the longer sentence first),
    or dropped, with a warning that counts them. L is the smallest of the buckets that holds the
    longest example, at most `max_length`. `keep=True` keeps the arrays in the user's cache folder.
    """
    check_form(tokenizer, pad, max_length, longer, buckets)
    if "text" not in examples:
        raise ValueError(f"the examples have no 'text'; they have {sorted(examples)}")
    special = tokenizer.num_special_tokens_to_add("pair" in examples)
    if max_length <= special:
        raise ValueError(f"max_length={max_length} holds only the {special} special tokens")
    check_text(examples, [name for name in ("text", "pair") if name in examples])
    columns = [list(examples[name]) for name in ("text", "pair") if name in examples]
    pairs = list(zip(*columns, strict=True)) if len(columns) > 1 else columns[0]
    cutting = limited(tokenizer, max_length if longer == "cut" else None)

    def encoded() -> Examples:
        return _padded(cutting.encode_batch(pairs), pad, max_length, buckets)

    if keep:
        form = (pad, max_length, longer, tuple(buckets), len(columns), _package().__version__)
        content = itertools.chain([str(form), cutting.to_str()], *columns)
        found = cache.kept("tokens", (x.encode("utf-8", "surrogatepass") for x in content), encoded)
    else:
        found = encoded()
    kept = kept_of(found.pop("fits"), max_length)
    rest = {key: np.asarray(x)[kept] for key, x in examples.items() if key not in ("text", "pair")}
    return {**found, **rest}


def _padded(encoded: Sequence, pad: int, max_length: int, buckets: Sequence[int]) -> Examples:
    """The arrays of the texts [m] that fit, and which of all [n] do."""
    length = np.array([len(one.ids) for one in encoded], np.int32)
    fits = length <= max_length
    kept, longest = np.flatnonzero(fits), length[fits].max(initial=1)
    width = min(b for b in (*buckets, max_length) if b >= longest)
    tokens = np.full((len(kept), width), pad, np.int32)
    types = np.zeros((len(kept), width), np.int8)
    for row, i in enumerate(kept.tolist()):
        tokens[row, : length[i]] = encoded[i].ids
        types[row, : length[i]] = encoded[i].type_ids
    return {"tokens": tokens, "types": types, "length": length[fits], "fits": fits}


def _package() -> Any:
    """The package tokenizers; ImportError, with the remedy, where it is missing."""
    return values.package("tokenizers", "text", "text as tokens")


def check_form(
    tokenizer: "Tokenizer", pad: int, max_length: int, longer: str, buckets: Sequence[int]
) -> None:
    """Raises TypeError or ValueError unless arrays of tokens can have this form."""
    if longer not in ("cut", "drop"):
        raise ValueError(f'longer={longer!r}; use "cut" or "drop"')
    values.whole("pad", pad, 0)
    values.whole("max_length", max_length, 1)
    values.kind(
        "tokenizer", tokenizer, _package().Tokenizer, "one, such as pretrained.tokenizer(folder)"
    )
    values.kind("buckets", buckets, Sequence, "several lengths, such as (16, 32)")
    for bucket in buckets:
        values.whole("a bucket", bucket, 1)


def kept_of(fits: np.ndarray, max_length: int) -> np.ndarray:
    """The indices [m] of the examples that fit [n]; a warning counts those that do not.

    ValueError if none does.
    """
    kept = np.flatnonzero(fits)
    if not len(kept):
        raise ValueError(f"no example fits into {max_length} tokens; raise max_length")
    if left_out := len(fits) - len(kept):
        warnings.warn(
            f"{left_out:,} of {len(fits):,} examples do not fit into {max_length} tokens and are "
            "left out",
            stacklevel=3,
        )
    return kept


def check_text(examples: Examples, names: Sequence[str]) -> None:
    """Raises ValueError if the arrays differ in length, or one of these holds another than text."""
    if len({len(x) for x in examples.values()}) > 1:
        lengths = {name: len(x) for name, x in examples.items()}
        raise ValueError(f"the examples have lengths {lengths}; give each array one row an example")
    for name in names:
        for row, line in enumerate(examples[name]):
            if not isinstance(line, str):
                raise ValueError(f"{name!r} has {line!r} in row {row}; give strings")


def padding(examples: Examples) -> float:
    """The share of tokens that are padding, and of the work on tokens that is wasted."""
    if missing := {"tokens", "length"} - set(examples):
        raise ValueError(f"the examples have no {sorted(missing)}; `tokenise` makes them")
    return 1 - float(examples["length"].sum()) / examples["tokens"].size


def limited(tokenizer: "Tokenizer", max_length: int | None) -> "Tokenizer":
    """A tokenizer like this one that pads nothing, and cuts at this length or not at all."""
    limited = type(tokenizer).from_str(tokenizer.to_str())
    limited.no_padding()
    limited.no_truncation()
    if max_length is not None:
        limited.enable_truncation(max_length)
    return limited
