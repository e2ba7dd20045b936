"""Wrong models, tasks and selections are refused where they are made."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import refusals
from refusals import classification, factors, source

from jaxfed import lowrank, models, tasks
from jaxfed.data import images

pytestmark = pytest.mark.quick

NAN = float("nan")
select = lowrank.Select


class Normed(nn.Module):
    """A model whose running statistics have no switch."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(10)(x.reshape(len(x), -1))
        return nn.BatchNorm(use_running_average=False)(x)


class Pair(nn.Module):
    """A model of two outputs."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(x.reshape(len(x), -1)), x


class Noisy(nn.Module):
    """A model whose dropout has no switch."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=True)(x.reshape(len(x), -1)))


def classify(model=None, examples=None, **options):
    examples = source().test if examples is None else examples
    return tasks.classification(model or models.MLP((4,), 10), examples, **options)


def labelled(labels):
    return classify(examples={**source().test, "label": np.asarray(labels)})


def of_images(shape, model=None, **options):
    examples = {"image": np.zeros((2, *shape), np.uint8), "label": np.arange(2)}
    return classify(model or models.FemnistCNN(), examples, **options)


def of_tokens(length=4, **options):
    examples = {"tokens": np.ones((2, length), int), "label": np.arange(2)}
    sizes = {
        "vocabulary": 5,
        "width": 4,
        "depth": 1,
        "heads": 2,
        "feedforward": 4,
        "positions": 8,
        "classes": 2,
    }
    return classify(models.Encoder(**sizes | options), examples, inputs=("tokens",))


def regression(y=None, model=None, **options):
    examples = {"x": np.ones((4, 3)), "y": np.ones((4, 1)) if y is None else y}
    return tasks.regression(model or models.Linear(1), examples, **options)


CASES = [
    # models
    ("a class as model", lambda: classify(models.MLP), TypeError, "model is the class MLP; give"),
    ("a name as model", lambda: classify("mlp"), TypeError, "model is a str; give a"),
    ("norm without switch", lambda: classify(Normed()), ValueError, "the model changes what it"),
    ("two outputs", lambda: classify(Pair()), ValueError, "the model returns a tuple; wrap it in"),
    ("dropout without switch", lambda: classify(Noisy()), ValueError, "Dropout_0: dropout never"),
    ("classes 0", lambda: classify(models.MLP((4,), 0)), ValueError, "classes=0; use at least 1"),
    ("classes half", lambda: classify(models.MLP((4,), 1.5)), TypeError, "classes=1.5 is a"),
    ("classes text", lambda: classify(models.MLP((4,), "10")), TypeError, "classes='10' is a"),
    ("classes -1", lambda: classify(models.MLP((4,), -1)), ValueError, "classes=-1; use at least"),
    ("classes None", lambda: classify(models.MLP((4,), None)), TypeError, "classes=None is a"),
    ("width a number", lambda: classify(models.MLP(4, 10)), TypeError, "widths is a int; give"),
    ("width -4", lambda: classify(models.MLP((-4,), 10)), ValueError, "widths[0]=-4; use at"),
    ("outputs 0", lambda: regression(model=models.Linear(0)), ValueError, "outputs=0; use at"),
    (
        "CNN dropout 1.5",
        lambda: of_images((28, 28, 1), models.FemnistCNN(dropout=1.5)),
        ValueError,
        "dropout=1.5; use a number from 0 to below 1",
    ),
    (
        "CNN dropout -1",
        lambda: of_images((28, 28, 1), models.FemnistCNN(dropout=-1.0)),
        ValueError,
        "dropout=-1.0; use a number from 0 to below 1",
    ),
    ("CNN on grey", lambda: of_images((28, 28)), ValueError, "conv_0 convolves examples (28, 28)"),
    ("CNN on channels first", lambda: of_images((3, 28, 28)), ValueError, "conv_0 convolves"),
    ("heads 3 of 4", lambda: of_tokens(heads=3), ValueError, "3 heads do not divide a width of"),
    ("heads 0", lambda: of_tokens(heads=0), ValueError, "heads=0; use at least 1"),
    ("depth 0", lambda: of_tokens(depth=0), ValueError, "depth=0; use at least 1"),
    ("a head", lambda: of_tokens(head="mean"), ValueError, "head='mean'; use one of ('pooler',"),
    ("an activation", lambda: of_tokens(activation="swish"), ValueError, "activation='swish';"),
    ("encoder dropout", lambda: of_tokens(dropout=2.0), ValueError, "dropout=2.0; use a number"),
    ("positions", lambda: of_tokens(length=9), ValueError, "texts of 9 tokens do not fit the"),
    (
        "counted without pad",
        lambda: of_tokens(counted=True, pad=None),
        ValueError,
        "counted=True numbers the tokens that are not padding; give `pad`",
    ),
    ("vocabulary 0", lambda: of_tokens(vocabulary=0), ValueError, "vocabulary=0; use at least 1"),
    (
        "ResNet norm",
        lambda: of_images((8, 8, 3), models.resnet10(10, norm="layer")),
        ValueError,
        "norm='layer'; use one of ('group', 'batch', 'running')",
    ),
    (
        "ResNet groups",
        lambda: of_images((8, 8, 3), models.resnet10(10, groups=3)),
        ValueError,
        "64 channels do not divide into 3 groups; use a divisor",
    ),
    (
        "ResNet groups 0",
        lambda: of_images((8, 8, 3), models.resnet10(10, groups=0)),
        ValueError,
        "groups=0; use at least 1",
    ),
    (
        "ResNet initialiser",
        lambda: of_images((8, 8, 3), models.resnet10(10, initialiser="xavier")),
        ValueError,
        "initialiser='xavier'; use one of ('he', 'fedloru')",
    ),
    (
        "ResNet widths",
        lambda: of_images((8, 8, 3), models.ResNet((1, 1), 10)),
        ValueError,
        "blocks=(1, 1) are of 2 stages, widths=(64, 128, 256, 512) of 4; give one each",
    ),
    # tasks
    ("labels above", lambda: labelled(range(1, 11)), ValueError, "labels run from 1 to 10, but"),
    ("labels far above", lambda: labelled(range(0, 20, 2)), ValueError, "labels run from 0 to"),
    ("labels -1", lambda: labelled(range(-1, 9)), ValueError, "labels run from -1 to 8, but the"),
    ("labels as floats", lambda: labelled(np.arange(10.0)), ValueError, "classification wants"),
    (
        "labels one-hot",
        lambda: labelled(np.eye(10, dtype=int)),
        ValueError,
        "classification wants logits [B, C] and integer labels [n]; got logits (1, 10)",
    ),
    ("labels as text", lambda: labelled(list("abcdefghij")), ValueError, "label is <U1; give"),
    (
        "no image",
        lambda: classify(examples={"label": np.arange(10)}),
        ValueError,
        "the examples have no ['image']; they have ['label']",
    ),
    (
        "no label",
        lambda: classify(examples={"image": source().test["image"]}),
        ValueError,
        "the examples have no ['label']; they have ['image']",
    ),
    ("no examples", lambda: classify(examples={}), ValueError, "the examples have no ['image',"),
    (
        "a source as examples",
        lambda: classify(examples=source()),
        TypeError,
        "examples is a Source; give arrays by name, such as source.test",
    ),
    (
        "None as examples",
        lambda: tasks.classification(models.MLP((4,), 10), None),
        TypeError,
        "examples is a NoneType; give arrays by name, such as source.test",
    ),
    ("inputs a name", lambda: classify(inputs="image"), TypeError, "inputs='image' is one name;"),
    ("inputs empty", lambda: classify(inputs=()), ValueError, "inputs=() names no array for the"),
    (
        "inputs unknown",
        lambda: classify(inputs=("image", "pair")),
        ValueError,
        "the examples have no ['pair']; they have ['image', 'label']",
    ),
    ("label unknown", lambda: classify(label="digit"), ValueError, "the examples have no"),
    ("dropout 1", lambda: classify(dropout=1.0), ValueError, "dropout=1.0 is no share; use a"),
    ("dropout -0.1", lambda: classify(dropout=-0.1), ValueError, "dropout=-0.1 is no share; use"),
    ("dropout nan", lambda: classify(dropout=NAN), ValueError, "is no share; use"),
    ("dropout text", lambda: classify(dropout="0.1"), ValueError, "is no share; use"),
    ("dropout True", lambda: classify(dropout=True), ValueError, "is no share; use"),
    ("dropout None", lambda: classify(dropout=None), ValueError, "is no share; use"),
    (
        "params unknown",
        lambda: classify(params={"dense": {"kernel": np.ones((4, 4))}}),
        ValueError,
        "params have ['dense/kernel']; the model has ['dense_0/bias',",
    ),
    (
        "params of another shape",
        lambda: classify(params={"head": {"kernel": np.ones((4, 9))}}),
        ValueError,
        "params have head/kernel (4, 9); the model has (4, 10)",
    ),
    ("params text", lambda: classify(params="bert"), ValueError, "params have ['']; the model"),
    (
        "f1 of 10 classes",
        lambda: classify(measures=(tasks.f1,)),
        ValueError,
        "f1 is of two classes; the confusion matrix is (10, 10)",
    ),
    (
        "measures a function",
        lambda: classify(measures=tasks.matthews),
        TypeError,
        "measures is a function; give several, such as (tasks.f1,)",
    ),
    ("measures names", lambda: classify(measures=("f1",)), TypeError, "a measure='f1' is a str;"),
    ("select a name", lambda: classify(select="dense"), TypeError, "select is a str; give a"),
    ("select None", lambda: classify(select=None), TypeError, "select is a NoneType; give a"),
    (
        "preprocess a name",
        lambda: classify(preprocess="normalise"),
        TypeError,
        "preprocess='normalise' is a str; give a function of images and a key",
    ),
    (
        "preprocess uncalled",
        lambda: classify(preprocess=images.random_flip),
        ValueError,
        "preprocess cannot be called with uint8 (1, 2, 2, 1) and a key: random_flip()",
    ),
    ("augment a number", lambda: classify(augment=3), TypeError, "augment=3 is a int; give a"),
    (
        "preprocess of 3 channels",
        lambda: classify(preprocess=images.normalise([0.5] * 3, [0.5] * 3)),
        ValueError,
        "images (2, 2, 1) have 1 channels, and mean=(0.5, 0.5, 0.5) is of 3; give one",
    ),
    ("targets [n]", lambda: regression(y=np.ones(4)), ValueError, "regression wants predictions"),
    ("targets of 2", lambda: regression(y=np.ones((4, 2))), ValueError, "regression wants"),
    (
        "targets as text",
        lambda: regression(y=np.array(["a"] * 4)),
        ValueError,
        "y is <U1; give numbers, such as np.unique(x, return_inverse=True)[1] of",
    ),
    ("no targets", lambda: regression(target="z"), ValueError, "the examples have no ['z']; they"),
    (
        "regression inputs a name",
        lambda: regression(inputs="x"),
        TypeError,
        "inputs='x' is one name; give a sequence, ('x',)",
    ),
    (
        "regression on a class",
        lambda: regression(model=models.Linear),
        TypeError,
        "model is the class Linear; give one, Linear(...)",
    ),
    ("f1 of three", lambda: tasks.f1(np.eye(3)), ValueError, "f1 is of two classes; the"),
    (
        "matthews of a table",
        lambda: tasks.matthews(np.ones((2, 3))),
        ValueError,
        "the confusion matrix is (2, 3); give [..., classes, classes]",
    ),
    # selections
    ("nothing", lambda: select(), ValueError, 'nothing is trained; give factors="..." or'),
    (
        "factors a list",
        lambda: select(factors=["dense"], rank=1),
        TypeError,
        "factors=['dense'] is a list; give one regular expression, \"a|b\" for either",
    ),
    (
        "factors a glob",
        lambda: select(factors="*dense", rank=1),
        ValueError,
        "factors='*dense' is no regular expression (nothing to repeat at position 0);",
    ),
    ("full a number", lambda: select(full=3), TypeError, "full=3 is a int; give one regular"),
    ("rank 0", lambda: select(factors="a", rank=0), ValueError, "a rank must be at least 1; got 0"),
    ("rank half", lambda: select(factors="a", rank=1.5), TypeError, "rank=1.5 has the float 1.5;"),
    ("rank True", lambda: select(factors="a", rank=True), TypeError, "rank=True has the bool"),
    ("rank text", lambda: select(factors="a", rank="4"), TypeError, "rank='4' has the str '4';"),
    ("rank nan", lambda: select(factors="a", rank=NAN), TypeError, "rank=nan has the float nan;"),
    ("rank list", lambda: select(factors="a", rank=[4]), TypeError, "rank=[4] has the list [4];"),
    (
        "ranks with 0",
        lambda: select(factors="a", rank={"a": 0}),
        ValueError,
        "a rank must be at least 1; got {'a': 0}",
    ),
    ("ranks empty", lambda: select(factors="a", rank={}), ValueError, "rank={} gives no rank;"),
    (
        "ranks of numbers",
        lambda: select(factors="a", rank={1: 1}),
        TypeError,
        'a pattern of rank=1 is a int; give one regular expression, "a|b" for either',
    ),
    ("no rank", lambda: select(factors="a"), ValueError, "factors need a rank or a fraction, one"),
    (
        "rank and fraction",
        lambda: select(factors="a", rank=1, fraction=0.1),
        ValueError,
        "factors need a rank or a fraction, one of the two; got rank=1 and fraction=0.1",
    ),
    ("fraction 0", lambda: select(factors="a", fraction=0), ValueError, "fraction=0 is not in"),
    (
        "fraction 1.5",
        lambda: select(factors="a", fraction=1.5),
        ValueError,
        "fraction=1.5 is not in (0, 1]; use a number that is",
    ),
    (
        "fraction nan",
        lambda: select(factors="a", fraction=NAN),
        ValueError,
        "fraction=nan is not in (0, 1]; use a number that is",
    ),
    (
        "fraction text",
        lambda: select(factors="a", fraction="0.1"),
        TypeError,
        "fraction='0.1' is a str; give a number",
    ),
    ("fraction too small", lambda: factors(fraction=1e-6), ValueError, "fraction=1e-06 of 70"),
    ("alpha 0", lambda: select(factors="a", rank=1, alpha=0), ValueError, "alpha=0 is not in (0,"),
    (
        "alpha nan",
        lambda: select(factors="a", rank=1, alpha=NAN),
        ValueError,
        "alpha=nan is not in (0, inf]; use a number that is",
    ),
    (
        "alpha inf",
        lambda: select(factors="a", rank=1, alpha=float("inf")),
        ValueError,
        "alpha=inf is not in (0, inf]; use a number that is",
    ),
    (
        "alpha text",
        lambda: select(factors="a", rank=1, alpha="2"),
        TypeError,
        "alpha='2' is a str; give a number",
    ),
    (
        "base",
        lambda: select(factors="a", rank=1, base="zeros"),
        ValueError,
        "base='zeros'; use one of ('keep', 'zero')",
    ),
    ("up", lambda: select(factors="a", rank=1, up="rand"), ValueError, "up='rand'; use one of"),
    (
        "above",
        lambda: select(factors="a", rank=1, above="no"),
        ValueError,
        "above='no'; use one of ('error', 'allow')",
    ),
    (
        "all zero",
        lambda: factors(rank=1, base="zero", up="zero"),
        ValueError,
        'base="zero" with up="zero" is a network of zeros that no gradient leaves; use',
    ),
    ("rank above the side", lambda: factors(rank=5), ValueError, "rank above the layer's smaller"),
    (
        "no match",
        lambda: classification(select=select(full="attention")),
        ValueError,
        "'attention' matches none of: dense_0/bias, dense_0/kernel, head/bias,",
    ),
    ("no rank for a path", lambda: factors(rank={"head": 1}), ValueError, "no rank is given for"),
    (
        "beside rank 0",
        lambda: lowrank.beside({}, 0, jax.random.key(0)),
        ValueError,
        "rank=0; use at least 1",
    ),
    (
        "beside rank half",
        lambda: lowrank.beside({}, 1.5, jax.random.key(0)),
        TypeError,
        "rank=1.5 is a float; give a whole number",
    ),
    (
        "product rank 0",
        lambda: lowrank.from_product(jnp.ones((2, 2)), 1, 0, 1.0),
        ValueError,
        "rank=0; use at least 1",
    ),
]


@pytest.mark.parametrize(
    ("call", "error", "sentence"), [case[1:] for case in CASES], ids=[case[0] for case in CASES]
)
def test_wrong_input_ends_in_one_sentence(call, error, sentence, tmp_path, monkeypatch, capfd):
    refusals.check(call, error, sentence, tmp_path, monkeypatch)
