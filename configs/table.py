"""Any method of the zoo on any table: texts for a pretrained encoder, or numbers for an MLP.

    jaxfed run configs/table.py --data reviews.csv --text review --label stars --user customer \
        --model DIR
    jaxfed run configs/table.py --data sensors.parquet --label state

Files are .csv, .tsv, .jsonl or .parquet (see jaxfed.data.tables). With --text, --model is a folder
of a BERT or RoBERTa in Hugging Face's format, whose tokenizer cuts the texts; otherwise all columns
but label and user are numbers, and their mean and standard deviation in the training rows are
taken out. Classes, widths and the longest text are the training rows' as well. Texts need `pip
install 'jaxfed[text]'`.

With --user, each user is a client with training and test rows of its own; without, clients own rows
at random, by a Dirichlet distribution over labels. Without --test, a fifth of each user's rows is
the test set. `jaxfed zoo` lists the methods; constants such as FedProx's mu are the row's. An
encoder is trained by AdamW (SCAFFOLD makes its own steps), an MLP by SGD.
"""

from typing import Any, Literal

import optax

from jaxfed import Experiment, local, models, pretrained, tasks
from jaxfed.algorithms import row, zoo
from jaxfed.data import Federated, Source, federate, partition, sources, tables
from jaxfed.data.text import tokenise


def experiment(
    data: str | None = None,
    test: str | None = None,
    label: str = "label",
    text: str | None = None,
    pair: str | None = None,
    numbers: tuple[str, ...] | None = None,
    user: str | None = None,
    missing: Literal["refuse", "drop"] = "refuse",
    model: str | None = None,
    max_length: int | None = None,
    width: int = 64,
    method: str | None = None,
    clients: int = 20,
    cohort: int = 10,
    concentration: float = 0.5,
    rounds: int = 30,
    rank: int = 8,
    merge_every: int = 2,
    scale: float = 1.0,
    batch_size: int = 16,
    epochs: int = 1,
    learning_rate: float | None = None,
    seed: int = 0,
) -> Experiment:
    """One method on one table.

    Args:
        data: the file; by default scikit-learn's digits as a table of numbers.
        test: the file of the test rows; by default a fifth of `data`.
        label: the column of the classes.
        text: the column of texts.
        pair: the column of second texts.
        numbers: the columns of numbers; by default all others.
        user: the column of users, each of whom is a client.
        missing: what becomes of rows with an empty field: refuse, or drop.
        model: a folder with config.json, model.safetensors and tokenizer.json, for texts.
        max_length: tokens of a text, above which it is cut; by default those of the longest.
        width: of the MLP's hidden layer.
        method: the name of a row of the zoo; by default fedlora for texts, fedavg for numbers.
        clients: how many share the rows; users, if there is a column of them.
        cohort: clients a round; at most all.
        concentration: of the Dirichlet split over labels; small is uneven.
        rounds: how many to run; methods with stages divide them.
        rank: of the factors; of mixed ranks the largest.
        merge_every: rounds between the merges of FedLoRU and of other rows that merge.
        scale: alpha / rank, the factor before the low-rank term.
        batch_size: of a local step.
        epochs: of a client over its own rows in a round.
        learning_rate: of the clients' optimizer; by default 0.001 for texts, 0.05 for numbers.
        seed: decides the split, what is drawn, and in which order.
    """
    method = method or ("fedavg" if text is None else "fedlora")
    one = zoo.named(method)
    if text is not None and model is None:
        raise ValueError("--text needs --model, a folder of an encoder in Hugging Face's format")
    if text is not None and not one.fine_tunes:
        why = "trains from scratch" if one.trains == "scratch" else "needs batch norms"
        raise ValueError(f"{method} {why}; give a method that keeps the encoder")
    table = (
        digits()
        if data is None
        else tables.read(
            data,
            test,
            label=label,
            text=text,
            pair=pair,
            numbers=numbers,
            user=user,
            missing=missing,
            seed=seed,
        )
    )
    size = {"rank": rank, "alpha": scale * rank}
    if model is None:
        source = tables.standardise(table.source)
        select = one.select(factors="dense.*kernel", full="bias|head", **size)
        norm: Any = "running" if one.trains == "norms" else "none"
        network: Any = models.MLP((width,), classes=len(table.classes), norm=norm)
        params, inputs = None, ("x",)
    else:
        network, params = pretrained.read(model, classes=len(table.classes))
        source = tokenised(table.source, network, model, max_length)
        select = one.select(given=True, factors="query|value", full="^head", **size)
        inputs = ("tokens", "types")
    task = tasks.classification(
        network,
        source.test,
        params=params,
        select=select,
        inputs=inputs,
    )
    data_of = federated(table, source, clients, concentration, seed)
    default = 0.05 if model is None else 1e-3
    setting = row.Setting(
        work=local.Work(batch_size, epochs=epochs),
        rate=default if learning_rate is None else learning_rate,
        clients=data_of.clients,
        cohort=min(cohort, data_of.clients),
        rank=rank,
        rounds=rounds,
        merge_every=merge_every,
        update=optax.sgd if model is None else optax.adamw,
    )
    return Experiment(
        data_of, one.make(task, setting), rounds=rounds, cohort=setting.cohort, seed=seed
    )


def tokenised(
    source: Source, encoder: models.Encoder, folder: str, max_length: int | None
) -> Source:
    """The texts in the tokens of the folder's tokenizer, as long as the longest in training."""
    first = (encoder.pad or 0) + 1 if encoder.counted else 0
    most = encoder.positions - first if max_length is None else max_length
    words, pad = pretrained.tokenizer(folder), encoder.pad or 0
    train = tokenise(source.train, words, pad=pad, max_length=most, keep=True)
    longest = train["tokens"].shape[1]
    return Source(train, tokenise(source.test, words, pad=pad, max_length=longest, keep=True))


def federated(
    table: tables.Table, source: Source, clients: int, concentration: float, seed: int
) -> Federated:
    """A client for each user with its own test rows, or clients that own rows at random."""
    if table.users is not None:
        return federate(source, table.parts, personal_parts=table.personal_parts, seed=seed)
    labels = source.train["label"]
    parts = partition.dirichlet(labels, clients, concentration=concentration, seed=seed, least=2)
    return federate(source, parts, personal_fraction=0.1, seed=seed)


def digits() -> tables.Table:
    """scikit-learn's digits as rows of 64 numbers."""
    source = sources.digits()
    rows = ({"x": part["image"].reshape(-1, 64), "label": part["label"]} for part in source)
    return tables.Table(Source(*rows), tuple("0123456789"))
