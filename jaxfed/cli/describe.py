"""What an experiment trains, freezes and sends, in counts and bytes, before it is run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxfed import trees
from jaxfed.combine.listing import LIST
from jaxfed.data import text
from jaxfed.data.federated import Split
from jaxfed.lowrank import quantised
from jaxfed.lowrank.factors import Theta
from jaxfed.simulation import flops, ledger, targets


def whole(theta: Theta, init: Callable) -> Theta:
    """The server's theta, with the shapes of what clients keep in place of each None.

    `init` is the task's, whose theta has all parts; a theta of another structure is left as it is.
    """

    def empty(x: Any) -> bool:
        return x is None

    if None not in jax.tree.leaves(theta, is_leaf=empty):
        return theta
    drawn = jax.eval_shape(init, jax.random.key(0))[1]
    structures = {jax.tree.structure(t, is_leaf=empty) for t in (theta, drawn)}
    return trees.together(theta, drawn) if len(structures) == 1 else theta


def weights(base: dict[str, Any], theta: Theta) -> str:
    """A line for every weight: its path, shape and part; arrays may be shapes."""
    rows = [("weight", "shape", "part", "trained")]
    for path, held in sorted({**base, **theta.full}.items(), key=lambda item: item[0]):
        w, statistic = (held.value, True) if trees.is_running(held) else (held, False)
        shape = " x ".join(map(str, w.shape)) or "scalar"
        if path in theta.factors:
            f = theta.factors[path]
            rows.append(
                (
                    path,
                    shape,
                    f"factors, rank {f.rank}, scale {f.scale:g}{_stored(w)}",
                    f"{trees.size(f):,}",
                )
            )
        elif path in theta.full:
            part = "running statistic" if statistic else "trained in full"
            rows.append((path, shape, part, f"{w.size:,}"))
        else:
            rows.append((path, shape, f"frozen{_stored(w)}", "0"))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def parameters(base: dict[str, Any], theta: Theta, wire: ledger.Wire, shared: int) -> str:
    """How much is trained, frozen and sent, beside the whole model, and listed beside it.

    `shared` of the trained numbers are the server's; clients keep the others.
    """
    listed = {path: w for path, w in base.items() if path.startswith(LIST)}
    base = {path: w for path, w in base.items() if path not in listed}
    frozen, trained = quantised.size(base), trees.size(theta)
    whole = frozen + trees.size(theta.full)
    held = in_bytes(trees.nbytes(base) + trees.nbytes(theta.full))
    lines = [
        f"model    {whole:,} parameters ({held})",
        f"trained  {trained:,} = {_share(trained / whole)} of the model: "
        f"{trees.size(theta.factors):,} in factors beside {len(theta.factors)} weights, "
        f"{trees.size(theta.full):,} in {len(theta.full)} weights trained in full",
        f"frozen   {frozen:,} ({in_bytes(trees.nbytes(base))}), held once for all clients",
    ]
    if own := trained - shared:
        lines.append(f"kept     {own:,} of the trained, by each client for itself")
    for kind in quantised.MOST:
        if narrow := {p: w for p, w in base.items() if _stored(w).endswith(kind)}:
            lines.append(
                f"{kind}     {quantised.size(narrow):,} of the frozen, in "
                f"{in_bytes(trees.nbytes(narrow))} with their scales"
            )
    if listed:
        size = trees.size(listed)
        lines.append(
            f"list     {size:,} = {_share(size / whole)} of the model: room for the merges beside "
            f"it ({in_bytes(trees.nbytes(listed))})"
        )
    sent = f"{in_bytes(wire.down)} down, {in_bytes(wire.up)} up for a client in a round"
    return "\n".join([*lines, f"wire     {sent}"])


def _stored(w: Any) -> str:
    """How a weight is stored, if it is quantised."""
    return f", in {w.kind}" if quantised.is_quantised(w) else ""


def _share(part: float) -> str:
    """The share in percent; with two decimals below one percent."""
    return f"{part:.1%}" if part >= 0.01 else f"{part:.2%}"


def population(train: Split, cohort: int) -> str:
    """How many clients, with how many examples; of text, how much of the work is on padding."""
    low, middle, high = np.percentile(train.count, [0, 50, 100]).astype(int)
    clients = (
        f"clients  {train.clients:,}, of which {cohort:,} a round; {low} to {high} examples each "
        f"(median {middle})"
    )
    if not {"tokens", "length"} <= set(train.examples):
        return clients
    tokens, waste = train.examples["tokens"].shape[1], text.padding(train.examples)
    return f"{clients}\ntext     {tokens} tokens an example, of which {waste:.1%} are padding"


def traffic(wire: ledger.Wire, rounds: int, cohort: int, merges: int) -> str:
    """The bytes that all clients of all rounds send and receive together.

    `merges` are the bytes of merges that absent clients receive.
    """
    down, up = (in_bytes(n * rounds * cohort) for n in wire)
    total = f"traffic  {down} down, {up} up in {rounds} rounds of {cohort} clients"
    return f"{total}, and {in_bytes(merges)} of merges to absent clients" if merges else total


def compute(cost: flops.Round, rounds: int, cohort: int) -> str:
    """What a client, a round and all rounds cost in FLOPs, of a client's and the server's part."""
    client, server = (float(part.flops) for part in cost)
    one = client * cohort + server
    told = (
        f"compute  {in_flops(client)} for a client in a round (mean over clients and rounds), "
        f"{in_flops(one)} in a round of {cohort:,}, {in_flops(one * rounds)} in {rounds:,} rounds"
    )
    if unbounded := sum(part.unbounded for part in cost):
        told += f"; loops counted once, as their length is not known before: {unbounded}"
    return told


def held(parts: Mapping[str, int]) -> str:
    """What lies in a device's memory all the time, in bytes by name."""
    return "held     " + ", ".join(f"{in_bytes(n)} {name}" for name, n in parts.items())


def working(chunks: Mapping[int, int]) -> str:
    """What a round needs beside that on a device, by how many clients run at once."""
    return "memory   " + ", ".join(
        f"{in_bytes(n)} for a round of {chunk} client{'s' * (chunk > 1)} at once"
        for chunk, n in chunks.items()
    )


def elsewhere(where: targets.Target, tried: Sequence[targets.Compiled]) -> str:
    """A round on each device of a target, of the last chunk that was compiled for it."""
    last, device = tried[-1], where.device
    lines = [
        f"target   {where.name}: {len(where.devices)} x {where.devices[0].device_kind}, each with "
        f"{in_bytes(where.room)} for a program; compiled here, without autotuning"
    ]
    for found in tried:
        needed = found.arguments + found.temporary
        lines.append(
            f"memory   {in_bytes(found.arguments)} arguments and {in_bytes(found.temporary)} "
            f"temporary for {found.chunk} clients at once: {needed / where.room:.2g} of what is "
            f"there, which {'fits' if found.fits else 'does not fit'}"
        )
    if not last.fits:
        return "\n".join(lines)
    moved = ", ".join(
        f"{n:g} {kind} of {in_bytes(size)}" for kind, n, size in last.work.collectives
    )
    times = targets.seconds(device, last.work)
    largest = max(times, key=lambda name: times[name])
    each = ", ".join(f"{t:.3g} s of {name}" for name, t in times.items() if t)
    products = last.work.wide + last.work.narrow
    return "\n".join(
        [
            *lines,
            f"network  {moved or 'nothing between devices'}",
            f"kernels  {last.step.kernels:,.0f} a local step, {last.work.kernels:,.0f} a round",
            f"work     {in_flops(products)} in products, {in_bytes(last.work.bytes)} read and "
            "written by kernels",
            f"bound    at least {times[largest]:.3g} s a round, by {largest} ({each})",
        ]
    )


def in_bytes(n: float) -> str:
    return _in(n, ("B", "kB", "MB", "GB"))


def in_flops(n: float) -> str:
    return _in(n, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def _in(n: float, units: Sequence[str]) -> str:
    """The number with the first of these units, each 1000 of the last, that keeps it small."""
    for unit in units[:-1]:
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} {units[-1]}"
