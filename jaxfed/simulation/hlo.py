"""What a compiled program does, read from its text: kernels, bytes, products and collectives.

XLA's own analyses count a loop once and are not there for every device. Here a loop counts as often
as it runs. Where only data decide how often, the caller gives the number.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple


class Work(NamedTuple):
    """What a program, or a part of it, asks of a device."""

    kernels: float = 0
    bytes: float = 0  # read and written by kernels
    wide: float = 0  # FLOPs of products of float32 or wider
    narrow: float = 0  # FLOPs of products of narrower numbers
    collectives: tuple[tuple[str, float, float], ...] = ()  # (kind, how often, bytes)

    def plus(self, other: "Work", times: float = 1) -> "Work":
        """This and `other`, done so many times."""
        found = {kind: (n, size) for kind, n, size in self.collectives}
        for kind, n, size in other.collectives:
            before = found.get(kind, (0.0, 0.0))
            found[kind] = before[0] + times * n, before[1] + times * size
        return Work(
            self.kernels + times * other.kernels,
            self.bytes + times * other.bytes,
            self.wide + times * other.wide,
            self.narrow + times * other.narrow,
            tuple((kind, n, size) for kind, (n, size) in sorted(found.items())),
        )


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a computation."""

    shape: str
    kind: str
    operands: tuple[str, ...]
    rest: str  # attributes, or a constant's value

    def named(self, attribute: str) -> str:
        """The computation that an attribute names, "" if there is none."""
        found = re.search(rf"\b{attribute}=%([\w.\-]+)", self.rest)
        return found[1] if found else ""


class Computation(NamedTuple):
    """Instructions by name, in order, and the name of the one whose value is returned."""

    instructions: Mapping[str, Instruction]
    root: str


Program = Mapping[str, Computation]
"""Computations by name; "" is the one that the program starts with."""


def parsed(text: str) -> Program:
    """The program whose compiled text this is."""
    program: dict[str, Computation] = {}
    lines: dict[str, Instruction] = {}
    name = root = ""
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line):
            name, lines, root = "" if header[1] else header[2], {}, ""
        elif line == "}":
            program[name] = Computation(lines, root)
        elif found := re.match(r"\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$", line):
            inside, _, rest = found[5].partition(")")
            # The value of a constant stands where other instructions have operands.
            attributes = found[5] if found[4] == "constant" else rest
            operands = tuple(re.findall(r"%([\w.\-]+)", inside))
            lines[found[2]] = Instruction(found[3], found[4], operands, attributes)
            root = found[2] if found[1] else root
    return program


def work(program: Program, turns: float = 1) -> Work:
    """All that the program does; loops whose length only data decide run `turns` times."""
    return _Reading(program, turns).of_computation("", outermost=True)


def local_step(program: Program) -> Work:
    """What one turn does of the loop of which only data decide how often it runs.

    The round's loop over local steps is one, also within that over chunks of clients. Of several,
    the one with the most kernels; the whole program if there is none.
    """
    reading = _Reading(program, 1)
    return max(reading.steps(""), key=lambda w: w.kernels, default=work(program))


def grouped(program: Program) -> list[str]:
    """The shapes of convolutions with groups, which libraries compute slowly."""
    everything = (i for c in program.values() for i in c.instructions.values())
    return [i.shape for i in everything if re.search(r"feature_group_count=(?!1\b)\d", i.rest)]


def size(shape: str, *, fast: bool = True) -> int:
    """Bytes of a value of this shape; `fast=False` leaves out what lies in a TPU's fast memory."""
    total = 0
    for kind, dims, layout in re.findall(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?", shape):
        if fast or not re.search(r"S\([1-9]", layout):
            bits = re.search(r"\d+", kind)
            total += math.prod(_numbers(dims)) * (int(bits[0]) if bits else 8) // 8
    return total


# No kernel: names for values, the ends of what a start began, and what holds other computations.
_NAMES = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"} | {
    "partition-id", "replica-id", "optimization-barrier", "opt-barrier", "add-dependency"
}  # fmt: skip
_SLICES = {"dynamic-slice", "slice", "gather"}
_COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"}


@dataclasses.dataclass(frozen=True)
class _Reading:
    program: Program
    turns: float

    def of_computation(self, name: str, *, outermost: bool = False) -> Work:
        """The sum over instructions; loops of unknown length are those of `outermost` only."""
        computation, total = self.program[name], Work()
        for i in computation.instructions.values():
            if i.kind == "while":
                inner = self.of_computation(
                    i.named("body"), outermost=outermost and _known(self.program, i) is not None
                )
                total = total.plus(inner, self.turns_of(i, outermost=outermost))
            elif i.kind == "call":
                total = total.plus(self.of_computation(i.named("to_apply"), outermost=outermost))
            elif i.kind == "conditional":
                total = total.plus(self._branch(i, outermost))
            elif i.kind not in _NAMES and not i.kind.endswith("-done"):
                total = total.plus(self._kernel(computation, i))
        return total

    def steps(self, name: str) -> list[Work]:
        """A turn of each outermost loop of unknown length, here and in loops of known length."""
        found = []
        for i in self.program[name].instructions.values():
            body = i.named("body" if i.kind == "while" else "to_apply")
            if i.kind == "while" and _known(self.program, i) is None:
                found.append(self.of_computation(body))
            elif i.kind in ("while", "call"):
                found += self.steps(body)
        return found

    def turns_of(self, loop: Instruction, *, outermost: bool) -> float:
        """How often a loop runs: as its text has it, else as given, or once within such a loop."""
        known = _known(self.program, loop)
        return known if known is not None else self.turns if outermost else 1

    def _branch(self, i: Instruction, outermost: bool) -> Work:
        """The branch with the most kernels."""
        listed = re.search(r"branch_computations=\{([^}]*)\}", i.rest)
        names = re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
        names += filter(None, (i.named("true_computation"), i.named("false_computation")))
        found = [self.of_computation(name, outermost=outermost) for name in names]
        return max(found, key=lambda w: w.kernels, default=Work())

    def _kernel(self, computation: Computation, i: Instruction) -> Work:
        kind = i.kind.removesuffix("-start")
        if kind in _COLLECTIVES:
            moved = size(i.shape)
            if i.kind == "all-gather-start":  # its input stands in its shape as well
                moved -= sum(size(computation.instructions[o].shape) for o in i.operands)
            return Work(kernels=1, bytes=2 * moved, collectives=((kind, 1, moved),))
        inside = self.program.get(i.named("calls")) if i.kind == "fusion" else None
        moved = _fused(inside) if inside else _alone(computation, i)
        wide, narrow = self._products(inside or Computation({"": i}, ""), computation)
        return Work(1, moved, wide, narrow)

    def _products(self, part: Computation, around: Computation) -> tuple[float, float]:
        """FLOPs of products of (wide, narrow) operands, also in fusions within."""
        wide = narrow = 0.0
        for i in part.instructions.values():
            if i.kind == "fusion" and (inner := self.program.get(i.named("calls"))):
                more = self._products(inner, part)
                wide, narrow = wide + more[0], narrow + more[1]
                continue
            shapes = [
                found.shape
                for o in i.operands
                if (found := part.instructions.get(o) or around.instructions.get(o))
            ]
            for pair in _pairs(i, shapes):
                flops = _flops(i, pair)
                if flops and re.match(r"\(?(f32|f64|s32)", pair[-1]):
                    wide += flops
                else:
                    narrow += flops
        return wide, narrow


def _known(program: Program, loop: Instruction) -> int | None:
    """How often a loop runs, if XLA says so or if its condition compares with a constant."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(found[1])
    condition = program[loop.named("condition")].instructions
    inner = [program[name].instructions for i in condition.values() if (name := i.named("calls"))]
    lines = [i for part in (condition, *inner) for i in part.values()]
    tests = [i for i in lines if i.kind == "compare" and "direction=LT" in i.rest]
    limits = [i.rest for i in lines if i.kind == "constant" and i.shape.startswith("s32[]")]
    if len(tests) == len(limits) == 1:
        return int(limits[0].partition(")")[0])
    return None


def _alone(computation: Computation, i: Instruction) -> int:
    """Bytes that an instruction outside of fusions reads and writes."""
    shapes = [computation.instructions[o].shape for o in i.operands]
    if i.kind in _SLICES:
        return 2 * size(i.shape, fast=False)
    if i.kind == "dynamic-update-slice":
        return 2 * size(shapes[1], fast=False)
    if i.kind in ("copy-start", "slice-start"):  # which repeat their operand in their shape
        part = i.shape.rpartition("}), ")[2] if i.kind == "slice-start" else i.shape
        moved = re.search(r"\w+\[[\d,]*\]\S*", part)
        new = moved[0] if moved else ""
        return size(new, fast=False) + (size(new) if size(shapes[0], fast=False) else 0)
    # A library's product returns its workspace beside the result.
    result = re.sub(r", [su]8\[\d+\](\{[^}]*\})?\)$", ")", i.shape)
    return sum(size(s, fast=False) for s in (result if _library(i) else i.shape, *shapes))


def _fused(part: Computation) -> int:
    """Bytes that a fusion reads and writes; of what it slices or updates in place, that part."""
    lines = part.instructions
    total = 0
    for name, i in lines.items():
        if i.kind != "parameter":
            continue
        users = [u for u in lines.values() if name in u.operands]
        in_parts = all(
            u.kind in _SLICES or (u.kind == "dynamic-update-slice" and u.operands[0] == name)
            for u in users
        )
        read = [size(u.shape, fast=False) for u in users if u.kind in _SLICES]
        total += sum(read) if in_parts else size(i.shape, fast=False)
    root = lines[part.root]
    for last in [lines[o] for o in root.operands] if root.kind == "tuple" else [root]:
        new = lines[last.operands[1]] if last.kind == "dynamic-update-slice" else last
        total += size(new.shape, fast=False)
    return total


def _library(i: Instruction) -> re.Match[str] | None:
    """(cublas or cudnn, which of its functions), if NVIDIA's library computes it."""
    return re.search(r'custom_call_target="__(cublas|cudnn)\$(\w+)', i.rest)


def _added(i: Instruction) -> bool:
    """True for lowrank/kernel.py, of operands x, W, S, B and maybe a bias: x W + S B."""
    return i.kind == "custom-call" and "low_rank_sum" in i.rest


def _pairs(i: Instruction, shapes: list[str]) -> list[list[str]]:
    """The operands of each product that an instruction computes."""
    pairs = zip(shapes[::2], shapes[1::2], strict=False)
    return [list(pair) for pair in pairs] if _added(i) else [shapes]


def _flops(i: Instruction, shapes: list[str]) -> float:
    """2 m n k of a product or a convolution, whoever computes it; 0 of all else."""
    if _added(i):
        return 2 * math.prod(_dims(i.shape)) * _dims(shapes[0])[-1]
    library = _library(i)
    contracted = re.search(r'lhs_contracting_dim(?:s|ensions)"?[=:][{\[]([\d,"]*)[}\]]', i.rest)
    if contracted and (i.kind == "dot" or library):
        left = _dims(shapes[0])
        return 2 * math.prod(_dims(i.shape)) * math.prod(left[n] for n in _numbers(contracted[1]))
    labels = re.search(r"dim_labels=\w+_(\w+)->", i.rest)
    if not labels or not (i.kind == "convolution" or library):
        return 0
    outputs, kernel = _dims(i.shape), _dims(shapes[1])
    if library and "BackwardInput" in library[2]:
        outputs = _dims(shapes[0])
    elif library and "BackwardFilter" in library[2]:
        outputs, kernel = kernel, outputs
    # Between the inputs that a window meets there are zeros: a TPU's form of a batched product.
    apart = re.search(r"lhs_dilate=([\dx]+)", i.rest)
    zeros = math.prod(_numbers(apart[1])) if apart else 1
    return 2 * math.prod(outputs) * math.prod(kernel) / kernel[labels[1].index("o")] / zeros


def _dims(shape: str) -> list[int]:
    """The dimensions of the first array of a shape."""
    found = re.search(r"\[([\d,]*)\]", shape)
    return _numbers(found[1]) if found else []


def _numbers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)]
