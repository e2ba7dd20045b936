"""A task: a model, its loss, and what of it is trained."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxfed import lowrank
from jaxfed.algorithm import PyTree


def means(sums: Mapping[str, Any], count: Any) -> dict[str, Any]:
    """{name: sum / count}: what sums over examples say if they say no more than their means."""
    return {name: total / count for name, total in sums.items()}


class Task(NamedTuple):
    """Pure functions of the frozen part `base`, the trained part `theta`, and a batch.

    A batch is a dict of example arrays [B, ...] and `mask` [B], one for a real example.
    """

    init: Callable[[jax.Array], tuple[PyTree, PyTree]]
    """key -> (base, theta)."""

    loss: Callable[[PyTree, PyTree, dict, jax.Array], jax.Array]
    """(base, theta, batch, key) -> the mean loss over the batch's real examples."""

    evaluate: Callable[[PyTree, PyTree, dict], dict]
    """(base, theta, batch) -> {name: sum over the batch's real examples}."""

    check: Callable[[dict], None] = lambda examples: None
    """examples [n, ...] -> nothing; raises ValueError if they do not fit the model."""

    summary: Callable[[dict, Any], dict] = means
    """(what `evaluate` gave, added up over examples; how many) -> {name: number}.

    On the host; with leading axes [K] on both, of sums over K clients' examples, also on numbers.
    """


def classification(
    model: Any,
    examples: dict,
    *,
    select: lowrank.Select = lowrank.everything,
    params: PyTree | None = None,
    measures: Sequence[Callable[[np.ndarray], np.ndarray]] = (),
    preprocess: Callable | None = None,
    augment: Callable | None = None,
    dropout: float = 0.0,
    inputs: Sequence[str] = ("image",),
    label: str = "label",
) -> Task:
    """Cross-entropy and accuracy of a flax.linen model that maps inputs [B, ...] to logits [B, C].

    `examples` tells shapes, types and labels ({"image": [n, ...], "label": [n]}, say the test set).
    The model is called with the arrays named in `inputs`, in this order (such as "tokens" and
    "types"), with train=... and mask=... if it has such arguments, and with an rng "dropout" in
    training. Of the inputs, `preprocess(x, key)` is applied to the first always, `augment(x, key)`
    before it in training only, both inside the jitted round. `dropout` acts on the low-rank path.

    The model starts at `params`, as far as they go (pretrained ones, say, without the head); what
    they lack is drawn. `measures` are functions of the confusion matrix, such as `matthews` and
    `f1`, evaluated beside loss and accuracy under their own names. Raises ValueError if labels do
    not fit the model's outputs, `params` not its weights, or the selection does not fit.
    """
    accepted = inspect.signature(model.__call__).parameters
    given = {} if params is None else _flat(params)

    def arguments(batch, key):
        first, *others = (batch[name] for name in inputs)
        return (first if preprocess is None else preprocess(first, key), *others)

    def options(train: bool, mask: jax.Array) -> dict:
        return {n: v for n, v in (("train", train), ("mask", mask)) if n in accepted}

    def init(key):
        model_key, factor_key = jax.random.split(key)
        x = arguments({name: jnp.asarray(examples[name][:1]) for name in inputs}, key)
        params = _begun(model, model_key, x, given)
        return lowrank.split(params, lowrank.layers(model, *x), select, factor_key)

    def loss(base, theta, batch, key):
        augment_key, dropout_key, preprocess_key = jax.random.split(key, 3)
        if augment is not None:
            batch = {**batch, inputs[0]: augment(batch[inputs[0]], augment_key)}
        logits = lowrank.apply(
            model,
            base,
            theta,
            *arguments(batch, preprocess_key),
            dropout=dropout,
            key=dropout_key,
            rngs={"dropout": dropout_key},
            **options(True, batch["mask"]),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[label])  # [B]
        return jnp.sum(losses * batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1)

    def evaluate(base, theta, batch):
        x = arguments(batch, jax.random.key(0))
        logits = lowrank.apply(model, base, theta, *x, **options(False, batch["mask"]))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch[label])  # [B]
        said, mask = jnp.argmax(logits, axis=-1), batch["mask"]
        sums = {"loss": jnp.sum(losses * mask), "accuracy": jnp.sum((said == batch[label]) * mask)}
        if measures:
            truth, said = (jax.nn.one_hot(x, logits.shape[-1]) for x in (batch[label], said))
            sums["confusion"] = jnp.einsum("b,bt,bs->ts", mask, truth, said)  # [C, C]
        return sums

    def summary(sums, count):
        found = means({name: sums[name] for name in ("loss", "accuracy")}, count)
        return found | {measure.__name__: measure(sums["confusion"]) for measure in measures}

    def check(examples):
        def logits(batch, key):
            return model.init_with_output(key, *arguments(batch, key))[0]

        classes = _check(logits, examples, inputs, label)
        for measure in measures:
            measure(np.zeros((classes, classes)))  # raises ValueError if it is of fewer

    check(examples)
    jax.eval_shape(init, jax.random.key(0))  # raises ValueError if the selection does not fit
    return Task(init, loss, evaluate, check, summary)


def regression(
    model: Any,
    examples: dict,
    *,
    select: lowrank.Select = lowrank.everything,
    inputs: Sequence[str] = ("x",),
    target: str = "y",
) -> Task:
    """Least squares with a flax.linen model that maps inputs [B, ...] to predictions [B, n].

    The loss is 1/2 ||model(x) - y||^2, averaged over examples. `examples` tells shapes and types.
    Raises ValueError if the targets do not have the shape of the predictions, or the selection does
    not fit.
    """

    def init(key):
        model_key, factor_key = jax.random.split(key)
        x = [jnp.asarray(examples[name][:1]) for name in inputs]
        params = _begun(model, model_key, x, {})
        return lowrank.split(params, lowrank.layers(model, *x), select, factor_key)

    def halved_squares(base, theta, batch):
        """Their sum over the batch's real examples."""
        said = lowrank.apply(model, base, theta, *(batch[name] for name in inputs))
        return jnp.sum(jnp.sum((said - batch[target]) ** 2, axis=-1) * batch["mask"]) / 2

    def loss(base, theta, batch, key):
        return halved_squares(base, theta, batch) / jnp.maximum(jnp.sum(batch["mask"]), 1)

    def evaluate(base, theta, batch):
        return {"loss": halved_squares(base, theta, batch)}

    def check(examples):
        _complete(examples, inputs, target)
        x = [examples[name] for name in inputs]
        said, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), *x)
        if said.ndim != 2 or said.shape != np.shape(examples[target]):
            raise ValueError(
                f"regression wants predictions [B, n] and targets like them; got {said.shape} and "
                f"targets {np.shape(examples[target])}"
            )

    check(examples)
    jax.eval_shape(init, jax.random.key(0))  # raises ValueError if the selection does not fit
    return Task(init, loss, evaluate, check)


def matthews(confusion: np.ndarray) -> np.ndarray:
    """Matthews correlation of confusion matrices [..., truth, said] -> [...], from -1 to 1.

    (s c - sum_k t_k p_k) / sqrt((s^2 - sum_k t_k^2) (s^2 - sum_k p_k^2)) with s examples, c of them
    right, t_k of class k and p_k said to be (Gorodkin 2004, for any number of classes). It is zero
    by convention where only one class occurs or only one is said: so on a client whose examples
    all have one label it says nothing, and the union of clients' examples tells more.
    """
    m = np.asarray(confusion, np.float64)
    truth, said, total = m.sum(-1), m.sum(-2), m.sum((-1, -2))
    above = total * np.trace(m, axis1=-2, axis2=-1) - (truth * said).sum(-1)
    below = (total**2 - (truth**2).sum(-1)) * (total**2 - (said**2).sum(-1))
    return np.where(below > 0, above / np.sqrt(np.maximum(below, 1)), 0.0)


def f1(confusion: np.ndarray) -> np.ndarray:
    """F1 of class 1 of two, from confusion matrices [..., truth, said] -> [...].

    2 tp / (2 tp + fp + fn); zero where class 1 neither occurs nor is said.
    """
    m = np.asarray(confusion, np.float64)
    if m.shape[-2:] != (2, 2):
        raise ValueError(f"f1 is of two classes; the confusion matrix is {m.shape[-2:]}")
    right, either = 2 * m[..., 1, 1], m[..., 1, :].sum(-1) + m[..., :, 1].sum(-1)
    return right / np.maximum(either, 1)


def _begun(
    model: Any, key: jax.Array, inputs: Sequence, given: Mapping[str, Any]
) -> dict[str, jax.Array]:
    """The model's parameters {path: array}: those given, and the others drawn.

    What is given is copied, as rounds donate their arrays. Only the drawing is compiled, or what is
    given would become a constant of the program.
    """
    shapes = _flat(jax.eval_shape(model.init, key, *inputs)["params"])
    if unknown := set(given) - set(shapes):
        raise ValueError(f"params have {sorted(unknown)}; the model has {sorted(shapes)}")
    for path, w in given.items():
        if w.shape != shapes[path].shape:
            raise ValueError(f"params have {path} {w.shape}; the model has {shapes[path].shape}")

    @jax.jit
    def drawn(key, *inputs):
        return {
            p: w for p, w in _flat(model.init(key, *inputs)["params"]).items() if p not in given
        }

    return {**{path: jnp.array(w) for path, w in given.items()}, **drawn(key, *inputs)}


def _flat(params: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): w for path, w in leaves}


def _complete(examples: dict, inputs: Sequence[str], label: str) -> None:
    """Raises ValueError if one of the arrays that a task reads is not there."""
    if missing := {*inputs, label} - set(examples):
        raise ValueError(f"the examples have no {sorted(missing)}; they have {sorted(examples)}")


def _check(logits: Callable, examples: dict, inputs: Sequence[str], label: str) -> int:
    """How many classes `logits`, a function of a batch and a key, tells apart.

    Raises ValueError if the examples do not fit it.
    """
    _complete(examples, inputs, label)
    labels = np.asarray(examples[label])
    found = {name: examples[name] for name in inputs}
    one = {n: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for n, x in found.items()}
    shape = jax.eval_shape(logits, one, jax.random.key(0)).shape
    if len(shape) != 2 or labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"classification wants logits [B, C] and integer labels [n]; got logits {shape} and "
            f"labels {labels.shape} of {labels.dtype}"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < shape[1]:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but the model has {shape[1]} "
            "outputs; give the model as many classes as there are labels"
        )
    return shape[1]
