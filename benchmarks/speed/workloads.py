"""The workloads on which every implementation is timed: seeded arrays, no other randomness.

All clients take part in every round, each takes its batches in order, and the server takes the
plain mean of the trained weights. So every implementation must end with the same losses and the
same norm of the trained weights. W1 to W5 are for any computer, W6 to W8 for an accelerator; "W7
small" and "W8 small" are these at the size of two cores, and "W8 8B" is W8 on a model that is only
compiled. In W7 each client also keeps factors of its own, which take one step of SGD before the
hypergradient of each local step.

    workload, arrays = workloads.WORKLOADS["W3"], workloads.arrays("W3", clients=4)
"""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np


class Sgd(NamedTuple):
    rate: float


class AdamW(NamedTuple):
    """beta 0.9 and 0.999, eps 1e-8, decay of every trained weight; it restarts in each round."""

    rate: float
    decay: float


@dataclasses.dataclass(frozen=True)
class Workload:
    title: str
    clients: int  # K, all of them in every round
    examples: int  # n of each client; one epoch is n / batch local steps
    batch: int
    optimizer: Sgd | AdamW
    shape: tuple[int, ...]  # of one image, or of one row of tokens
    classes: int  # 0 if every token is to be predicted from those before it
    rank: int = 0  # of the factors; 0 trains every weight whole
    scale: float = 1.0
    full: tuple[str, ...] = ()  # beside factors, the weights that are trained whole
    vocabulary: int = 0  # 0 for images
    own_rank: int = 0  # of the factors that each client keeps
    own_rate: float = 0.0  # of SGD on them

    @property
    def steps(self) -> int:
        return self.examples // self.batch


HEAD = ("head/kernel", "head/bias")

WORKLOADS = {
    "W1": Workload("FedAvg MLP", 100, 300, 20, Sgd(0.1), (784,), 10),
    "W2": Workload("FedAvg FEMNIST CNN", 50, 100, 20, Sgd(0.1), (28, 28, 1), 62),
    "W3": Workload("FedLoRA MLP", 100, 300, 20, Sgd(0.1), (784,), 10, rank=8, scale=2.0),
    "W4": Workload(
        "FedLoRA encoder",
        20,
        32,
        8,
        AdamW(1e-3, 0.01),
        (64,),
        2,
        rank=8,
        scale=2.0,
        full=HEAD,
        vocabulary=8192,
    ),
    "W5": Workload("FedLoRA ResNet-10", 10, 32, 32, Sgd(0.05), (32, 32, 3), 10, rank=16, scale=2.0),
    "W6": Workload(
        "HOMLoRA on RoBERTa-base's shape",
        100,
        160,
        16,
        AdamW(1e-3, 0.01),
        (128,),
        2,
        rank=8,
        full=HEAD,
        vocabulary=50265,
    ),
    "W8": Workload(
        "FedLoRA on LLaMA's shape at 1B",
        100,
        16,
        4,
        AdamW(1e-3, 0.01),
        (512,),
        0,
        rank=16,
        vocabulary=32000,
    ),
    "W8 small": Workload(
        "FedLoRA decoder", 20, 16, 4, AdamW(1e-3, 0.01), (64,), 0, rank=16, vocabulary=4096
    ),
    # For rehearsals of W6, W7 and W8.
    "W6 tiny": Workload(
        "HOMLoRA encoder", 2, 8, 4, AdamW(1e-3, 0.01), (8,), 2, rank=2, full=HEAD, vocabulary=64
    ),
    "W8 tiny": Workload(
        "FedLoRA decoder", 2, 8, 4, AdamW(1e-3, 0.01), (8,), 0, rank=2, vocabulary=64
    ),
}

# Those that differ from another one in what is named here.
WORKLOADS |= {
    name: dataclasses.replace(WORKLOADS[of], title=about, **changes)
    for name, of, about, changes in (
        ("W7", "W6", "PF2LoRA on RoBERTa-base's shape", {"own_rank": 2, "own_rate": 1e-3}),
        ("W7 small", "W4", "PF2LoRA encoder", {"scale": 1.0, "own_rank": 2, "own_rate": 1e-3}),
        ("W7 tiny", "W6 tiny", "PF2LoRA encoder", {"own_rank": 1, "own_rate": 1.0}),
        ("W8 8B", "W8", "FedLoRA on LLaMA's shape at 8B", {"vocabulary": 128256}),
    )
}


class Arrays(NamedTuple):
    """Float32 and int32 numpy arrays."""

    examples: dict[str, np.ndarray]  # "image" or "tokens", and "label": [K * n, ...]
    params: dict[str, np.ndarray]  # {"dense_0/kernel": [in, out]}, and HWIO, as flax has them
    factors: dict[str, tuple[np.ndarray, np.ndarray]]  # {path: (a [in..., r], b [r, out])}
    own: dict[str, tuple[np.ndarray, np.ndarray]]  # those of each client, with an axis [K] before

    # Paths under layers/ are of stacked layers and have a leading axis for them.


def arrays(
    name: str, clients: int | None = None, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Arrays:
    """The workload's arrays; client k owns rows k * n : (k + 1) * n of each array of examples.

    With fewer `clients` they are the first ones, unchanged. `shapes` {path: shape} replaces the
    names that stand below by a model's own; a weight depends on its path and shape alone.
    """
    workload, shapes = WORKLOADS[name], shapes or SHAPES[name]
    params = {path: _weight(name, path, shape) for path, shape in shapes.items()}
    factors = {p: _factors(name, p, params[p].shape, workload.rank) for p in adapted(name, shapes)}
    count = workload.clients if clients is None else clients
    own = {p: _own(name, p, params[p].shape, count) for p in factors if workload.own_rank}
    return Arrays(examples(name, count), params, factors, own)


def examples(name: str, clients: int) -> dict[str, np.ndarray]:
    """The arrays of examples alone, of so many clients."""
    workload = WORKLOADS[name]
    return _examples(name, workload, clients * workload.examples)


def adapted(name: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """The paths that carry factors."""
    if name == "W3":
        return [p for p in shapes if p.endswith("kernel")]
    if WORKLOADS[name].vocabulary:
        return [p for p in shapes if p.endswith(("query/kernel", "value/kernel"))]
    if name == "W5":
        return [p for p, shape in shapes.items() if len(shape) == 4 and not p.startswith("stem")]
    return []


def _stream(*parts: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32("/".join(parts).encode()))


def _normal(stream: np.random.Generator, shape: tuple[int, ...], std: float) -> np.ndarray:
    return stream.standard_normal(shape, dtype=np.float32) * np.float32(std)


def _weight(name: str, path: str, shape: tuple[int, ...]) -> np.ndarray:
    """Kernels normal / sqrt(fan in), embeddings 1, scales about one; biases that are not zero."""
    stream, kind = _stream(name, path), path.rsplit("/", 1)[-1]
    if kind == "kernel":
        return _normal(stream, shape, 1 / math.sqrt(math.prod(shape[stack(path) : -1])))
    if kind == "embedding":
        return _normal(stream, shape, 1.0)
    return _normal(stream, shape, 0.1) + np.float32(kind == "scale")


def stack(path: str) -> int:
    """The number of leading axes of a weight that count layers."""
    return int(path.startswith("layers/"))


def _factors(
    name: str, path: str, shape: tuple[int, ...], rank: int
) -> tuple[np.ndarray, np.ndarray]:
    layers = shape[: stack(path)]
    std = 1 / math.sqrt(math.prod(shape[len(layers) : -1]))
    a = _normal(_stream(name, path, "a"), (*shape[:-1], rank), std)
    return a, np.zeros((*layers, rank, shape[-1]), np.float32)


def _own(
    name: str, path: str, shape: tuple[int, ...], clients: int
) -> tuple[np.ndarray, np.ndarray]:
    """(a [K, in, r], b [K, r, out]) of weights that are in no stack."""
    rank = WORKLOADS[name].own_rank
    a = _normal(_stream(name, path, "own"), (clients, shape[0], rank), 1 / math.sqrt(shape[0]))
    return a, np.zeros((clients, rank, shape[1]), np.float32)


def _examples(name: str, workload: Workload, rows: int) -> dict[str, np.ndarray]:
    """Images around one prototype a class; tokens of which a fifth name the label; or texts."""
    if not workload.classes:
        return _texts(name, workload, rows)
    label = _stream(name, "label").integers(workload.classes, size=rows, dtype=np.int32)
    shape = (rows, *workload.shape)
    if workload.vocabulary:
        tokens = _stream(name, "tokens").integers(workload.vocabulary, size=shape, dtype=np.int32)
        telling = _stream(name, "telling").random(shape, dtype=np.float32) < 0.2
        return {"tokens": np.where(telling, label[:, None], tokens), "label": label}
    prototype = _normal(_stream(name, "prototype"), (workload.classes, *workload.shape), 0.2)
    image = _normal(_stream(name, "image"), shape, 0.2)
    image += prototype[label]
    return {"image": image, "label": label}


def _texts(name: str, workload: Workload, rows: int) -> dict[str, np.ndarray]:
    """Tokens [rows, L], half of which follow from the last, and the next ones [rows, L - 1]."""
    length = workload.shape[0]
    tokens = _stream(name, "tokens").integers(
        workload.vocabulary, size=(rows, length), dtype=np.int32
    )
    follows = _stream(name, "follows").random((rows, length), dtype=np.float32) < 0.5
    for i in range(1, length):
        after = (5 * tokens[:, i - 1] + 1) % workload.vocabulary
        tokens[:, i] = np.where(follows[:, i], after, tokens[:, i])
    return {"tokens": tokens, "label": tokens[:, 1:]}


Shapes = dict[str, tuple[int, ...]]


def _layer(path: str, *kernel: int) -> Shapes:
    return {f"{path}/kernel": kernel, f"{path}/bias": kernel[-1:]}


def _norm(path: str, width: int) -> Shapes:
    return {f"{path}/scale": (width,), f"{path}/bias": (width,)}


def _mlp(*sizes: int) -> Shapes:
    *hidden, head = itertools.pairwise(sizes)
    layers = [_layer(f"dense_{i}", *kernel) for i, kernel in enumerate(hidden)]
    return _join(*layers, _layer("head", *head))


def _cnn() -> Shapes:
    return _join(
        _layer("conv_0", 3, 3, 1, 32),
        _layer("conv_1", 3, 3, 32, 64),
        _layer("dense_0", 12 * 12 * 64, 128),
        _layer("head", 128, 62),
    )


def _encoder(name: str, width: int, feedforward: int, depth: int) -> Shapes:
    """BERT's encoder: the norm after each sum; the first position's output goes to the head."""
    layers = [
        _join(
            *(_layer(f"layer_{i}/{n}", width, width) for n in ("query", "key", "value", "out")),
            _norm(f"layer_{i}/norm_0", width),
            _layer(f"layer_{i}/up", width, feedforward),
            _layer(f"layer_{i}/down", feedforward, width),
            _norm(f"layer_{i}/norm_1", width),
        )
        for i in range(depth)
    ]
    tables = {
        "token": (WORKLOADS[name].vocabulary, width),
        "position": (*WORKLOADS[name].shape, width),
    }
    return _join(
        {f"{table}/embedding": shape for table, shape in tables.items()},
        _norm("norm", width),
        *layers,
        _layer("head", width, 2),
    )


def _decoder(
    name: str, width: int, feedforward: int, depth: int, heads: int, groups: int
) -> Shapes:
    """LLaMA's, whose `groups` of heads share a key and a value; the layers are stacked."""
    narrow = width // heads * groups
    kernels = {
        "query": (width, width),
        "key": (width, narrow),
        "value": (width, narrow),
        "out": (width, width),
        "gate": (width, feedforward),
        "up": (width, feedforward),
        "down": (feedforward, width),
    }
    return {
        "token/embedding": (WORKLOADS[name].vocabulary, width),
        **{f"layers/norm_{i}/scale": (depth, width) for i in (0, 1)},
        **{f"layers/{n}/kernel": (depth, *shape) for n, shape in kernels.items()},
        "norm/scale": (width,),
        "head/kernel": (width, WORKLOADS[name].vocabulary),
    }


DECODERS = {  # width, feed-forward width, layers, heads, groups of heads
    "W8": (2048, 8192, 16, 32, 8),
    "W8 8B": (4096, 14336, 32, 32, 8),
    "W8 small": (256, 688, 4, 8, 4),
    "W8 tiny": (16, 32, 2, 4, 2),
}


def _resnet(widths: tuple[int, ...] = (64, 128, 256, 512)) -> Shapes:
    """One basic block a stage; the convolutions have no bias, and norms follow them."""
    blocks = [
        _block(f"layer{i}_0", before, width)
        for i, (before, width) in enumerate(itertools.pairwise((widths[0], *widths)), 1)
    ]
    stem = {"stem/kernel": (3, 3, 3, widths[0]), **_norm("norm_stem", widths[0])}
    return _join(stem, *blocks, _layer("head", widths[-1], 10))


def _block(path: str, before: int, width: int) -> Shapes:
    body = {
        f"{path}/conv_0/kernel": (3, 3, before, width),
        **_norm(f"{path}/norm_0", width),
        f"{path}/conv_1/kernel": (3, 3, width, width),
        **_norm(f"{path}/norm_1", width),
    }
    if before == width:
        return body
    down = {f"{path}/conv_down/kernel": (1, 1, before, width)}
    return {**body, **down, **_norm(f"{path}/norm_down", width)}


def _join(*parts: Shapes) -> Shapes:
    return {path: shape for part in parts for path, shape in part.items()}


SHAPES = {
    "W1": _mlp(784, 200, 200, 10),
    "W2": _cnn(),
    "W3": _mlp(784, 1024, 1024, 10),
    "W4": _encoder("W4", 256, 1024, 4),
    "W5": _resnet(),
    "W6": _encoder("W6", 768, 3072, 12),
    "W7": _encoder("W7", 768, 3072, 12),
    **{f"{w} tiny": _encoder(f"{w} tiny", 16, 32, 2) for w in ("W6", "W7")},
    "W7 small": _encoder("W7 small", 256, 1024, 4),
    **{name: _decoder(name, *sizes) for name, sizes in DECODERS.items()},
}
