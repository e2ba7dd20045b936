"""Rounds of 10^5 clients that each keep an adapter, by where the adapters lie.

    python benchmarks/costs/population.py [--rounds 30] [--clients 100000] [--write]

A client keeps factors of rank 2 beside 12 kernels of 384 x 384, MiniLM-L6's query and value: 18,432
numbers, 74 kB. The frozen model is these 12 layers and a head (4.5 MFLOP an example forward); each
of the 64 clients of a round trains its adapter for 8 SGD steps on its own 4 examples. Rounds of the
runs are timed in turn in one process: the device placement with 1000 clients, and host memory and
mapped with all. All clients of `mapped` were drawn before, so that each round reads and writes rows
of a file of 7.4 GB; of `host`, those that the rounds draw, to spare memory. Then, in a process of
its own each, every client (for `host` every fifth) is drawn once with no work in between, and what
the process holds is read as it goes (Linux).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import optax
from measuring import RESULTS, memory, ours, timing

import jaxfed
from jaxfed import Algorithm, Reply, local, lowrank, models, tasks
from jaxfed.data import Federated
from jaxfed.data.federated import Split
from jaxfed.simulation import engine, participation, population
from jaxfed.simulation.prepare import Prepared, prepare
from jaxfed.simulation.run import run_blocks

WIDTH, LAYERS, RANK, COHORT, EXAMPLES, STEPS = 384, 12, 2, 64, 4, 8
DEVICE_CLIENTS = 1000


@cache
def data(clients: int) -> Federated:
    """uint8 vectors, labelled at random."""
    rng, rows = np.random.default_rng(0), clients * EXAMPLES
    examples = {
        "image": rng.integers(0, 256, (rows, WIDTH), np.uint8),
        "label": rng.integers(0, 2, rows).astype(np.int32),
    }
    count = np.full(clients, EXAMPLES, np.int32)
    train = Split(examples, np.arange(clients, dtype=np.int32) * EXAMPLES, count)
    none = Split(
        {n: x[:0] for n, x in examples.items()}, np.zeros_like(count), np.zeros_like(count)
    )
    return Federated(train, none, {n: x[:100] for n, x in examples.items()})


def personal(learned: tasks.Task) -> Algorithm:
    """FedAvg of factors that each client goes on training from where it left its own."""

    def init_client(server, key):
        return lowrank.fresh(server.theta, key)

    def client(base, theta, k):
        work = local.Work(EXAMPLES, steps=STEPS, shuffle=False)
        loss = partial(learned.loss, base)
        trained, metrics = local.sgd(loss, optax.sgd(0.05), k.state, k, work)
        return Reply(optax.tree.sub(trained, k.state), trained, metrics)

    def run_round(server, cohort, for_each_client):
        reply = for_each_client(client, server.base, server.theta, cohort)
        delta = jaxfed.aggregate.weighted_mean(reply.upload, cohort.weight)
        theta = optax.tree.add(server.theta, delta)
        return server._replace(theta=theta), reply.state, reply.metrics

    plain = jaxfed.fedavg(learned, local.Work(EXAMPLES, steps=1), client_optimizer=optax.sgd(0.05))
    return Algorithm(plain.init, init_client, run_round, lambda server, state: (server.base, state))


def experiment(clients: int, rounds: int) -> jaxfed.Experiment:
    found = data(clients)
    learned = tasks.classification(
        models.MLP((WIDTH,) * LAYERS, classes=2),
        found.test,
        select=lowrank.Select(factors="dense.*kernel", rank=RANK),
        preprocess=lambda x, _: x / 255.0,
    )
    return jaxfed.Experiment(
        found, personal(learned), rounds=rounds, cohort=COHORT, evaluate_every=0
    )


def simulation(placement: str, clients: int, rounds: int, folder: str) -> Prepared:
    host = jaxfed.Host(chunk=COHORT, fuse=1, population=placement, checkpoint_every=0)
    return prepare(experiment(clients, rounds), host, Path(folder) / placement)


def timed(clients: int, rounds: int) -> dict:
    """{placement: seconds of a round}, the runs in turn."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"device": DEVICE_CLIENTS, "host": clients, "mapped": clients}
        runs = {n: simulation(n, size, rounds + 2, folder) for n, size in sizes.items()}
        drawn = [participation.draw(0, t, clients, COHORT) for t in range(rounds + 2)]
        draw_before(runs["host"].population, np.unique(drawn))
        draw_before(runs["mapped"].population, np.arange(clients))
        records = {n: run_blocks(p) for n, p in runs.items()}
        for r in records.values():
            next(r)
        seconds = timing.alternate(
            {f"{n}, {sizes[n]:,} clients": partial(next, r) for n, r in records.items()}, rounds
        )
        for r in records.values():
            r.close()
    return seconds


def draw_before(kept: population.Population, ids: np.ndarray) -> None:
    """As if these clients had been drawn, without any training."""
    for start in range(0, len(ids), COHORT):
        some = np.resize(ids[start : start + COHORT], COHORT).astype(np.int32)[None]
        plan = engine.Plan(*(some,) * 6)
        kept.keep(plan, kept.lend(plan)[0])


def held() -> dict[str, int]:
    """MB of this process's own memory, of files that it maps, and the peak of both together."""
    return {n: memory(n) // 10**6 for n in ("RssAnon", "RssFile", "VmHWM")}


def walk(placement: str, clients: int) -> None:
    """Prints what is held while every client is drawn once and its state changed."""
    e = experiment(COHORT, 1)  # the model alone; the clients are made up below
    machine = engine.machine(1)
    with tempfile.TemporaryDirectory() as folder:
        server = e.algorithm.init(jax.random.key(0))
        kept = population.open_population(
            e.algorithm.init_client,
            lambda: server,
            placement,
            clients=clients,
            width=COHORT,
            seed=0,
            machine=machine,
            directory=Path(folder) / "clients",
        )
        change = engine.compiled(lambda s: jax.tree.map(lambda x: x * 1.5, s), machine, donate=(0,))
        rounds, started = clients // COHORT, time.perf_counter()
        for t in range(rounds):
            ids = np.arange(t * COHORT, (t + 1) * COHORT, dtype=np.int32)[None]
            plan = engine.Plan(np.array([t]), ids, ids, ids, ids, ids)
            kept.keep(plan, change(kept.lend(plan)[0]))
            if t % (rounds // 5) == 0 or t == rounds - 1:
                print(json.dumps({"drawn": (t + 1) * COHORT, **held()}), flush=True)
        walked = time.perf_counter() - started
        kept.save(1, [])
        files = sum(path.stat().st_size for path in (Path(folder) / "clients").iterdir())
        saved = time.perf_counter() - started - walked
        plan = engine.Plan(*(np.arange(COHORT, dtype=np.int32)[None],) * 6)
        kept.keep(plan, kept.lend(plan)[0])
        started = time.perf_counter()
        kept.save(2, [1])
        print(
            json.dumps(
                {
                    "ms a cohort": round(1000 * walked / rounds, 1),
                    "MB on disk": files // 10**6,
                    "s to save all": round(saved, 2),
                    "s to save one cohort": round(time.perf_counter() - started, 3),
                }
            )
        )
        kept.close()


def walked(placement: str, clients: int) -> list[dict]:
    """What `walk` prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--walk", placement, "--clients", str(clients)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--walk", choices=("device", "host", "mapped"))
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    if asked.walk:
        walk(asked.walk, asked.clients)
        return
    start = timing.machine()
    seconds = timed(asked.clients, asked.rounds)
    against = next(iter(seconds))
    print(timing.table({"round": seconds}, against), flush=True)
    taken = {}
    for placement in ("mapped", "host"):
        every = asked.clients // (5 if placement == "host" else 1)
        taken[placement] = walked(placement, every)
        print(placement, *taken[placement], sep="\n", flush=True)
    if asked.write:
        notes = {"command": timing.command(), "memory": taken}
        timing.write(RESULTS / "population", {"round": seconds}, against, start, **notes)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", ours.CPU_DEVICES)
    main()
