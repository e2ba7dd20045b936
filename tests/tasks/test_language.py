"""Language modelling: its loss and counts against plain numpy, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiers

from jaxfed import Experiment, Host, local, lowrank, models, run, tasks, trees
from jaxfed.algorithms import zoo
from jaxfed.algorithms.row import Setting
from jaxfed.data import federate, partition, sources
from jaxfed.simulation.loop import World, cohort, compiled_loop

MODEL = models.Decoder(11, 8, 2, 2, 8, 7, "llama", groups=1)
RNG = np.random.default_rng(0)
EXAMPLES = {
    "tokens": RNG.integers(0, 11, (5, 6)).astype(np.int32),
    "scored": np.array(
        [[0, 1, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], [0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1], [1] * 6],
        np.int8,
    ),
}
SELECT = lowrank.Select(factors="query|value", rank=2, up="random")
MASK = np.array([1, 1, 0, 1, 1], np.float32)


def by_hand(model, params, examples, mask):
    """(sum of losses, tokens predicted, tokens), one token after the other."""
    z = np.asarray(model.apply({"params": params}, examples["tokens"]), np.float64)
    loss = right = count = 0
    for row, tokens in enumerate(examples["tokens"]):
        for t in range(1, len(tokens)):
            if mask[row] and examples["scored"][row, t]:
                before = z[row, t - 1]
                loss += np.log(np.exp(before).sum()) - before[tokens[t]]
                right += before.argmax() == tokens[t]
                count += 1
    return loss, right, count


def test_loss_and_counts_are_those_of_a_plain_loop():
    """The first token and what is masked do not count; factors act as the merged weights."""
    task = tasks.next_token(MODEL, EXAMPLES, select=SELECT)
    base, theta = jax.jit(task.init)(jax.random.key(0))
    loss, right, count = by_hand(MODEL, lowrank.merged(base, theta), EXAMPLES, MASK)
    batch = {**EXAMPLES, "mask": MASK}
    found = jax.jit(task.loss)(base, theta, batch, jax.random.key(1))
    sums = jax.jit(task.evaluate)(base, theta, batch)
    np.testing.assert_allclose(found, loss / count, rtol=1e-5)
    np.testing.assert_allclose(sums["loss"], loss, rtol=1e-5)
    assert (sums["accuracy"], sums["tokens"]) == (right, count)
    told = task.summary(sums, 4)
    np.testing.assert_allclose(told["perplexity"], np.exp(loss / count), rtol=1e-5)
    assert told["accuracy"] == right / count


def test_an_empty_batch_costs_nothing_and_teaches_nothing():
    task = tasks.next_token(MODEL, EXAMPLES, select=SELECT)
    base, theta = jax.jit(task.init)(jax.random.key(0))
    batch = {**EXAMPLES, "mask": np.zeros(5, np.float32)}
    value, grads = jax.jit(jax.value_and_grad(task.loss, 1))(base, theta, batch, jax.random.key(1))
    assert value == 0
    assert not any(g.any() for g in jax.tree.leaves(grads))


def test_packed_texts_have_the_loss_of_texts_apart():
    packed = {
        "tokens": np.array([[1, 5, 6, 1, 8, 0]]),
        "segments": np.array([[1, 1, 1, 2, 2, 0]]),
        "scored": np.array([[0, 1, 1, 0, 1, 0]]),
    }
    apart = {
        "tokens": np.array([[1, 5, 6], [1, 8, 0]]),
        "scored": np.array([[0, 1, 1], [0, 1, 0]]),
    }
    one = tasks.next_token(MODEL, packed, inputs=("tokens", "segments"))
    two = tasks.next_token(MODEL, apart)
    weights = jax.jit(two.init)(jax.random.key(0))
    first, second = (
        jax.jit(task.loss)(*weights, {**x, "mask": jnp.ones(len(x["tokens"]))}, jax.random.key(0))
        for task, x in ((one, packed), (two, apart))
    )
    np.testing.assert_allclose(first, second, rtol=1e-5)


ROWS = {row.name: row for row in zoo.ROWS}
STACKED = ("fedlora", "fedloru", "fedpara", "fedms", "pf2lora")


@pytest.mark.parametrize("name", tiers.usual(STACKED, "fedloru"))
def test_a_round_of_the_zoo_trains_beside_stacked_layers(name):
    row = ROWS[name]
    starts = {"base": "zero", "up": "random"} if row.trains == "scratch" else {"up": "random"}
    select = lowrank.Select(factors="query|value", full="norm/", rank=2, **starts)
    task = tasks.next_token(MODEL, EXAMPLES, select=select)
    source = sources.arrays(EXAMPLES, EXAMPLES)
    data = federate(source, partition.natural(np.array([0, 0, 1, 1, 2])))
    setting = Setting(local.Work(2, steps=1), 0.1, clients=3, cohort=3, rank=2, rounds=2)
    experiment = Experiment(data, row.make(task, setting), rounds=1, cohort=3)
    (record,) = run(experiment, host=Host(devices=1, chunk=1, fuse=1))
    assert np.isfinite(record["loss"])
    assert record["perplexity"] == pytest.approx(np.exp(record["test_loss"]))


def given(row):
    """(weights, the row's method beside them)"""
    params = jax.jit(tasks.next_token(MODEL, EXAMPLES).init)(jax.random.key(3))[1].full
    select = row.select(given=True, factors="query|value", rank=2)
    task = tasks.next_token(MODEL, EXAMPLES, params=params, select=select)
    work = local.Work(2, steps=1)
    setting = Setting.of_adamw(
        work, 0.1, clients=4, weight_decay=0.0, rank=2, rounds=4, personal="value"
    )
    return params, row.make(task, setting)


LACKING = {"pftt": "personal='^factors/' matches every path", "feddpa-instances": "no `features`"}
TUNING = {r.function: r for r in zoo.ROWS if r.fine_tunes and r.name not in LACKING}


@pytest.mark.full
@pytest.mark.parametrize("row", TUNING.values(), ids=lambda row: row.name)
def test_a_row_that_fine_tunes_has_rounds_beside_given_weights(row):
    """One row of each function: shapes stay what they were. Nothing is computed."""
    _, fed = given(row)
    server = jax.eval_shape(fed.init, jax.random.key(0))
    state = jax.eval_shape(fed.init_client, server, jax.random.key(0))
    world = World(EXAMPLES, np.array([2, 1, 1, 1]))

    def run_round(server, state):
        return fed.run_round(server, cohort(world, [state] * 4, range(4), 0), compiled_loop)[0]

    after = jax.eval_shape(run_round, server, state)
    assert trees.shapes(after) == trees.shapes(server)


@pytest.mark.parametrize("name", LACKING)
def test_a_row_that_needs_more_than_factors_of_a_decoder_says_so(name):
    with pytest.raises(ValueError, match=LACKING[name].replace("^", r"\^")):
        given(ROWS[name])[1].init(jax.random.key(0))


MERGING = [row for row in zoo.ROWS if row.merges]


@pytest.mark.parametrize("row", tiers.usual(MERGING, ROWS["fedloru"]), ids=lambda row: row.name)
def test_a_row_that_merges_may_begin_at_given_weights(row):
    params, fed = given(row)
    server = jax.jit(fed.init)(jax.random.key(0))
    state = jax.jit(fed.init_client)(server, jax.random.key(0))
    model = trees.by_path(lowrank.merged(*jax.jit(fed.deploy)(server, state)))
    chex.assert_trees_all_close(model, params, rtol=1e-6)


def changed(**arrays):
    return lambda: tasks.next_token(MODEL, {**EXAMPLES, **arrays})


NONE = EXAMPLES["scored"] * np.array([[1], [0], [1], [1], [1]])
WRONG = {
    "a strange token": (
        changed(tokens=EXAMPLES["tokens"] + 1),
        "tokens run from . to 11, but the model's vocabulary has 11; use the tokenizer that",
    ),
    "a negative token": (changed(tokens=EXAMPLES["tokens"] - 1), "tokens run from -1 to"),
    "a row without tokens": (changed(scored=NONE), "row 1 has no token to predict after its first"),
    "a shape": (changed(scored=EXAMPLES["scored"][:, 1:]), r"scored is \(5, 5\) beside tokens"),
    "a negative weight": (changed(scored=EXAMPLES["scored"] - 1), "scored has -1; give 0"),
    "floats": (changed(tokens=EXAMPLES["tokens"] * 1.0), r"tokens is float64 \(5, 6\); give int"),
    "a long text": (
        lambda: tasks.next_token(MODEL.clone(positions=5), EXAMPLES),
        "texts of 6 tokens do not fit the model's 5 positions",
    ),
    "a classifier": (
        lambda: tasks.next_token(models.MLP((4,), 11), EXAMPLES),
        "next_token wants a model of logits",
    ),
    "dropout": (
        lambda: tasks.next_token(MODEL, EXAMPLES, dropout=1.0),
        "dropout=1.0 is no share; use a number from 0",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_in_a_sentence(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()
