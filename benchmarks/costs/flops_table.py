"""What a round of every algorithm costs in FLOPs, beside the cost table of PF2LoRA's paper.

    python benchmarks/costs/flops_table.py [--write]

Nothing is trained and no weight is made: shapes alone are traced, and XLA counts (see
jaxfed/simulation/flops.py).
One setting for all: 8 clients, I = 10 local steps between averages, batches of 16, AdamW, factors
of rank 8 (12 in HETLoRA, 5 + 5 where a client trains two adapters in turn, 8 + 2 in PF2LoRA, as in
the paper) and a head that is trained whole. The models are an MLP 784-200-10, and RoBERTa-base on
128 tokens with factors beside query and value. The last part compiles one local step of W4's
encoder, and compares XLA's count of that with ours. Takes some minutes. flops_zoo.py has every row
of the zoo.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import hypergrad_cost
import jax
import jax.numpy as jnp
import numpy as np
import optax
from measuring import RESULTS, timing, workloads

from jaxfed import aggregate, hypergrad, local, lowrank, models, tasks, trees
from jaxfed.algorithm import Algorithm, Cohort, Data
from jaxfed.algorithms import (
    centralised,
    ditto,
    fdlora,
    fedavg,
    feddpa_f,
    feddpa_t,
    fedloru,
    fedper,
    fedprox,
    fedsa,
    hetlora,
    mfedloru,
    perfedavg,
    pf2lora,
    pfedlora,
    pfedloru,
    scaffold,
)
from jaxfed.algorithms.general import fedopt
from jaxfed.algorithms.general.perfedavg import exact, first_order, hessian_free, same, thirds
from jaxfed.lowrank import restarts
from jaxfed.simulation import flops
from jaxfed.tasks import Task

CLIENTS, STEPS, BATCH, TOKENS = 8, 10, 16, 128
EXAMPLES = STEPS * BATCH  # of each client
AGAINST = "FedAvg on factors (HOMLoRA)"
TARGET = "PF2LoRA"

# arXiv 2503.03920, the table of costs in its ICLR reviews: TFLOPs a round, our name for it
PAPER = {
    "Centralized LoRA": (258.40, "centralised"),
    "HOMLoRA": (258.40, AGAINST),
    "Per-FedAvg-LoRA": (908.00, "Per-FedAvg, exact"),
    "HETLoRA": (272.60, "HETLoRA"),
    "PF2LoRA": (1202.40, TARGET),
}


class Row(NamedTuple):
    algorithm: Algorithm
    rounds: list[int] = [1]  # noqa: RUF012 (a NamedTuple's) over which to take the mean
    times: int = 1  # how many of its rounds have as many local steps as one of the others


class Model(NamedTuple):
    task: Callable[[Any], Task]  # of the factors' rank or a selection; None trains all whole
    examples: dict[str, Any]  # shapes


def classification(model: Any, one: Any, name: str, factors: str) -> Model:
    """`one` is the shape and type of an example, `factors` the pattern of what has factors."""
    few = {name: np.zeros((2, *one.shape), one.dtype), "label": np.zeros(2, np.int32)}
    rows = CLIENTS * EXAMPLES
    shapes = {n: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for n, x in few.items()}

    def made(rank: Any) -> Task:
        select = lowrank.everything if rank is None else rank
        if isinstance(rank, int):
            select = lowrank.Select(factors=factors, full="^head", rank=rank, alpha=float(rank))
        return tasks.classification(model, few, select=select, inputs=(name,))

    return Model(made, shapes)


def mlp(norm: str = "none") -> Model:
    image = jax.ShapeDtypeStruct((784,), jnp.float32)
    return classification(models.MLP((200,), 10, norm), image, "image", "dense.*kernel")


def roberta() -> Model:
    encoder = models.Encoder(
        50265,
        768,
        12,
        12,
        3072,
        514,
        2,
        types=1,
        pad=1,
        counted=True,
        head="dense",
        epsilon=1e-5,
    )
    tokens = jax.ShapeDtypeStruct((TOKENS,), jnp.int32)
    return classification(encoder, tokens, "tokens", "(query|value)/kernel")


MODELS = {"MLP 784-200-10": mlp, "RoBERTa-base": roberta}


def rows(make: Callable[[int | None], Task]) -> dict[str, Row]:
    """Every algorithm; options that change no count are any."""
    work, once, adamw = (
        local.Work(BATCH, steps=STEPS),
        local.Work(BATCH, steps=1),
        optax.adamw(1e-3),
    )
    common = {"client_optimizer": adamw}
    merging = {"every": 10, "restart": restarts.reinit, **common}
    ten = list(range(1, 11))  # of which one begins with a merge
    personal = {"personal_work": work, "personal_optimizer": adamw}
    two = {**common, **personal}
    whole, made = make(None), make(8)
    fewer, own = make(5), {"rank": 5, "alpha": 5.0}

    def averaged(task: Task, server: Any, work: local.Work = work) -> Row:
        mean = aggregate.uniform_mean
        return Row(fedavg(task, work, server_optimizer=server, mean=mean, **common))

    def meta(gradient: Callable, minibatches: Callable = same, size: int = 1) -> Row:
        steps = local.Work(size * BATCH, steps=STEPS)
        options = {"minibatches": minibatches, "personal_work": once, **common}
        return Row(perfedavg(made, steps, inner_rate=1e-3, gradient=gradient, **options))

    def two_level(gradient: Callable) -> Row:
        options = {"upper_optimizer": adamw, "keep_moments": False, "personal_head": False}
        return Row(pf2lora(made, work, rank=2, inner_rate=1e-3, gradient=gradient, **options))

    fused = fdlora(
        fewer,
        work,
        rounds=10,
        sync=10,
        inner_optimizer=adamw,
        outer_optimizer=optax.sgd(1.0),
        shots=BATCH,
        search=20,
        **personal,
    )
    after = feddpa_f(fewer, work, rounds=10, a=0.5, **two)
    return {
        AGAINST: averaged(made, optax.sgd(1.0)),
        "FedAvg on every weight": averaged(whole, optax.sgd(1.0)),
        "centralised": Row(centralised(made, batch_size=BATCH, optimizer=adamw), times=STEPS),
        "FedProx": Row(fedprox(made, work, mu=0.1, **common)),
        "SCAFFOLD": Row(scaffold(made, work, learning_rate=0.1, clients=CLIENTS)),
        "FedAdagrad": averaged(made, fedopt.adagrad(0.1)),
        "FedYogi": averaged(made, fedopt.yogi(0.1)),
        "FedAdam": averaged(made, fedopt.adam(0.1)),
        "FedLoRU": Row(fedloru(made, work, **merging), ten),
        "mFedLoRU": Row(mfedloru(made, work, ranks=[4, 8] * 4, alpha=8.0, **merging), ten),
        "pFedLoRU": Row(pfedloru(made, work, rank=2, **merging, **personal), ten),
        TARGET: two_level(hypergrad.one_step),
        "PF2LoRA without the cross term": two_level(hypergrad.alternating),
        "PF2LoRA all at once": two_level(hypergrad.simultaneous),
        "HETLoRA": Row(
            hetlora(make(12), work, least=8, most=12, gamma=0.99, penalty=0.01, **common)
        ),
        "Per-FedAvg, exact": meta(exact),
        "Per-FedAvg, exact, three minibatches": meta(exact, thirds, 3),
        "Per-FedAvg, Hessian-free": meta(hessian_free(1e-3)),
        "Per-FedAvg, first order": meta(first_order),
        "pFedLoRA": Row(pfedlora(fewer, work, **own, **two)),
        "FDLoRA, its first round": Row(fused, [0]),
        "FDLoRA, federated": Row(fused),
        "FDLoRA, fusion": Row(fused, [11]),
        "FedDPA-F, federated": Row(after),
        "FedDPA-F, after": Row(after, [10]),
        "FedDPA-T": Row(feddpa_t(fewer, work, a=0.5, **own, **two)),
        "FedSA": Row(fedsa(made, work, **common)),
        "FedPer": Row(fedper(made, work, personal="^full/", **common)),
        "Ditto": Row(ditto(made, work, lam=0.1, **two)),
    }


def shapes(algorithm: Algorithm, examples: Mapping[str, Any]) -> tuple[Any, Cohort]:
    """(server, cohort) of one round, nothing of which is made."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    server = jax.eval_shape(algorithm.init, key)
    state = jax.eval_shape(
        lambda server, key: jax.tree.map(
            lambda x: jnp.broadcast_to(x, (CLIENTS, *x.shape)), algorithm.init_client(server, key)
        ),
        server,
        key,
    )
    number, share = (jax.ShapeDtypeStruct((CLIENTS,), t) for t in (jnp.int32, jnp.float32))
    keys = jax.eval_shape(lambda key: jax.random.split(key, CLIENTS), key)
    now = jax.ShapeDtypeStruct((), jnp.int32)
    data = Data(dict(examples), number, EXAMPLES)
    return server, Cohort(state, data, number, share, keys, number, now, key)


def count(row: Row, examples: Mapping[str, Any]) -> dict[str, float]:
    """{"round": FLOPs, "server": of these the server's, "up": bytes of a client, "unbounded"}."""
    sent = []

    def watched(server, cohort, for_each_client):
        def noting(*call):
            reply = for_each_client(*call)
            sent.append(trees.nbytes(reply.upload) // CLIENTS)
            return reply

        return row.algorithm.run_round(server, cohort, noting)

    given, each = shapes(row.algorithm, examples), np.full(len(row.rounds), EXAMPLES)
    noted = row.algorithm._replace(run_round=watched)
    found = flops.counted_round(noted, *given, each, np.array(row.rounds))
    client, rest = (row.times * float(np.mean(part.flops)) for part in found)
    return {
        "round": CLIENTS * client + rest,
        "server": rest,
        "up": row.times * sum(sent),
        "unbounded": found.client.unbounded + found.server.unbounded,
    }


def one_by_one(made: Task, examples: Mapping[str, Any]) -> float:
    """One local step's derivatives in PF2LoRA's formula, nothing being shared between the three.

    FLOPs over those of HOMLoRA's gradient.
    """
    base, x = jax.eval_shape(made.init, jax.eval_shape(lambda: jax.random.key(0)))
    key = jax.eval_shape(lambda: jax.random.key(0))
    y = jax.eval_shape(lambda f, key: lowrank.beside(f, 2, key, alpha=2.0), x.factors, key)
    batch = {n: jax.ShapeDtypeStruct((BATCH, *s.shape[1:]), s.dtype) for n, s in examples.items()}
    batch |= {"mask": jax.ShapeDtypeStruct((BATCH,), jnp.float32)}

    def loss(base, batch, key, x, y):
        return made.loss(base, lowrank.joined(x, y), batch, key)

    def cross(base, batch, key, x, y, v):
        return hypergrad.mixed(lambda x, y: loss(base, batch, key, x, y), x, y, v)

    given = base, batch, key, x, y
    lower = flops.counted(jax.grad(loss, 4), *given)
    upper = flops.counted(jax.value_and_grad(loss, (3, 4)), *given)
    mixed = flops.counted(cross, *given, y)
    plain = flops.counted(
        jax.grad(lambda base, batch, key, x: made.loss(base, x, batch, key), 3), *given[:4]
    )
    return (lower.flops + upper.flops + mixed.flops) / plain.flops


def compiled(name: str) -> tuple[float, float]:
    """(ours, XLA's of the compiled program): FLOPs of one local step on W4's encoder."""
    method, examples = hypergrad_cost.METHODS[name], workloads.arrays("W4", clients=1).examples
    made = hypergrad_cost.classifier(method, examples)
    program, _ = hypergrad_cost.local_step(method, made, examples)
    algorithm = hypergrad_cost.algorithm(method, made)
    batch = hypergrad_cost.W4.batch
    part = flops.counted_round(
        algorithm,
        *shapes(algorithm, trees.shapes(examples)),
        np.array([2 * batch, batch]),
        np.zeros(2, int),
    ).client.flops
    return float(part[0] - part[1]), program.cost_analysis()["flops"]


# ---------------------------------------------------------------------- the page


def table(counts: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Markdown: a row for each algorithm, three columns for each model."""
    head = ["", *(f"{m}: {what}" for m in counts for what in ("GFLOP a round", "ratio", "kB up"))]
    lines = [head, ["---"] * len(head)]
    for name in next(iter(counts.values())):
        cells = [name]
        for found in counts.values():
            cost, against = found[name]["round"], found[AGAINST]["round"]
            cells += [f"{cost / 1e9:,.3g}" if cost < 1e12 else f"{cost / 1e9:,.0f}"]
            cells += [f"{cost / against:.2f}", f"{found[name]['up'] / 1e3:,.0f}"]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def beside(counts: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown: the paper's costs and ours."""
    lines = [
        "| | paper, TFLOP a round | ratio | ours, TFLOP a round | ratio |",
        "| --- | --- | --- | --- | --- |",
    ]
    theirs, ours = PAPER["HOMLoRA"][0], counts[AGAINST]["round"]
    for name, (cost, mine) in PAPER.items():
        found = counts[mine]["round"]
        lines.append(
            f"| {name} | {cost:.1f} | {cost / theirs:.2f} | {found / 1e12:.1f} "
            f"| {found / ours:.2f} |"
        )
    return "\n".join(lines)


def found(kept: Mapping[str, Any]) -> str:
    """What the paper's table and ours say together."""
    counts, apart = kept["counts"]["RoBERTa-base"], kept["one_by_one"]

    def ratio(name: str) -> float:
        return counts[name]["round"] / counts[AGAINST]["round"]

    theirs = {name: cost / PAPER["HOMLoRA"][0] for name, (cost, _) in PAPER.items()}
    ours, fresh = ratio(TARGET), ratio("Per-FedAvg, exact, three minibatches")
    side = "below" if ours < theirs["PF2LoRA"] else "not below"
    return (
        f"PF2LoRA's round costs {ours:.2f} times HOMLoRA's here, which is {side} the paper's "
        f"{theirs['PF2LoRA']:.2f}. Its local step has two gradients and a mixed second derivative. "
        "Our one_step linearises the gradient at y once, for the lower step and for the second "
        f"derivative. The three on their own, with nothing shared, are {apart:.2f} times HOMLoRA's "
        "gradient. How the paper counts, its pages do not tell. Per-FedAvg on one minibatch is "
        f"{ratio('Per-FedAvg, exact'):.2f} here, as the gradient at w is also part of the product "
        f"with the Hessian there, and {fresh:.2f} on three fresh minibatches; the paper has "
        f"{theirs['Per-FedAvg-LoRA']:.2f}. HETLoRA's ranks are masks here, so each client pays for "
        f"the largest, 12: {ratio('HETLoRA'):.3f} against the paper's {theirs['HETLoRA']:.3f}. "
        f"Without the cross term PF2LoRA costs {ratio('PF2LoRA without the cross term'):.2f}, with "
        f"both levels at once {ratio('PF2LoRA all at once'):.2f}."
    )


def checked(check: Mapping[str, tuple[float, float]]) -> str:
    """One local step as we count it, and as XLA counts what it has compiled."""
    lines = ["| | ours, GFLOP | compiled, GFLOP |", "| --- | --- | --- |"]
    lines += [f"| {n} | {ours / 1e9:.3f} | {xla / 1e9:.3f} |" for n, (ours, xla) in check.items()]
    ours, xla = (
        check[hypergrad_cost.TARGET][i] / check[hypergrad_cost.AGAINST][i] for i in range(2)
    )
    off = max(abs(a / b - 1) for a, b in check.values())
    lines += [
        "",
        f"PF2LoRA over HOMLoRA: {ours:.3f} as we count, {xla:.3f} in the compiled program. The two "
        f"counts of a step differ by {off:.2%} at most.",
    ]
    return "\n".join(lines)


def page(kept: Mapping[str, Any]) -> str:
    lines = {"command": kept["command"], **kept["settings"], **kept["machine"]}
    return "\n\n".join(
        [
            timing.listed(lines),
            "FLOPs of a round as jaxfed/simulation/flops.py counts them, which is what `jaxfed "
            "describe` prints: all clients' local work and the server's part. Shapes only; no "
            f"weight is made and nothing is random. `ratio` is to {AGAINST}. The paper states "
            "neither its batch nor its length of texts, so that only ratios can be compared, in "
            "which most of that cancels. As in our encoder, the last layer is computed at the "
            "first position only. `kB up` is what a client sends in a round (HETLoRA and mFedLoRU: "
            "at the largest rank; centralised: gradients of 10 steps). FedLoRU and its kin: the "
            "mean of 10 rounds, of which one merges. Where clients train two adapters in turn, or "
            "a model of their own, they make 10 steps on each.",
            table(kept["counts"]),
            "## RoBERTa-base, beside the paper's table (arXiv 2503.03920, in its reviews)",
            beside(kept["counts"]["RoBERTa-base"]),
            found(kept),
            "## Against XLA's count of a compiled local step (W4's encoder, batch 8)",
            checked(kept["check"]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--write", action="store_true", help="keep what is counted, and go on")
    asked = parser.parse_args()
    path, kept = RESULTS / "flops.json", new()
    if asked.write and path.exists():
        before = json.loads(path.read_text())
        if before["settings"] != kept["settings"]:
            raise SystemExit(
                f"{path} is of {before['settings']}, not {kept['settings']}; remove it"
            )
        kept = before
    for part in counting(kept, asked.models):
        print(part, flush=True)
        if asked.write:
            path.write_text(json.dumps(kept, indent=1) + "\n")
    text = page(kept) + "\n" if asked.models == list(MODELS) else table(kept["counts"])
    print(text)
    if asked.write and asked.models == list(MODELS):
        path.with_suffix(".md").write_text(text)


def new() -> dict[str, Any]:
    sizes = {"clients": CLIENTS, "local_steps": STEPS, "batch_size": BATCH, "tokens": TOKENS}
    start = {"machine": timing.machine(), "command": timing.command(), "settings": sizes}
    return {**start, "counts": {}, "check": {}}


def counting(kept: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    """Adds what is not there yet, and yields a line for each part as it is done."""
    for name in names:
        model, done = MODELS[name](), kept["counts"].setdefault(name, {})
        for method, row in rows(model.task).items():
            if method not in done:
                done[method] = count(row, model.examples)
                yield f"{name}: {method} {done[method]}"
    if list(names) != list(MODELS):
        return
    if "one_by_one" not in kept:
        kept["one_by_one"] = one_by_one(roberta().task(8), roberta().examples)
        yield f"one by one: {kept['one_by_one']}"
    for method in (hypergrad_cost.AGAINST, hypergrad_cost.TARGET):
        if method not in kept["check"]:
            kept["check"][method] = compiled(method)
            yield f"{method}: {kept['check'][method]}"


if __name__ == "__main__":
    main()
