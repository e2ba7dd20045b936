"""Any method of the zoo on any set of images, on an MLP, a CNN, a ResNet or a ViT.

    jaxfed run configs/images.py --data FOLDER [--size 32 --model cnn --method fedlora]

FOLDER holds a folder of image files for each class, or such folders under `train` and `test`, or
the published files of MNIST, Fashion-MNIST, CIFAR-10 or CIFAR-100; it may be an .npz file or the
archive of CIFAR as well (see jaxfed.data.pictures). Mean and standard deviation, shape and classes
are those of the training images. Without --data these are scikit-learn's digits.

Clients own images at random, by a Dirichlet distribution over labels; a tenth of them is their own
test set. `jaxfed zoo` lists the methods; constants such as FedProx's mu are the row's.
"""

from typing import Literal

from jaxfed import Experiment, local, models, tasks
from jaxfed.algorithms import row, zoo
from jaxfed.data import federate, images, partition, pictures, sources

Model = Literal["mlp", "cnn", "resnet", "vit"]
FACTORS = {
    "mlp": "dense.*kernel",
    "cnn": "(conv_1|dense_0)/kernel",
    "resnet": "layer.*kernel",
    "vit": "layer.*kernel",
}
FULL = {
    "mlp": "bias|head",
    "cnn": "conv_0|bias|head",
    "resnet": "stem|norm|head",
    "vit": "patches|first|position|norm|head|bias",
}


def experiment(
    data: str | None = None,
    size: int | None = None,
    model: Model = "cnn",
    patch: int = 4,
    method: str = "fedavg",
    clients: int = 100,
    cohort: int = 10,
    concentration: float = 0.5,
    rounds: int = 100,
    rank: int = 16,
    scale: float = 2.0,
    batch_size: int = 20,
    epochs: int = 1,
    learning_rate: float | None = None,
    seed: int = 0,
) -> Experiment:
    """One method on one set of images.

    Args:
        data: a folder of images, CIFAR's archive or an .npz file; by default scikit-learn's digits.
        size: height and width to which images are resized; by default all must have one size.
        model: which network: a hidden layer of 200, the FEMNIST CNN, a narrow ResNet-10, or a
            ViT of four layers.
        patch: height and width in pixels of the ViT's patches.
        method: the name of a row of the zoo.
        clients: how many share the training images.
        cohort: clients a round.
        concentration: of the Dirichlet split over labels; small is uneven.
        rounds: how many to run; methods with stages divide them.
        rank: of the factors; of mixed ranks the largest.
        scale: alpha / rank, the factor before the low-rank term.
        batch_size: of a local step.
        epochs: of a client over its own images in a round; one on a personal part.
        learning_rate: of the clients' SGD; by default 0.05, and 0.02 of FedLoRU and other methods
            that merge: with an MLP on Fashion-MNIST they diverge at 0.05.
        seed: decides the split, the initial weights, who is drawn and in which order.
    """
    one = zoo.named(method)
    source = sources.digits() if data is None else pictures.read(data, size=size).source
    labels = source.train["label"]
    classifier = tasks.classification(
        network(model, patch, int(labels.max()) + 1, running=one.trains == "norms"),
        source.test,
        select=one.select(factors=FACTORS[model], full=FULL[model], rank=rank, alpha=scale * rank),
        preprocess=images.standardise(source.train["image"]),
    )
    rate = (0.02 if one.merges else 0.05) if learning_rate is None else learning_rate
    setting = row.Setting(
        work=local.Work(batch_size, epochs=epochs),
        rate=rate,
        clients=clients,
        cohort=cohort,
        rank=rank,
        rounds=rounds,
        personal_work=local.Work(batch_size, epochs=1),
    )
    parts = partition.dirichlet(labels, clients, concentration=concentration, seed=seed, least=2)
    return Experiment(
        federate(source, parts, personal_fraction=0.1, seed=seed),
        one.make(classifier, setting),
        rounds=rounds,
        cohort=cohort,
        seed=seed,
    )


def network(
    model: Model, patch: int, classes: int, *, running: bool
) -> models.MLP | models.FemnistCNN | models.ResNet | models.ViT:
    """The network of this name, with batch norms if their statistics are `running`."""
    if model == "mlp":
        return models.MLP((200,), classes=classes, norm="running" if running else "none")
    if model == "resnet":
        return models.ResNet(
            (1, 1, 1, 1),
            classes=classes,
            widths=(16, 32, 64, 128),
            norm="running" if running else "group",
            groups=8,
        )
    if running:
        raise ValueError(f"the method keeps batch norms, which --model {model} has not; use resnet")
    if model == "vit":
        return models.ViT(patch, 64, 4, 4, 128, classes)
    return models.FemnistCNN(classes=classes)
