"""What a round costs in trials at once, over as many rounds of the trials alone.

    python benchmarks/costs/trials.py [W1 W3] [--trials 15] [--repeats 5] [--write]

The trials of a workload differ in their learning rates and seeds. Alone, each has as many clients
at once as is fastest, and all share one program, as in `jaxfed sweep`. At once, as by --at-once,
their rounds are one call with a leading axis of trials, of which `--most` are computed at once,
with as many clients at once in all.
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence

import jax
import optax
from measuring import RESULTS, ours, timing, workloads

from jaxfed import Experiment, Host, local
from jaxfed.algorithms import fedavg
from jaxfed.data import federate, partition, sources
from jaxfed.simulation import engine, lockstep, pooling, run, together
from jaxfed.simulation.prepare import Prepared, prepare
from jaxfed.simulation.programs import Programs

ROUNDS = 10_000  # more than are run


def experiments(name: str, trials: int, *, dealt: bool = False) -> list[Experiment]:
    """The workload with other learning rates and seeds; `dealt` by these, or on one split."""
    w, arrays = workloads.WORKLOADS[name], workloads.arrays(name)
    task, work = ours.algorithm(name, arrays).task, local.Work(w.batch, epochs=1, shuffle=False)
    source = sources.Source(arrays.examples, {n: x[:1] for n, x in arrays.examples.items()})
    splits = [partition.iid(w.clients * w.examples, w.clients, seed=i) for i in range(trials)]
    data = [federate(source, parts) for parts in (splits if dealt else splits[:1])]
    return [
        Experiment(
            data[i % len(data)],
            fedavg(task, work, client_optimizer=optax.sgd(0.01 * (1 + i))),
            rounds=ROUNDS,
            cohort=w.clients,
            seed=i,
            evaluate_every=0,
        )
        for i in range(trials)
    ]


def prepared(made: Sequence[Experiment], chunk: int | str) -> list[Prepared]:
    """Runs on one device, which has all cores, of one program."""
    host, programs = Host(devices=1, chunk=chunk, fuse=1), Programs(made[0].data.size)
    return [prepare(e, host, programs=programs, compiling=False) for e in made]


def alone(members: Sequence[Prepared]) -> Callable[[], object]:
    """A function that runs a round of each."""
    each = [run.run_blocks(p) for p in members]
    for work in each:
        next(work)  # begins it
    return lambda: [next(work) for work in each]


def at_once(members: Sequence[Prepared], most: int) -> Callable[[], object]:
    """A function that runs a round of all, at most so many of them computed at once."""
    shared = pooling.shared(members)
    trials = together.together(shared, engine.machine(1), most)
    if trials is None:
        raise SystemExit("the trials at once need more memory than is free; give fewer --trials")
    work = lockstep.run_blocks(shared, trials)
    return lambda: next(work)


def times(found: Mapping[str, dict], way: str) -> float:
    """How many times as long as alone, the median of pairs that ran in turn."""
    pairs = zip(found[way]["all"], found["alone"]["all"], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", default=["W1", "W3"], help="workloads")
    parser.add_argument("--trials", type=int, default=15)
    parser.add_argument("--most", type=int, default=1, help="computed at once; 1 as on a CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 1)
    start, found, lines = timing.machine(), {}, []
    for name in asked.names:
        made = experiments(name, asked.trials)
        one = prepared(made, "auto")
        chunk = one[0].machine.chunk or made[0].cohort
        most, share = asked.most, max(1, chunk // asked.most)
        several = prepared(made, share)
        functions = {"alone": alone(one), "at once": at_once(several, most)}
        dealt = prepared(experiments(name, asked.trials, dealt=True), share)
        functions["at once, dealt by seed"] = at_once(dealt, most)
        found[name] = timing.alternate(functions, asked.repeats)
        one_split, own_split = (times(found[name], way) for way in list(functions)[1:])
        lines.append(
            f"{name}, {asked.trials} trials at once: {one_split:.2f} times the rounds alone, "
            f"{own_split:.2f} where each seed deals the examples otherwise (the "
            f"medians of {asked.repeats} pairs); at once {share} clients of {most} trials, and "
            f"{chunk} clients alone"
        )
        print(timing.table({name: found[name]}, "alone"), lines[-1], sep="\n", flush=True)
    if asked.write:
        notes = {"command": timing.command(), "found": "; ".join(lines)}
        timing.write(RESULTS / "trials", found, "alone", start, **notes)


if __name__ == "__main__":
    main()
