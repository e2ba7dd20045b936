"""What PF2LoRA's hypergradient costs: a local step, and a round, against HOMLoRA's.

    python benchmarks/costs/hypergrad_cost.py [--clients 4] [--chunk 1] [--repeats 7] [--write]

W4's encoder, batch and optimizer; rank 8, personal rank 2. FLOPs are XLA's own count of one
compiled local step, in which nothing is a loop; the methods are timed in turn. Products with base
weights alone would make it 3: HOMLoRA goes forwards and backwards once; the hypergradient does so
at y and at y+, and differentiates both ways at y. PF2LoRA's paper reports 4.65 a round.

    python benchmarks/costs/hypergrad_cost.py --peak 256

runs one round of PF2LoRA with so many clients, and prints this process's peak memory (Linux).
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from measuring import RESULTS, memory, ours, timing, workloads

from jaxfed import aggregate, hypergrad, local, lowrank, tasks
from jaxfed.algorithm import Algorithm
from jaxfed.algorithms import fedavg, pf2lora
from jaxfed.tasks import Task

W4 = workloads.WORKLOADS["W4"]
AGAINST, TARGET = "HOMLoRA r=8", "PF2LoRA r=8, r~=2"
ALPHA = 1e-3


class Method(NamedTuple):
    """The common rank; how h is made beside a personal adapter of rank 2, or None without one."""

    rank: int
    gradient: Callable | None


METHODS = {
    AGAINST: Method(8, None),
    "HOMLoRA r=10": Method(10, None),  # trains as many numbers as those with a personal adapter
    TARGET: Method(8, hypergrad.one_step),
    "without the cross term": Method(8, hypergrad.alternating),
    "all at once": Method(8, hypergrad.simultaneous),
}


def classifier(method: Method, examples: dict) -> Task:
    select = lowrank.Select(
        factors="(query|value)/kernel", full="^head", rank=method.rank, alpha=W4.scale * method.rank
    )
    return tasks.classification(ours.MODELS["W4"](), examples, select=select, inputs=("tokens",))


def local_step(method: Method, made: Task, examples: dict) -> tuple[Any, tuple]:
    """(one local step of one client, compiled; its arguments)."""
    optimizer, key = ours.optimizer(W4.optimizer), jax.random.key(0)
    base, x = jax.jit(made.init)(key)
    y = {} if method.gradient is None else lowrank.beside(x.factors, 2, key, alpha=2 * W4.scale)
    batch = {n: v[: W4.batch] for n, v in examples.items()}
    batch |= {"mask": jax.numpy.ones(W4.batch)}

    def step(base, x, y, opt, batch):
        def f(x, y):
            return made.loss(base, lowrank.joined(x, y), batch, key)

        if method.gradient is None:
            value, h = jax.value_and_grad(f)(x, y)
        else:
            value, h, y = method.gradient(f, x, y, ALPHA)
        updates, opt = optimizer.update(h, opt, x)
        return jax.tree.map(jax.numpy.add, x, updates), y, opt, value

    arguments = (base, x, y, optimizer.init(x), batch)
    return jax.jit(step).lower(*arguments).compile(), arguments


def algorithm(method: Method, made: Task) -> Algorithm:
    work, optimizer = local.Work(W4.batch, epochs=1, shuffle=False), ours.optimizer(W4.optimizer)
    if method.gradient is None:
        return fedavg(made, work, client_optimizer=optimizer, mean=aggregate.uniform_mean)
    return pf2lora(
        made,
        work,
        rank=2,
        inner_rate=ALPHA,
        scale=W4.scale,
        upper_optimizer=optimizer,
        keep_moments=False,
        personal_head=False,
        gradient=method.gradient,
    )


def a_round(fed: Algorithm, examples: dict, clients: int, chunk: int) -> Callable[[], Any]:
    """A function that runs one round of these clients from where the last one ended."""
    now = ours.plan(clients, W4.examples)
    return ours.running(fed, examples, now, most=W4.examples, chunk=chunk)


def peak(clients: int, chunk: int) -> str:
    """A sentence on this process's peak memory, after one round of PF2LoRA with these clients."""
    method, examples = METHODS[TARGET], workloads.arrays("W4", clients).examples
    a_round(algorithm(method, classifier(method, examples)), examples, clients, chunk)()
    most = memory("VmHWM") / 1e9
    return f"{TARGET}, {clients} clients of W4, {chunk} at once: {most:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=1, help="clients vmapped at once")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--peak", type=int, help="clients whose memory is to be measured")
    asked = parser.parse_args()
    if asked.peak:
        print(peak(asked.peak, asked.chunk))
        return
    start = timing.machine()
    examples = workloads.arrays("W4", asked.clients).examples
    steps, rounds, counted = {}, {}, {}
    for name, method in METHODS.items():
        made = classifier(method, examples)
        program, arguments = local_step(method, made, examples)
        steps[name] = lambda p=program, a=arguments: jax.block_until_ready(p(*a))
        rounds[name] = a_round(algorithm(method, made), examples, asked.clients, asked.chunk)
        temporary = program.memory_analysis().temp_size_in_bytes
        counted[name] = program.cost_analysis()["flops"] / 1e9, temporary / 1e6
    found = {"step": timing.alternate(steps, asked.repeats * 3)}
    found[f"round of {asked.clients}"] = timing.alternate(rounds, asked.repeats)
    flops = {name: count / counted[AGAINST][0] for name, (count, _) in counted.items()}
    lines = [
        f"{name}: {counted[name][0]:.2f} GFLOP a step, {flops[name]:.2f} times {AGAINST}'s; "
        f"{counted[name][1]:.0f} MB beside its arguments"
        for name in METHODS
    ]
    for what, taken in found.items():
        pairs = zip(taken[TARGET]["all"], taken[AGAINST]["all"], strict=True)
        lines.append(f"{what}: {statistics.median(a / b for a, b in pairs):.2f} times the seconds")
    print(*lines, timing.table(found, AGAINST), sep="\n")
    if asked.write:
        notes = {"command": timing.command(), "found": lines}
        timing.write(RESULTS / "hypergrad_cost", found, AGAINST, start, **notes)


if __name__ == "__main__":
    main()
