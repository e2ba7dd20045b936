"""A small pretrained decoder on Shakespeare's speeches, with one client for each speaker.

    jaxfed run configs/fedloru/speakers.py --model DIR --speeches plays.jsonl.gz [--method fedloru]

It needs `pip install 'jaxfed[text]'`.

`--model` is a folder with llama2.c's files, such as stories260K.bin and tok512.bin, or one of
Hugging Face's format with config.json, model.safetensors and tokenizer.json (GPT-2, Llama, Mistral,
Qwen2, Qwen3, SmolLM). `--speeches` has one JSON object a line with "play", "speaker" and "text". A
client is a speaker of a play with ten speeches or more, a fifth of which are held out: in the
records, "personal/perplexity" is of each client's model on its own held-out speeches, "perplexity"
of the common model on those of all clients. 37 plays have 623 such speakers.

With stories260K the defaults take about a minute on 2 cores.
"""

from typing import Literal

import numpy as np
import optax

from jaxfed import Algorithm, Experiment, local, lowrank, pretrained, tasks
from jaxfed.algorithms import ditto, fedavg, fedlora, fedloru, fedsa, pf2lora
from jaxfed.data import Federated, federate, nlg, partition, sources
from jaxfed.lowrank import restarts, rules

Method = Literal["fedlora", "fedloru", "pf2lora", "fedsa", "ffa", "fedex", "alone", "full"]


def experiment(
    model: str = "stories260K",
    speeches: str = "plays.jsonl.gz",
    method: Method = "fedlora",
    base: Literal["float", "int8", "int4"] = "float",
    clients: int = 20,
    cohort: int = 5,
    least: int = 10,
    rounds: int = 12,
    local_steps: int = 5,
    batch_size: int = 8,
    max_length: int = 32,
    rank: int = 4,
    personal_rank: int = 2,
    every: int = 4,
    scale: float = 2.0,
    learning_rate: float = 3e-3,
    personal_learning_rate: float = 1e-2,
    end: str = "</s>",
    evaluate_every: int = 12,
    seed: int = 0,
) -> Experiment:
    """One method on speeches by speaker.

    Args:
        model: a folder of llama2.c's files, or of Hugging Face's.
        speeches: a file of JSON lines, plain or .gz.
        method: full trains all weights; alone is each speaker by itself.
        base: how the frozen kernels are stored.
        clients: speakers, drawn from those with enough speeches.
        cohort: of them in each round.
        least: speeches of a speaker that takes part.
        rounds: how many rounds to run.
        local_steps: of a client in a round.
        batch_size: speeches of a local step.
        max_length: tokens at which a speech is cut.
        rank: of the factors on queries and values.
        personal_rank: of the factors that a client keeps (pf2lora).
        every: rounds between merges (fedloru).
        scale: of low-rank terms, alpha / rank.
        learning_rate: of AdamW.
        personal_learning_rate: of SGD on a client's own factors (pf2lora).
        end: the token that ends a text, by its name in the tokenizer.
        evaluate_every: rounds between evaluations.
        seed: decides the speakers, what is held out, the factors and the order of speeches.
    """
    decoder, params, tokenizer = pretrained.decoder_with_tokenizer(model, base=base)
    ending = nlg.ending(tokenizer, end)
    lines = nlg.jsonl(speeches, ("play", "speaker", "text"))
    keys = np.array(
        [" / ".join(pair) for pair in zip(lines["play"], lines["speaker"], strict=True)]
    )
    rows = drawn(keys, clients, least, seed)
    encoded = nlg.prompted(
        {"text": lines["text"][rows], "row": rows}, tokenizer, end=ending, max_length=max_length
    )
    data = divided(encoded, keys[encoded.pop("row")], seed)
    task = tasks.next_token(
        decoder,
        data.test,
        params=params,
        select=lowrank.everything
        if method == "full"
        else lowrank.Select(factors="query|value", rank=rank, alpha=scale * rank),
    )
    algorithm = trained(
        method,
        task,
        local.Work(batch_size, steps=local_steps),
        optax.adamw(learning_rate),
        cohort=cohort,
        every=every,
        personal_rank=personal_rank,
        personal_rate=personal_learning_rate,
        scale=scale,
    )
    return Experiment(
        data, algorithm, rounds=rounds, cohort=cohort, seed=seed, evaluate_every=evaluate_every
    )


def drawn(keys: np.ndarray, clients: int, least: int, seed: int) -> np.ndarray:
    """The rows of so many speakers, drawn from those with at least so many."""
    names, count = np.unique(keys, return_counts=True)
    enough = names[count >= max(least, 2)]
    if len(enough) < clients:
        raise ValueError(
            f"{len(enough)} speakers have {least} speeches or more; use at most that many clients"
        )
    chosen = np.random.default_rng(seed).choice(enough, clients, replace=False)
    return np.flatnonzero(np.isin(keys, chosen))


def divided(encoded: sources.Examples, keys: np.ndarray, seed: int) -> Federated:
    """Speeches by speaker: a fifth of each speaker's, at least one, are test examples."""
    rng, held = np.random.default_rng([seed, 1]), np.zeros(len(keys), bool)
    for name in np.unique(keys):
        rows = rng.permutation(np.flatnonzero(keys == name))
        held[rows[: max(1, len(rows) // 5)]] = True
    train, test = ({n: x[part] for n, x in encoded.items()} for part in (~held, held))
    return federate(
        sources.arrays(train, test),
        partition.natural(keys[~held]),
        personal_parts=partition.natural(keys[held]),
    )


def trained(
    method: Method,
    task: tasks.Task,
    work: local.Work,
    adamw: optax.GradientTransformation,
    *,
    cohort: int,
    every: int,
    personal_rank: int,
    personal_rate: float,
    scale: float,
) -> Algorithm:
    """The algorithm of that name."""
    match method:
        case "fedlora" | "full":
            return fedavg(task, work, client_optimizer=adamw)
        case "fedloru":
            return fedloru(task, work, every=every, restart=restarts.reinit, client_optimizer=adamw)
        case "pf2lora":
            return pf2lora(
                task,
                work,
                rank=personal_rank,
                scale=scale,
                inner_rate=personal_rate,
                upper_optimizer=adamw,
                keep_moments=False,
                personal_head=False,
            )
        case "fedsa":
            return fedsa(task, work, client_optimizer=adamw, common_start=True)
        case "ffa":
            return fedlora(task, work, rule=rules.FFA, client_optimizer=adamw)
        case "fedex":
            return fedlora(task, work, rule=rules.FEDEX, client_optimizer=adamw, cohort_size=cohort)
        case "alone":  # the common model, which takes one step a round, is of no use to anybody
            step = local.Work(work.batch_size, steps=1)
            own = {"personal_optimizer": adamw, "personal_work": work}
            return ditto(task, step, lam=0.0, client_optimizer=adamw, **own)
