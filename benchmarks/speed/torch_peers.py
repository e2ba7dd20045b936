"""The workloads in PyTorch, tuned: the peers of jaxfed's speed.

    python benchmarks/speed/torch_peers.py W1 --mode loop2 --rounds 3 --clients 100

Six ways of running a round, all on workers of their own, which wait between rounds:

    loop1   one client after another, one process of two threads
    loop2   the same in two processes of one thread, each with half of the clients
    vmap1, vmap2   torch.func.vmap over ten clients at a time, in one process or two
    peft1, peft2   Transformers' model and PEFT's adapters, as people write it (W8's kind alone)

The first four are tuned: no deepcopy, DataLoader, nn.Module or torch.optim; the trained weights are
one vector, copied for each client; no gradients of frozen weights; convolutions with channels last.
Sums over clients are in shared memory.
"""

import argparse
import json
import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np
import torch
import torch.multiprocessing
import torch.nn.functional as F
import workloads
from torch import Tensor

Weights = dict[str, Tensor]  # {path: tensor}; the factors of path are at path:a and path:b

MODES = {f"{how}{n}": (n, 3 - n) for how in ("loop", "vmap", "peft") for n in (1, 2)}
"""{mode: (processes, threads of each)}."""

CHUNK = 10  # clients under one vmap
EPSILON = 1e-5  # of every norm


# Models: logits [B, classes]. Kernels are [in, out] and OHWI.


def dense(w: Weights, path: str, x: Tensor, scale: float = 1.0) -> Tensor:
    """x W + bias, and s (x a) b where the layer has factors."""
    y = F.linear(x, w[f"{path}/kernel"].T, w.get(f"{path}/bias"))
    if f"{path}/kernel:a" not in w:
        return y
    return y + (x @ w[f"{path}/kernel:a"] * scale) @ w[f"{path}/kernel:b"]


def conv(w: Weights, path: str, x: Tensor, scale: float = 1.0, stride: int = 1, pad: int = 0):
    """The convolution of x [B, C, H, W]; its factors are k x k into r channels, then 1 x 1."""
    y = F.conv2d(x, oihw(w[f"{path}/kernel"]), w.get(f"{path}/bias"), stride, pad)
    if f"{path}/kernel:a" not in w:
        return y
    h = F.conv2d(x, oihw(w[f"{path}/kernel:a"]), None, stride, pad)  # [B, r, H, W]
    return y + F.conv2d(h * scale, oihw(w[f"{path}/kernel:b"]))


def oihw(kernel: Tensor) -> Tensor:
    """[O, H, W, I] -> [O, I, H, W], channels last in memory: no copy."""
    return kernel.permute(0, 3, 1, 2)


def mlp(w: Weights, x: Tensor, scale: float) -> Tensor:
    x = torch.relu(dense(w, "dense_0", x, scale))
    x = torch.relu(dense(w, "dense_1", x, scale))
    return dense(w, "head", x, scale)


def cnn(w: Weights, x: Tensor, scale: float) -> Tensor:
    x = torch.relu(conv(w, "conv_0", x))
    x = torch.relu(F.max_pool2d(conv(w, "conv_1", x), 2))  # [B, 64, 12, 12]
    x = x.permute(0, 2, 3, 1).flatten(1)  # NHWC, as the rows of dense_0 are
    return dense(w, "head", torch.relu(dense(w, "dense_0", x)))


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention [B, heads, L, d / heads]; vmap has no rule for PyTorch's fused one."""
    weight = torch.softmax(q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2), -1)  # [B, heads, L, L]
    return weight @ v


def encoder(
    w: Weights,
    tokens: Tensor,
    scale: float,
    heads: int = 4,
    attention: Callable[[Tensor, Tensor, Tensor], Tensor] = by_hand,
) -> Tensor:
    """BERT's layers."""
    depth = sum(path.endswith("query/kernel") for path in w)
    x = norm(w, "norm", w["token/embedding"][tokens] + w["position/embedding"])  # [B, L, d]
    for i in range(depth):
        q, k, v = (
            dense(w, f"layer_{i}/{n}", x, scale).unflatten(-1, (heads, -1)).transpose(-2, -3)
            for n in ("query", "key", "value")
        )  # [B, heads, L, d / heads]
        attended = attention(q, k, v).transpose(-2, -3).flatten(-2)
        x = norm(w, f"layer_{i}/norm_0", x + dense(w, f"layer_{i}/out", attended))
        hidden = F.gelu(dense(w, f"layer_{i}/up", x))
        x = norm(w, f"layer_{i}/norm_1", x + dense(w, f"layer_{i}/down", hidden))
    return dense(w, "head", x[..., 0, :])


def norm(w: Weights, path: str, x: Tensor) -> Tensor:
    return F.layer_norm(x.float(), x.shape[-1:], w[f"{path}/scale"], w[f"{path}/bias"], EPSILON)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of each of L places to itself and those before it, by hand."""
    weight = q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)  # [B, heads, L, L]
    before = torch.ones(weight.shape[-2:], dtype=torch.bool, device=q.device).tril()
    return torch.softmax(weight.masked_fill(~before, -math.inf), -1) @ v


def decoder(
    w: Weights,
    tokens: Tensor,
    scale: float,
    heads: int,
    groups: int,
    attention: Callable[[Tensor, Tensor, Tensor], Tensor] = causal,
) -> Tensor:
    """LLaMA's layers: logits [B, L - 1, vocabulary] of every token but the first."""
    x = w["token/embedding"][tokens].float()  # [B, L, d]
    stacked = {p.removeprefix("layers/"): v.unbind(0) for p, v in w.items() if "layers/" in p}
    angle = places(tokens.shape[-1], x.shape[-1] // heads, x.device)
    for i in range(len(stacked["norm_0/scale"])):
        layer = {path: each[i] for path, each in stacked.items()}
        y = rms(layer["norm_0/scale"], x)
        q, k, v = (
            dense(layer, n, y, scale).unflatten(-1, (count, -1)).transpose(-2, -3)
            for n, count in (("query", heads), ("key", groups), ("value", groups))
        )  # [B, heads or groups, L, h]
        q, k = rotated(q, angle), rotated(k, angle)
        k, v = (z.repeat_interleave(heads // groups, dim=-3) for z in (k, v))
        x = x + dense(layer, "out", attention(q, k, v).transpose(-2, -3).flatten(-2))
        y = rms(layer["norm_1/scale"], x)
        x = x + dense(layer, "down", F.silu(dense(layer, "gate", y)) * dense(layer, "up", y))
    return dense(w, "head", rms(w["norm/scale"], x[..., :-1, :]))


def rms(scale: Tensor, x: Tensor) -> Tensor:
    return F.rms_norm(x.float(), scale.shape, scale, EPSILON)


def places(length: int, width: int, device: torch.device) -> Tensor:
    """Angles [L, width / 2] of rotary positions."""
    half = width // 2
    speed = 10000.0 ** (-torch.arange(half, device=device) / half)
    return torch.arange(length, device=device)[:, None] * speed


def rotated(x: Tensor, angle: Tensor) -> Tensor:
    (first, second), cos, sin = x.chunk(2, -1), angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def resnet(w: Weights, x: Tensor, scale: float) -> Tensor:
    x = torch.relu(group_norm(w, "norm_stem", conv(w, "stem", x, pad=1)))
    for i in (1, 2, 3, 4):
        x = block(w, f"layer{i}_0", x, scale, stride=1 if i == 1 else 2)
    return dense(w, "head", x.mean((-1, -2)))


def block(w: Weights, path: str, x: Tensor, scale: float, stride: int) -> Tensor:
    y = conv(w, f"{path}/conv_0", x, scale, stride, pad=1)
    y = torch.relu(group_norm(w, f"{path}/norm_0", y))
    y = group_norm(w, f"{path}/norm_1", conv(w, f"{path}/conv_1", y, scale, pad=1))
    if f"{path}/conv_down/kernel" in w:
        x = group_norm(w, f"{path}/norm_down", conv(w, f"{path}/conv_down", x, scale, stride))
    return torch.relu(x + y)


def group_norm(w: Weights, path: str, x: Tensor) -> Tensor:
    return F.group_norm(x.float(), 32, w[f"{path}/scale"], w[f"{path}/bias"], EPSILON)


Model = Callable[[Weights, Tensor, float], Tensor]

MODELS: dict[str, Model] = {
    "W1": mlp,
    "W2": cnn,
    "W3": mlp,
    "W4": encoder,
    "W5": resnet,
    "W6": partial(encoder, heads=12),
    "W7": partial(encoder, heads=12),
    **{f"{w} tiny": partial(encoder, heads=2) for w in ("W6", "W7")},
    "W7 small": encoder,
    **{
        name: partial(decoder, heads=heads, groups=groups)
        for name, (*_, heads, groups) in workloads.DECODERS.items()
    },
}


# Local training. A step is taken on weights [P], or on [C, P] of C clients under vmap.


Step = Callable[[list[Tensor], int], None]  # (gradients, t from 1): changes the weights in place


def sgd(optimizer: workloads.Sgd, mine: list[Tensor]) -> Step:
    def step(gradients: list[Tensor], t: int) -> None:
        torch._foreach_add_(mine, gradients, alpha=-optimizer.rate)

    return step


def adamw(optimizer: workloads.AdamW, mine: list[Tensor]) -> Step:
    m, v = [torch.zeros_like(w) for w in mine], [torch.zeros_like(w) for w in mine]

    def step(gradients: list[Tensor], t: int) -> None:
        torch._foreach_lerp_(m, gradients, 0.1)
        torch._foreach_mul_(v, 0.999)
        torch._foreach_addcmul_(v, gradients, gradients, 0.001)
        root = torch._foreach_sqrt(v)
        torch._foreach_div_(root, math.sqrt(1 - 0.999**t))
        torch._foreach_add_(root, 1e-8)
        torch._foreach_mul_(mine, 1 - optimizer.rate * optimizer.decay)
        torch._foreach_addcdiv_(mine, m, root, -optimizer.rate / (1 - 0.9**t))

    return step


class Shard(NamedTuple):
    """What one worker holds: the frozen weights, and the batches of its own clients."""

    name: str
    model: Model
    base: Weights
    theta: Weights  # for paths and shapes; a round's values come as a vector
    inputs: Tensor  # [K, S, B, ...]
    labels: Tensor  # [K, S, B]
    own: Weights  # [K, ...] the factors that clients keep, which change in place; {} but in W7


Local = Callable[[Tensor], tuple[Tensor, Tensor]]
"""start [P] -> (sum over clients of their ends [P], of their first and last losses [2])."""


def loss(shard: Shard, mine: Weights, x: Tensor, y: Tensor) -> Tensor:
    scale = workloads.WORKLOADS[shard.name].scale
    logits = shard.model({**shard.base, **mine}, x, scale)  # [B, classes] or [B, L - 1, vocabulary]
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


Gradients = Callable[[Weights, Weights, Tensor, Tensor], tuple[Tensor, list[Tensor]]]
"""(mine, own, inputs, labels) -> (loss, gradients by mine); `own` takes its step in place."""


def loop(shard: Shard) -> Local:
    """One client after another, by autograd."""

    def gradients(mine: Weights, own: Weights, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        leaves = {p: w.detach().requires_grad_() for p, w in mine.items()}
        value = loss(shard, leaves, x, y)
        return value.detach(), torch.autograd.grad(value, list(leaves.values()))

    by_step = twice(shard) if shard.own else gradients
    owned = [{p: w[k] for p, w in shard.own.items()} for k in range(len(shard.labels))]
    clients = zip(shard.inputs.unbind(), shard.labels.unbind(), owned, strict=True)
    groups = [(x.unbind(), y.unbind(), own) for x, y, own in clients]
    return partial(train, shard, by_step, groups, ())


def vmap(shard: Shard, most: int = CHUNK) -> Local:
    """`most` clients at a time (or the most below it that divides them), by torch.func."""
    size = max(c for c in range(1, most + 1) if len(shard.labels) % c == 0)
    each = torch.vmap(torch.func.grad_and_value(partial(through_step, shard), has_aux=True))

    def gradients(mine: Weights, own: Weights, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        found, (value, stepped) = each(mine, own, x, y)
        for path, w in own.items():
            w.copy_(stepped[path])
        return value, list(found.values())

    owned = [
        {p: w[k : k + size] for p, w in shard.own.items()}
        for k in range(0, len(shard.labels), size)
    ]
    chunks = zip(shard.inputs.split(size), shard.labels.split(size), owned, strict=True)
    groups = [(x.unbind(1), y.unbind(1), own) for x, y, own in chunks]
    return partial(train, shard, gradients, groups, (size,))


def through_step(
    shard: Shard, mine: Weights, own: Weights, x: Tensor, y: Tensor
) -> tuple[Tensor, Weights]:
    """(the loss at own+, own+), where own+ is a client's own factors after a step of SGD on it."""
    if not own:
        return loss(shard, mine, x, y), {}
    rate = workloads.WORKLOADS[shard.name].own_rate
    found = torch.func.grad(lambda own: loss(shard, joined(mine, own), x, y))(own)
    stepped = {p: w - rate * found[p] for p, w in own.items()}
    return loss(shard, joined(mine, stepped), x, y), stepped


def twice(shard: Shard) -> Gradients:
    """The hypergradient by autograd through the graph of the first gradient."""
    rate = workloads.WORKLOADS[shard.name].own_rate

    def gradients(mine: Weights, own: Weights, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        leaves, lower = (
            {p: w.detach().requires_grad_() for p, w in part.items()} for part in (mine, own)
        )
        value = loss(shard, joined(leaves, lower), x, y)
        found = torch.autograd.grad(value, list(lower.values()), create_graph=True)
        stepped = {p: w - rate * g for (p, w), g in zip(lower.items(), found, strict=True)}
        value = loss(shard, joined(leaves, stepped), x, y)
        hyper = torch.autograd.grad(value, list(leaves.values()))
        for path, w in own.items():
            w.copy_(stepped[path].detach())
        return value.detach(), hyper

    return gradients


def joined(mine: Weights, own: Weights) -> Weights:
    """One pair of factors for both: their ranks side by side."""
    side = {"a": -1, "b": -2}
    return {p: torch.cat([w, own[p]], side[p[-1]]) if p in own else w for p, w in mine.items()}


def train(
    shard: Shard,
    gradients: Gradients,
    groups: list[tuple[tuple[Tensor, ...], tuple[Tensor, ...], Weights]],
    lead: tuple[int, ...],
    start: Tensor,
) -> tuple[Tensor, Tensor]:
    """A round of each group of `lead` clients, all from `start`; sums as in Local."""
    optimizer = workloads.WORKLOADS[shard.name].optimizer
    make_step = sgd if isinstance(optimizer, workloads.Sgd) else adamw
    total, losses = torch.zeros_like(start), start.new_zeros(2)
    for inputs, labels, own in groups:
        flat = start.expand(*lead, -1).clone()  # [P] or [C, P]
        mine = views(flat, shard.theta)
        step, values = make_step(optimizer, list(mine.values())), []
        for t, (x, y) in enumerate(zip(inputs, labels, strict=True), 1):
            value, found = gradients(mine, own, x, y)
            step(found, t)
            values.append(value)
        total += flat.sum(0) if lead else flat
        losses += torch.stack([values[0].sum(), values[-1].sum()])
    return total, losses


# Arrays in, tensors out.


def tensors(name: str, arrays: workloads.Arrays) -> tuple[Weights, Weights]:
    """(base, theta): the frozen and the trained weights."""
    full = workloads.WORKLOADS[name].full if arrays.factors else tuple(arrays.params)
    base = {p: laid_out(w) for p, w in arrays.params.items() if p not in full}
    theta = {p: laid_out(arrays.params[p]) for p in full}
    for path, (a, b) in arrays.factors.items():
        theta[f"{path}:a"] = laid_out(a)
        theta[f"{path}:b"] = laid_out(b.reshape(*[1] * (a.ndim - b.ndim), *b.shape))
    return base, theta


def kept(arrays: workloads.Arrays) -> Weights:
    """The factors that clients keep [K, ...], in tensors of their own."""
    return {
        f"{path}:{side}": torch.from_numpy(x.copy())
        for path, pair in arrays.own.items()
        for side, x in zip("ab", pair, strict=True)
    }


def laid_out(weight: np.ndarray) -> Tensor:
    """HWIO -> OHWI; anything else as it is."""
    return torch.from_numpy(weight.transpose(3, 0, 1, 2).copy() if weight.ndim == 4 else weight)


def views(flat: Tensor, theta: Weights) -> Weights:
    """flat [..., P] -> {path: weights [..., shape]}, no copy."""
    parts = flat.split([w.numel() for w in theta.values()], dim=-1)
    return {
        path: part.unflatten(-1, w.shape)
        for (path, w), part in zip(theta.items(), parts, strict=True)
    }


def batches(
    name: str, examples: dict[str, np.ndarray], processes: int
) -> list[tuple[Tensor, Tensor]]:
    """(inputs [K, S, B, ...], labels [K, S, B]) of each process; images as [..., C, H, W]."""
    workload = workloads.WORKLOADS[name]
    lead = (-1, workload.steps, workload.batch)
    inputs, labels = (
        torch.from_numpy(x).unflatten(0, lead)
        for x in (examples["tokens" if workload.vocabulary else "image"], examples["label"])
    )
    if inputs.ndim == 6:
        inputs = inputs.permute(0, 1, 2, 5, 3, 4)  # channels last in memory
    if len(inputs) < processes:
        raise ValueError(
            f"{processes} processes have {len(inputs)} clients; give at least one each"
        )
    halves = inputs.tensor_split(processes), labels.long().tensor_split(processes)
    return list(zip(*halves, strict=True))


# Workers.


class Report(NamedTuple):
    first: float  # mean loss over clients at the first local step
    last: float  # at the last
    norm: float  # of everything that is trained, after the mean


class Peer(NamedTuple):
    round: Callable[[], Report]  # one federated round on from theta, which it overwrites
    theta: np.ndarray  # [P] the global state; assign to theta[:] to start elsewhere
    close: Callable[[], None]


def make(
    name: str,
    mode: str,
    *,
    clients: int | None = None,
    arrays: workloads.Arrays | None = None,
    threads: int | None = None,
) -> Peer:
    """The workload `name` in one of MODES, with workers started and waiting.

    `arrays` are the workload's own if not given; `threads` of each process as in MODES. Workers are
    spawned, so a script that calls this needs `if __name__ == "__main__"`. They end with close(),
    with this process, or when it is killed.
    """
    arrays = arrays or workloads.arrays(name, clients)
    method, (processes, usual) = METHODS[mode[:-1]], MODES[mode]
    base, theta = tensors(name, arrays)
    start = torch.cat([w.flatten() for w in theta.values()]).share_memory_()  # [P]
    sums = torch.zeros(processes, len(start) + 2).share_memory_()
    halves, own = batches(name, arrays.examples, processes), kept(arrays)
    parts = {p: w.tensor_split(processes) for p, w in own.items()}
    workers = [
        _worker(
            method,
            Shard(name, MODELS[name], base, theta, *mine, {p: w[i] for p, w in parts.items()}),
            usual if threads is None else threads,
            start,
            sums[i],
        )
        for i, mine in enumerate(halves)
    ]
    count = len(arrays.examples["label"]) // workloads.WORKLOADS[name].examples
    return Peer(
        partial(_round, workers, start.numpy(), sums.numpy(), count),
        start.numpy(),
        partial(_close, workers),
    )


def peft(shard: Shard) -> Local:
    """One client after another, with Transformers' LLaMA and PEFT's adapters."""
    import peft_peer

    return peft_peer.local(shard)


METHODS = {"loop": loop, "vmap": vmap, "peft": peft}

Worker = tuple[torch.multiprocessing.Process, Connection]


def _worker(method, shard: Shard, threads: int, start: Tensor, row: Tensor) -> Worker:
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(theirs, method, shard, threads, start, row), daemon=True
    )
    process.start()
    theirs.close()  # so that a worker's death is an EOFError here
    return process, ours


def _serve(
    pipe: Connection, method, shard: Shard, threads: int, start: Tensor, row: Tensor
) -> None:
    """One round for every True that comes down the pipe, until a False or the parent's end."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    local = method(shard)
    while pipe.recv():
        row.copy_(torch.cat(local(start)))
        pipe.send(True)


def _end_with_parent() -> None:
    torch.multiprocessing.parent_process().join()
    os._exit(1)


def _round(workers: list[Worker], theta: np.ndarray, sums: np.ndarray, clients: int) -> Report:
    for _, pipe in workers:
        pipe.send(True)
    for _, pipe in workers:
        pipe.recv()
    mean = sums.sum(0) / clients  # numpy: no thread pool in this process
    theta[:], (first, last) = mean[:-2], mean[-2:]
    return Report(float(first), float(last), float(np.linalg.norm(theta)))


def _close(workers: list[Worker]) -> None:
    for _, pipe in workers:
        pipe.send(False)
    for process, _ in workers:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("workload", choices=workloads.WORKLOADS)
    parser.add_argument("--mode", choices=MODES, default="loop2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int)
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    peer = make(asked.workload, asked.mode, clients=asked.clients, threads=asked.threads)
    reports, seconds = [], []
    for _ in range(asked.rounds + 1):  # the first warms up
        started = time.perf_counter()
        reports.append(peer.round())
        seconds.append(time.perf_counter() - started)
    peer.close()
    figures = {"seconds": seconds[1:], "rounds": [r._asdict() for r in reports]}
    print(json.dumps({**vars(asked), "warm_up": seconds[0], **figures}, indent=1))


if __name__ == "__main__":
    main()
