"""FedPETuning's five arms, and PFTT, on a text encoder.

    jaxfed run configs/zoo/text.py --method fedlr [--model DIR --data-dir DIR --task sst2]

The methods differ in what of the encoder is trained, beside the head: all of it (fedft), biases
(fedbf), low-rank factors on query and value (fedlr), bottleneck adapters (fedap), prefixes (fedpf),
or adapters that are averaged and factors that stay with their client (pftt).

It needs `pip install 'jaxfed[text]'`. With `--model`, a folder of a BERT or RoBERTa in Hugging
Face's format, this is the protocol of FedPETuning (Zhang et al., Findings of ACL 2023) as its code
has it: 100 clients, 10 a round, 100 rounds of one epoch, Dirichlet(1), batches of 32, the federated
learning rates in RATES. Its table for RoBERTa-base and FedLR: MNLI 84.9, SST-2 93.6, QQP 87.4, QNLI
90.8. AdamW has its weight decay; its warm-up is left out. PFTT (arXiv 2404.13238) has the rate of
the adapters.

Without `--model`, a small random encoder learns which of two words is in a made-up sentence,
in 30 rounds; a run takes less than a minute on 2 cores.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import optax

from jaxfed import Experiment, local, models, pretrained, tasks
from jaxfed.algorithms import fedavg, fedper, zoo
from jaxfed.data import Source, federate, glue, partition, text

Method = Literal["fedft", "fedbf", "fedlr", "fedap", "fedpf", "pftt"]
RATES = {"fedft": 5e-5, "fedbf": 1e-3, "fedlr": 1e-3, "fedap": 1e-3, "fedpf": 1e-3, "pftt": 1e-3}
QUICK_RATE = 1e-2


def experiment(
    method: Method = "fedlr",
    model: str | None = None,
    data_dir: str = "~/tensorflow_datasets",
    task: Literal["cola", "sst2", "mnli", "qqp", "qnli"] = "sst2",
    clients: int = 100,
    cohort: int = 10,
    rounds: int | None = None,
    concentration: float = 1.0,
    batch_size: int = 32,
    epochs: int = 1,
    rank: int = 8,
    adapter: int = 64,
    prefix: int = 16,
    learning_rate: float | None = None,
    weight_decay: float = 0.1,
    max_length: int = 128,
    evaluate_every: int = 10,
    seed: int = 42,
) -> Experiment:
    """One arm on one task.

    Args:
        method: what is trained and sent.
        model: a folder with config.json, model.safetensors and tokenizer.json; None for the small
            encoder and made-up sentences.
        data_dir: the folder of GLUE's files, or of the sets as TFDS prepares them.
        task: of GLUE.
        clients: how many share the training examples.
        cohort: clients a round.
        rounds: how many to run; by default 100, of the small encoder 30.
        concentration: of the Dirichlet split over labels; small is uneven.
        batch_size: of a local step.
        epochs: of a client over its own examples in a round.
        rank: of the factors; alpha is the same.
        adapter: width of the bottlenecks; FedPETuning searches 16 and 64.
        prefix: trained keys and values in each layer; FedPETuning searches 8, 16 and 64.
        learning_rate: of AdamW; by default the method's in RATES, of the small encoder QUICK_RATE.
        weight_decay: of AdamW.
        max_length: tokens of a text, above which it is cut.
        evaluate_every: rounds from one evaluation to the next.
        seed: decides everything random.
    """
    if model is None:
        encoder, params, source = small(), None, Source(sentences(2000, 0), sentences(400, 1))
    else:
        encoder, params = pretrained.read(model, classes=len(glue.TASKS[task].classes))
        source = tokenised(model, encoder, data_dir, task, max_length)
    encoder = encoder.clone(
        adapter=adapter if method in ("fedap", "pftt") else 0,
        prefix=prefix if method == "fedpf" else 0,
    )
    classifier = tasks.classification(
        encoder,
        source.test,
        params=params,
        select=zoo.on_encoder(method).select(
            factors="query|value",
            full="adapter|^head" if method == "pftt" else "^head",
            rank=rank,
            alpha=float(rank),
        ),
        inputs=("tokens", "types"),
    )
    default = QUICK_RATE if model is None else RATES[method]
    rate = default if learning_rate is None else learning_rate
    adamw = optax.adamw(rate, weight_decay=weight_decay)
    work = local.Work(batch_size, epochs=epochs)
    if method == "pftt":
        algorithm = fedper(
            classifier, work, personal="^factors/", common_start=True, client_optimizer=adamw
        )
    else:
        algorithm = fedavg(classifier, work, client_optimizer=adamw)
    parts = partition.dirichlet(
        source.train["label"], clients, concentration=concentration, seed=seed
    )
    short = 30 if model is None else 100
    return Experiment(
        federate(source, parts, personal_fraction=0.2, seed=seed),
        algorithm,
        rounds=short if rounds is None else rounds,
        cohort=cohort,
        seed=seed,
        evaluate_every=evaluate_every,
    )


def tokenised(
    model: str, encoder: models.Encoder, data_dir: str, task: str, max_length: int
) -> Source:
    """GLUE's texts in the model's tokens."""
    files = (Path(data_dir).expanduser() / glue.TASKS[task].folder).is_dir()
    strings = (glue.tsv if files else glue.tfds)(task, data_dir)
    words = pretrained.tokenizer(model)
    return Source(
        *(text.tokenise(part, words, pad=encoder.pad, max_length=max_length) for part in strings)
    )


def small() -> models.Encoder:
    """Two layers of width 32 for 16 words."""
    return models.Encoder(
        vocabulary=16, width=32, depth=2, heads=4, feedforward=64, positions=16, classes=2
    )


def sentences(count: int, seed: int) -> dict[str, np.ndarray]:
    """Sentences of 11 words from 1 to 15; label i has word 2 + i three times."""
    rng = np.random.default_rng(seed)
    label = (np.arange(count) % 2).astype(np.int32)
    words = rng.integers(4, 16, (count, 11))
    for row, which in zip(words, label, strict=True):
        row[rng.permutation(11)[:3]] = 2 + which
    tokens = np.concatenate([np.ones((count, 1)), words], axis=1).astype(np.int32)  # 1 begins
    return {"tokens": tokens, "types": np.zeros_like(tokens), "label": label}
