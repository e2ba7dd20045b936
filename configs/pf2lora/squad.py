"""Any method of the zoo on SQuAD, with any BERT or RoBERTa of Hugging Face's format.

    jaxfed run configs/pf2lora/squad.py --model DIR --train train-v1.1.json --dev dev-v1.1.json
    python configs/pf2lora/squad.py RUN --model DIR --dev dev-v1.1.json

It needs `pip install 'jaxfed[text]'`.

The second command gives exact match and F1, in percent, of what each client's own model answers to
its own questions of the development set, or of the common model with --no-personal. For SQuAD 2.0
give its files; there "" is an answer, wherever it scores more than the best span, less --threshold.

What is known of the setting of arXiv 2503.03920: RoBERTa-large or DeBERTa, 4 clients, all of them
in every round, r = 8 and r~ = 2 on query and value, 10 local steps between averages, AdamW above
and SGD below. Its rounds, rates and batches on SQuAD are not, so those of its runs on GLUE stand
here; windows of 384 tokens that share 128, questions of 64 and answers of 30 are BERT's. Articles
are split as GLUE's labels are: a share s of each is dealt at random, the rest sorted by article.

This is work for a GPU; --max-length, --batch-size and --rounds make it smaller.
"""

import json
from typing import Annotated

import numpy as np
import tyro

import jaxfed
from jaxfed import Experiment, local, lowrank, models, pretrained, tasks, trees
from jaxfed.algorithms import row, zoo
from jaxfed.data import Source, federate, partition, squad

BODY = ("head", "pooler")  # what of a checkpoint is not the encoder's body


def experiment(
    model: str = "roberta-large",
    train: str = "train-v1.1.json",
    dev: str = "dev-v1.1.json",
    method: str = "pf2lora",
    clients: int = 4,
    similarity: float = 0.3,
    rounds: int = 100,
    local_steps: int = 10,
    batch_size: int = 16,
    rank: int = 8,
    personal_rank: int = 2,
    merge_every: int = 20,
    learning_rate: float = 1e-3,
    personal_learning_rate: float = 1e-3,
    weight_decay: float = 0.01,
    max_length: int = 384,
    shared: int = 128,
    evaluate_every: int = 10,
    evaluate_batch: int = 64,
    seed: int = 0,
) -> Experiment:
    """One method on SQuAD.

    Args:
        model: a folder of Hugging Face's format.
        train: SQuAD's file of training questions.
        dev: its file of development questions, which are the test set.
        method: the name of a row of the zoo that may begin at given weights (`jaxfed zoo`).
        clients: how many there are; all take part in every round.
        similarity: share of questions dealt at random, the others being sorted by article.
        rounds: how many averages.
        local_steps: between two averages.
        batch_size: windows of a local step.
        rank: of the common factors on query and value.
        personal_rank: of the factors that a client keeps.
        merge_every: rounds between the merges of FedLoRU and of other rows that merge.
        learning_rate: of AdamW; of SGD in rows that have no other.
        personal_learning_rate: of a client's own part, of pf2lora by SGD.
        weight_decay: of AdamW.
        max_length: tokens of a window.
        shared: tokens of context that neighbouring windows share.
        evaluate_every: rounds between evaluations.
        evaluate_batch: windows at once.
        seed: decides the split, the head, the factors and who sees what in which order.
    """
    chosen = zoo.fine_tuning(method)
    encoder, params = pretrained.read(model)
    body = {p: w for p, w in trees.by_path(params).items() if not p.startswith(BODY)}
    source, parts = [], []
    for path in (train, dev):
        questions, windows = windowed(model, encoder, path, max_length, shared)
        number = np.arange(len(windows.question), dtype=np.int32)
        source.append({**windows.examples, "window": number})
        owned = divided(questions["title"], clients, similarity, seed)
        parts.append([np.flatnonzero(np.isin(windows.question, part)) for part in owned])
    source = Source(*source)
    task = tasks.answer_span(
        models.Span(encoder),
        source.test,
        params=body,
        select=lowrank.Select(factors="query|value", full="^head_span", rank=rank),
    )
    setting = row.Setting.of_adamw(
        local.Work(batch_size, steps=local_steps),
        learning_rate,
        clients=clients,
        weight_decay=weight_decay,
        rank=rank,
        rounds=rounds,
        personal_rank=personal_rank,
        personal_rate=personal_learning_rate,
        merge_every=merge_every,
        personal="head_span",
    )
    return Experiment(
        federate(source, parts[0], personal_parts=parts[1]),
        chosen.make(task, setting),
        rounds=rounds,
        cohort=clients,
        seed=seed,
        evaluate_every=evaluate_every,
        evaluate_batch=evaluate_batch,
    )


def windowed(
    model: str, encoder: models.Encoder, path: str, max_length: int, shared: int
) -> tuple[dict, squad.Windows]:
    """(questions, windows) of a file of SQuAD."""
    questions = squad.read(path)
    words = pretrained.tokenizer(model)
    return questions, squad.windows(
        questions, words, pad=encoder.pad, max_length=max_length, shared=shared
    )


def divided(titles: np.ndarray, clients: int, similarity: float, seed: int) -> list[np.ndarray]:
    """Rows of questions by client, similar as in GLUE, by article."""
    _, article = np.unique(titles.astype(str), return_inverse=True)
    return partition.label_similarity(article, clients, s=similarity, seed=seed)


def scored(
    directory: Annotated[str, tyro.conf.Positional],
    model: str,
    dev: str,
    max_length: int = 384,
    shared: int = 128,
    threshold: float = 0.0,
    personal: bool = True,
) -> dict[str, float]:
    """{"exact", "f1"} of a run's answers to the development questions, in percent.

    Args:
        directory: of the run.
        model: the folder that the run started from.
        dev: the file of development questions.
        max_length: that of the run.
        shared: that of the run.
        threshold: by how much no answer must score more than the best span, in SQuAD 2.0.
        personal: whether each client's own model answers its questions, or the common one all.
    """
    run = jaxfed.load(directory)
    encoder, _ = pretrained.read(model)
    questions, windows = windowed(model, encoder, dev, max_length, shared)
    own = run.experiment.data.personal
    if own.examples["tokens"].shape != windows.examples["tokens"].shape:
        raise ValueError(
            f"{dev} makes windows {windows.examples['tokens'].shape}, and the run has "
            f"{own.examples['tokens'].shape}; give the run's own --dev, --max-length and --shared"
        )
    logits = np.zeros(windows.offsets.shape)
    for client, (begin, count) in enumerate(zip(own.start, own.count, strict=True)):
        rows = slice(begin, begin + count)
        inputs = {name: x[rows] for name, x in own.examples.items()}
        logits[inputs["window"]] = run.predict(inputs, client if personal else None)
    found = squad.answers(logits, windows, questions)
    possible = all(len(texts) for texts in questions["answers"])  # as in SQuAD 1.1
    texts = found.texts if possible else found.unless(threshold)
    return tasks.scores.squad(texts, list(questions["answers"]))


if __name__ == "__main__":
    print(json.dumps(tyro.cli(scored)))
