"""FedLoRU on instructions: three low-rank updates, kept as a list beside an untouched LLaMA.

    jaxfed run configs/fedloru/instruct.py --model DIR --data alpaca.jsonl [--method fedlora]
    jaxfed describe configs/fedloru/instruct.py --model DIR --data alpaca.jsonl

It needs `pip install 'jaxfed[text]'`.

`--model` is a folder of Hugging Face's format, such as Llama 2 or 3, or of llama2.c's; `--data` has
one JSON object a line with "instruction", "input" (may be "") and "output". A tenth of the rows is
the test set. `--base int8` or `int4` stores the frozen kernels so; the list leaves them alone.

arXiv 2409.12371 fine-tunes a LLaMA so: FedLoRA stores 0.12 % of the model's parameters, and FedLoRU
0.36 %, three low-rank updates one after the other. With Llama-2-7B, rank 16 on queries and values
is 8,388,608 of 6,738,415,616 parameters, 0.124 %, and three of them are 0.373 %; `jaxfed describe`
prints both. The paper's rank, rates, rounds and clients are not known, so these are ours.
"""

from typing import Literal

import numpy as np
import optax

from jaxfed import Algorithm, Experiment, combine, local, lowrank, pretrained, tasks
from jaxfed.algorithms import fedavg
from jaxfed.data import federate, nlg, partition, sources


def experiment(
    model: str = "Llama-2-7b",
    data: str = "alpaca.jsonl",
    method: Literal["fedloru", "fedlora"] = "fedloru",
    base: Literal["float", "int8", "int4"] = "float",
    clients: int = 20,
    cohort: int = 5,
    rounds: int = 60,
    merges: int = 3,
    local_steps: int = 10,
    batch_size: int = 8,
    rank: int = 16,
    learning_rate: float = 3e-4,
    max_length: int = 256,
    end: str = "</s>",
    evaluate_every: int = 20,
    evaluate_batch: int = 32,
    seed: int = 0,
) -> Experiment:
    """One method on instructions.

    Args:
        model: a folder of Hugging Face's or of llama2.c's format.
        data: a file of JSON lines, plain or .gz.
        method: fedlora never merges.
        base: how the frozen kernels are stored.
        clients: how many share the training rows, at random.
        cohort: of them in each round.
        rounds: how many to run.
        merges: how many updates join the list, after equally many rounds each.
        local_steps: of a client in a round.
        batch_size: rows of a local step.
        rank: of the factors on queries and values.
        learning_rate: of AdamW.
        max_length: tokens at which an instruction and its response are cut.
        end: the token that ends a response, by its name in the tokenizer.
        evaluate_every: rounds between evaluations.
        evaluate_batch: rows at once.
        seed: decides the split, the factors and who sees what in which order.
    """
    decoder, params, tokenizer = pretrained.decoder_with_tokenizer(model, base=base)
    ending = nlg.ending(tokenizer, end)
    encoded = nlg.prompted(worded(data), tokenizer, end=ending, max_length=max_length)
    order = np.random.default_rng(seed).permutation(len(encoded["tokens"]))
    test = order[: max(1, len(order) // 10)]
    source = sources.arrays(
        *({name: x[rows] for name, x in encoded.items()} for rows in (order[len(test) :], test))
    )
    task = tasks.next_token(decoder, source.test, params=params, select=factors(rank))
    return Experiment(
        federate(source, partition.iid(len(source.train["tokens"]), clients, seed=seed)),
        algorithm(
            task,
            local.Work(batch_size, steps=local_steps),
            optax.adamw(learning_rate),
            merges=merges if method == "fedloru" else 0,
            every=max(1, rounds // max(1, merges)),
        ),
        rounds=rounds,
        cohort=cohort,
        seed=seed,
        evaluate_every=evaluate_every,
        evaluate_batch=evaluate_batch,
    )


def factors(rank: int) -> lowrank.Select:
    """Of queries and values, with a scale of 1."""
    return lowrank.Select(factors="query|value", rank=rank)


def algorithm(
    task: tasks.Task,
    work: local.Work,
    adamw: optax.GradientTransformation,
    *,
    merges: int,
    every: int,
) -> Algorithm:
    """FedLoRU with a list of so many merges, or FedLoRA with none."""

    def fedlora(task: tasks.Task) -> Algorithm:
        return fedavg(task, work, client_optimizer=adamw)

    if not merges:
        return fedlora(task)
    return combine.accumulate_list(fedlora, task, every=every, merges=merges)


def worded(path: str) -> sources.Examples:
    """ "prompt" and "response" of a file of instructions."""
    lines = nlg.jsonl(path, ("instruction", "input", "output"))
    prompt = [
        f"### Instruction:\n{asked}\n\n" + (f"### Input:\n{given}\n\n" if given else "")
        for asked, given in zip(lines["instruction"], lines["input"], strict=True)
    ]
    return {
        "prompt": np.array([f"{one}### Response:\n" for one in prompt], object),
        "response": lines["output"],
    }
