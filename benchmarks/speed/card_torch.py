"""PyTorch's side of accelerator.py: torch_peers on one device in this process, and its peaks."""

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
import torch_peers
import workloads
from torch import Tensor

LARGEST = {"W6": 20, "W7": 10, "W8": 4}  # clients under one vmap that surely fit
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def start() -> dict:
    """The card and PyTorch's version; float32 products may be TF32's, as JAX's are."""
    torch.set_float32_matmul_precision("high")
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
        return {"card": "cpu", "platform": "cpu", "torch": torch.__version__}
    torch.cuda.init()  # without which memory() has no counters to reset
    card = torch.cuda.get_device_name()
    return {"card": card, "platform": "gpu", "torch": torch.__version__}


def compiling() -> float:
    """Zero: nothing is compiled."""
    return 0.0


def memory() -> int | None:
    """The most bytes of the device since the last call; None on a CPU."""
    if DEVICE.type == "cpu":
        return None
    most = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return most


def peaks(side: int, length: int) -> Iterator[tuple[dict, Callable]]:
    """Ten products of matrices [side, side] in each type, and ten passes over `length` floats."""
    for how, dtype, precision in (
        ("bfloat16", torch.bfloat16, "high"),
        ("float32", torch.float32, "high"),
        ("exact float32", torch.float32, "highest"),
    ):

        def products(dtype=dtype, precision=precision) -> Callable[[], float]:
            torch.set_float32_matmul_precision(precision)
            y = (torch.randn(side, side, device=DEVICE) / side**0.5).to(dtype)
            return lambda: _ten_times(lambda x: x @ y, y)

        yield {"how": how, "work": 20 * side**3}, products

    def copies() -> Callable[[], float]:
        x, y = torch.zeros(2, length, device=DEVICE)
        return lambda: _ten_times(lambda _: torch.add(x, 1, out=y), x)

    yield {"how": "copy", "work": 10 * 2 * 4 * length}, copies


def _ten_times(function: Callable, x: Tensor) -> float:
    for _ in range(10):
        x = function(x)
    return float(x.flatten()[0])


def cases(
    name: str, clients: int, types: tuple[str, ...], *, scaling: bool
) -> Iterator[tuple[dict, Callable]]:
    """(a label, a function that makes a round, which returns the norm) for each way to run it.

    For `scaling` that is vmap alone; decoders have PEFT's loop as well, if it is installed.
    """
    most = min(clients, LARGEST.get(name, clients))
    ways = {"vmap": most} if scaling else {"loop": 1, "vmap": most}
    if name in workloads.DECODERS and importlib.util.find_spec("peft"):
        ways["peft"] = 1
    for kind in types:
        for how, chunk in ways.items():
            make = partial(make_round, name, clients, how, kind == "bfloat16", chunk)
            yield {"how": how, "type": kind, "chunk": chunk}, make


def make_round(name: str, clients: int, how: str, narrow: bool, most: int) -> Callable[[], float]:
    """A function that runs one round from where the last one ended and returns the norm."""
    arrays, model = workloads.arrays(name, clients), torch_peers.MODELS[name]
    workload = workloads.WORKLOADS[name]
    # The fused one has no second derivative.
    if how == "loop" and workload.vocabulary and not workload.own_rank:
        fused = partial(F.scaled_dot_product_attention, is_causal=name in workloads.DECODERS)
        model = partial(model, attention=fused)
    base, theta = (
        {p: w.to(DEVICE) for p, w in part.items()} for part in torch_peers.tensors(name, arrays)
    )
    if narrow:
        model = partial(autocast, model)
        large = ("kernel", "embedding")
        base = {p: w.bfloat16() if p.endswith(large) else w for p, w in base.items()}
    ((inputs, labels),) = torch_peers.batches(name, arrays.examples, processes=1)
    own = {p: w.to(DEVICE) for p, w in torch_peers.kept(arrays).items()}
    shard = torch_peers.Shard(name, model, base, theta, inputs.to(DEVICE), labels.to(DEVICE), own)
    method = torch_peers.METHODS[how]
    local = method(shard, most) if how == "vmap" else method(shard)
    server = torch.cat([w.flatten() for w in theta.values()])

    def one_round() -> float:
        total, _ = local(server)
        torch.div(total, clients, out=server)
        return float(server.norm())

    return one_round


def autocast(model: torch_peers.Model, w: torch_peers.Weights, x: Tensor, scale: float) -> Tensor:
    """The model with products in bfloat16; nothing is cached, because weights change in place."""
    with torch.autocast(DEVICE.type, torch.bfloat16, cache_enabled=False):
        return model(w, x, scale).float()
