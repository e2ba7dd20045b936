"""PF2LoRA and its baselines on GLUE, with any BERT or RoBERTa of Hugging Face's format.

    jaxfed run configs/pf2lora/glue.py --model DIR --data-dir DIR [--task sst2] [--method homlora]

It needs `pip install 'jaxfed[text]'`.

`--model` is a folder with config.json, model.safetensors and tokenizer.json; `--data-dir` holds
GLUE's own files (DIR/CoLA/train.tsv or .tsv.gz, ...), or the sets as TFDS prepares them. The
defaults are the setting of arXiv 2503.03920 for RoBERTa-base, as far as its pages and reviews tell:
8 clients, all of them in every round, r = 8 and r~ = 2 on query and value, 10 local steps between
averages, and the rounds and learning rates below.

What they leave open is the same for all methods here, so that tables compare like with like: the
head is common (trained, sent and averaged, but in those methods whose point is a personal one:
fedsa, fedper, ditto); AdamW begins afresh in each round; batches are of 16; low-rank terms have
scale 1; and clients are similar to s = 0.3. Where the paper has no learning rate of a method, it is
that of PF2LoRA's common adapter. FedDPA (its T variant) and pFedLoRA train two adapters in turn, so
they make twice as many local steps.

This is work for a GPU. Two cores run MiniLM on short sentences, a few seconds a round:

    jaxfed run configs/pf2lora/glue.py --model DIR --data-dir DIR --task sst2 --max-length 16 \
        --longer drop --test-length 64 --batch-size 8 --rounds 8

and benchmarks/claims/results/glue_minilm.md has the table of such runs. The paper's results to
compare with (RoBERTa-base; CoLA by Matthews correlation, the others by accuracy, in percent, on
clients' own data): PF2LoRA 54.2 on CoLA, 92.1 MNLI, 95.9 SST-2, 94.0 QQP, 94.2 QNLI; HOMLoRA 50.8,
70.6, 92.5, 79.6, 85.5; pFedLoRA 49.1, 91.1, 94.7, 94.3, 93.4; FDLoRA 48.9, 78.1, 91.5, 86.7, 89.5;
FedDPA 46.9, 87.5, 93.7, 93.2, 95.2.
"""

import math
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import optax

from jaxfed import (
    Algorithm,
    Experiment,
    combine,
    hypergrad,
    local,
    lowrank,
    pretrained,
    tasks,
)
from jaxfed.algorithms import (
    centralised,
    ditto,
    fdlora,
    fedavg,
    fedper,
    fedsa,
    hetlora,
    perfedavg,
    pf2lora,
    pfedlora,
)
from jaxfed.algorithms.general.perfedavg import exact, same
from jaxfed.algorithms.personal.feddpa_t import feddpa_t
from jaxfed.data import Source, federate, glue, partition, text

TaskName = Literal["cola", "sst2", "mnli", "qqp", "qnli"]
Method = Literal[
    "pf2lora",
    "homlora",
    "hetlora",
    "perfedavg",
    "feddpa",
    "pfedlora",
    "fdlora",
    "fedsa",
    "fedper",
    "ditto",
    "alone",
    "centralised",
]

MEASURES = {"cola": (tasks.matthews,), "mnli": ()}  # of the others, F1
ROUNDS = {"cola": 50, "sst2": 100, "qnli": 100, "mnli": 300, "qqp": 300}
RANKS = {  # (common, personal) of the paper's tables; HETLoRA's clients have ranks from 8 to 12
    "hetlora": (12, 0),
    "feddpa": (5, 5),
    "pfedlora": (5, 5),
    "fdlora": (5, 5),
}
RATES = {  # (common, personal)
    "pf2lora": {"cola": (2e-3, 1e-4)},  # elsewhere 1e-3 for both
    "fdlora": {"mnli": (2e-3, 2e-3), "sst2": (2e-3, 2e-3), "qnli": (2e-3, 2e-3)},
    "feddpa": {
        "cola": (5e-3, 5e-3),
        "mnli": (5e-3, 1e-3),
        "sst2": (5e-3, 1e-3),
        "qqp": (5e-3, 5e-3),
        "qnli": (5e-3, 5e-3),
    },
    "pfedlora": {},
    "perfedavg": {"cola": (2e-3, 2e-3)},  # not the paper's: it does not give any
}


def rates(method: Method, task: TaskName) -> tuple[float, float]:
    """(common, personal) learning rates of a method on a task."""
    return RATES.get(method, RATES["pf2lora"]).get(task, (1e-3, 1e-3))


def experiment(
    model: str = "roberta-base",
    data_dir: str = "~/tensorflow_datasets",
    task: TaskName = "cola",
    method: Method = "pf2lora",
    clients: int = 8,
    split: Literal["similarity", "dirichlet"] = "similarity",
    similarity: float = 0.3,
    concentration: float = 0.5,
    rounds: int | None = None,
    local_steps: int = 10,
    batch_size: int = 16,
    rank: int | None = None,
    personal_rank: int | None = None,
    scale: float = 1.0,
    learning_rate: float | None = None,
    personal_learning_rate: float | None = None,
    weight_decay: float = 0.01,
    personal_head: bool = False,
    personal_optimizer: Literal["sgd", "adamw"] = "sgd",
    up: Literal["zero", "random"] = "zero",
    gradient: Literal["one_step", "alternating", "simultaneous"] = "one_step",
    keep_moments: bool = False,
    common_start: bool = True,
    deploy_steps: int = 0,
    max_length: int = 128,
    longer: Literal["cut", "drop"] = "cut",
    test_length: int = 128,
    evaluate_every: int = 10,
    evaluate_batch: int = 250,
    compute: Literal["float32", "bfloat16"] = "float32",
    remat: bool = False,
    scanned: bool = False,
    seed: int = 0,
) -> Experiment:
    """One method on one task of GLUE.

    Args:
        model: a folder of Hugging Face's format.
        data_dir: the folder of GLUE's TSV files, or TFDS's.
        task: of GLUE.
        method: what clients train and keep, and what the server does.
        clients: how many there are; all take part in every round.
        split: over clients; a client's test examples are split like its training examples.
        similarity: share of examples dealt at random, the others being sorted by label.
        concentration: of the Dirichlet split.
        rounds: how many averages; by default the paper's for the task.
        local_steps: between two averages.
        batch_size: of a local step.
        rank: of the common factors; by default 8, 12 for hetlora, 5 with a personal adapter of 5.
        personal_rank: of the factors that a client keeps; by default 2, or 5 beside 5.
        scale: of every low-rank term, alpha / rank.
        learning_rate: of AdamW on what is common; by default the paper's.
        personal_learning_rate: of a client's own part (by SGD in pf2lora and perfedavg).
        weight_decay: of AdamW.
        personal_head: whether clients keep heads of their own, which start alike (pf2lora; for
            homlora with such heads use fedper).
        personal_optimizer: of the personal factors (pf2lora); adamw has no cross term.
        up: how the personal up factors start (pf2lora); the paper does not say.
        gradient: of the common part (pf2lora); the others are the paper's ablations, without the
            cross term and with both levels at once.
        keep_moments: whether AdamW's moments stay on the client across averages (pf2lora,
            homlora and fedper).
        common_start: whether the parts that clients keep start alike (fedper and fedsa).
        deploy_steps: local steps of AdamW on its own training examples that a client makes before
            its model is scored; 0 for none.
        max_length: most tokens of a training example.
        longer: whether training examples with more are cut or dropped.
        test_length: test examples are cut at so many tokens.
        evaluate_every: rounds between evaluations.
        evaluate_batch: examples at once.
        compute: the type of frozen weights and of activations.
        remat: whether a layer keeps only its input for the gradient.
        scanned: whether layers are stacked, so that one is compiled; it draws other factors.
        seed: decides the split, the head, the factors and who sees what in which order.
    """
    narrow = jnp.bfloat16 if compute == "bfloat16" else None
    classes = len(glue.TASKS[task].classes)
    encoder, params = pretrained.read(model, classes, dtype=narrow, scanned=scanned)
    encoder = encoder.clone(compute=narrow, remat=remat)
    tokenizer = pretrained.tokenizer(model)
    files = (Path(data_dir).expanduser() / glue.TASKS[task].folder).is_dir()
    strings = (glue.tsv if files else glue.tfds)(task, data_dir)
    source = Source(
        text.tokenise(
            strings.train, tokenizer, pad=encoder.pad, max_length=max_length, longer=longer
        ),
        text.tokenise(strings.test, tokenizer, pad=encoder.pad, max_length=test_length),
    )
    parts, personal_parts = (
        partition.label_similarity(part["label"], clients, s=similarity, seed=seed)
        if split == "similarity"
        else partition.dirichlet(part["label"], clients, concentration=concentration, seed=seed)
        for part in source
    )
    common, personal = RANKS.get(method, (8, 2))
    rank = common if rank is None else rank
    classifier = tasks.classification(
        encoder,
        source.test,
        params=params,
        select=lowrank.Select(factors="query|value", full="^head", rank=rank, alpha=scale * rank),
        measures=MEASURES.get(task, (tasks.f1,)),
        inputs=("tokens", "types"),
    )
    pf2loras = {
        "personal_head": personal_head,
        "personal_optimizer": personal_optimizer != "sgd",
        "up": up != "zero",
        "gradient": gradient != "one_step",
    }
    if method != "pf2lora" and any(pf2loras.values()):
        asked = ", ".join(name for name, given in pf2loras.items() if given)
        raise ValueError(f"{asked}: options of pf2lora, not of {method}")
    rate, personal_rate = rates(method, task)
    rounds = ROUNDS[task] if rounds is None else rounds
    each = local_steps if method == "centralised" else 1  # its rounds are single steps
    return Experiment(
        federate(source, parts, personal_parts=personal_parts),
        _algorithm(
            method,
            classifier,
            local.Work(batch_size, steps=local_steps),
            rounds=rounds,
            rank=rank,
            personal_rank=personal if personal_rank is None else personal_rank,
            scale=scale,
            rate=rate if learning_rate is None else learning_rate,
            personal_rate=(
                personal_rate if personal_learning_rate is None else personal_learning_rate
            ),
            weight_decay=weight_decay,
            personal_head=personal_head,
            personal_optimizer=personal_optimizer,
            up=up,
            gradient=gradient,
            keep_moments=keep_moments,
            common_start=common_start,
            deploy_steps=deploy_steps,
            deploy_every=math.gcd(rounds, evaluate_every) * each,
        ),
        rounds=rounds * each,
        cohort=clients,
        seed=seed,
        evaluate_every=evaluate_every * each,
        evaluate_batch=evaluate_batch,
    )


def _algorithm(
    method: Method,
    classifier: tasks.Task,
    work: local.Work,
    *,
    rate: float,
    weight_decay: float,
    keep_moments: bool,
    deploy_steps: int,
    deploy_every: int,
    **options: Any,
) -> Algorithm:
    """The method or, after `deploy_steps` local steps, the method as clients deploy it."""
    if keep_moments and method not in ("pf2lora", "homlora", "fedper"):
        raise ValueError(f"keep_moments is for pf2lora, homlora and fedper, not for {method}")
    adamw = optax.adamw(rate, weight_decay=weight_decay)
    trained = _trained(
        method,
        classifier,
        work,
        adamw=adamw,
        weight_decay=weight_decay,
        keep_moments=keep_moments,
        **options,
    )
    if not deploy_steps:
        return trained
    steps = local.Work(work.batch_size, steps=deploy_steps)
    return combine.fine_tuned(trained, steps, optimizer=adamw, every=deploy_every)


def _trained(
    method: Method,
    classifier: tasks.Task,
    work: local.Work,
    *,
    adamw: optax.GradientTransformation,
    rounds: int,
    rank: int,
    personal_rank: int,
    scale: float,
    personal_rate: float,
    weight_decay: float,
    personal_head: bool,
    personal_optimizer: str,
    up: str,
    gradient: str,
    keep_moments: bool,
    common_start: bool,
) -> Algorithm:
    personal_adamw = optax.adamw(personal_rate, weight_decay=weight_decay)
    two = {"client_optimizer": adamw, "personal_optimizer": personal_adamw, "personal_work": work}
    own = {"rank": personal_rank, "alpha": scale * personal_rank}
    match method:
        case "pf2lora":
            below = (
                {"inner_rate": personal_rate, "gradient": getattr(hypergrad, gradient)}
                if personal_optimizer == "sgd"
                else {"personal_optimizer": personal_adamw}
            )
            return pf2lora(
                classifier,
                work,
                rank=personal_rank,
                scale=scale,
                up=up,
                **below,
                upper_optimizer=adamw,
                keep_moments=keep_moments,
                personal_head=personal_head,
            )
        case "homlora":
            return fedavg(classifier, work, client_optimizer=adamw, keep_moments=keep_moments)
        case "hetlora":
            return hetlora(
                classifier,
                work,
                least=min(8, rank),
                most=rank,
                gamma=0.99,
                penalty=0.01,
                client_optimizer=adamw,
            )
        case "perfedavg":
            return perfedavg(
                classifier,
                work,
                inner_rate=personal_rate,
                gradient=exact,
                minibatches=same,
                client_optimizer=adamw,
                personal_work=local.Work(work.batch_size, steps=1),
            )
        case "feddpa":
            return feddpa_t(classifier, work, a=0.5, **own, **two)
        case "pfedlora":
            return pfedlora(classifier, work, **own, **two)
        case "fdlora":
            return fdlora(
                classifier,
                work,
                rounds=rounds - 2,  # the first and the last are its other stages
                sync=10,
                personal_work=work,
                personal_optimizer=personal_adamw,
                inner_optimizer=adamw,
                outer_optimizer=optax.sgd(1.0),
                shots=work.batch_size,
                search=20,
            )
        case "fedsa":
            return fedsa(classifier, work, client_optimizer=adamw, common_start=common_start)
        case "fedper":
            return fedper(
                classifier,
                work,
                personal="^full/",
                client_optimizer=adamw,
                common_start=common_start,
                keep_moments=keep_moments,
            )
        case "ditto":
            return ditto(classifier, work, lam=0.1, **two)
        case "alone":  # the common model, which takes one step a round, is of no use to anybody
            step = local.Work(work.batch_size, steps=1)
            return ditto(classifier, step, lam=0.0, **two)
        case "centralised":
            return centralised(classifier, batch_size=work.batch_size, optimizer=adamw)
