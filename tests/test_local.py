"""Local training: who sees which example when, and that clients do not disturb each other."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfed import local
from jaxfed.algorithm import Data

MOST = 12


class Client(NamedTuple):
    """What local training reads of a cohort."""

    data: Data
    count: jax.Array
    key: jax.Array
    round: jax.Array


def client(count, start=0, seed=0, examples=None, t=0):
    rows = {"row": jnp.arange(40)} if examples is None else examples
    data = Data(rows, jnp.int32(start), MOST)
    return Client(data, jnp.int32(count), jax.random.key(seed), jnp.int32(t))


def stacked(clients):
    """The clients on one axis, sharing their examples; and the axes to vmap over."""
    data = Data(clients[0].data.examples, jnp.stack([k.data.start for k in clients]), MOST)
    rest = (jnp.stack([getattr(k, f) for k in clients]) for f in ("count", "key", "round"))
    return Client(data, *rest), Client(Data(None, 0, MOST), 0, 0, 0)


@partial(jax.jit, static_argnums=1)
def batches(k, work):
    """(rows [S, B], mask [S, B], how many steps there were), S being enough for any client."""
    size = work.batch_size
    enough = work.steps or work.epochs * -(-MOST // size)
    blank = jnp.full((enough, size), -1), jnp.zeros((enough, size)), 0

    def record(carry, batch, key):
        rows, mask, t = carry
        return rows.at[t].set(batch["row"]), mask.at[t].set(batch["mask"]), t + 1

    return local.each_step(record, blank, k, work)


def seen(k, work):
    """The rows of each of the client's batches, without masked places."""
    rows, mask, steps = map(np.asarray, batches(k, work))
    return [rows[t][mask[t] > 0].tolist() for t in range(steps)], rows[:steps]


works = st.builds(
    local.Work,
    batch_size=st.sampled_from([1, 3, 4, 20]),
    epochs=st.sampled_from([1, 3]),
    shuffle=st.booleans(),
)


@pytest.mark.full
@settings(deadline=None, max_examples=40)
@given(work=works, count=st.integers(1, MOST), start=st.integers(0, 28), seed=st.integers(0, 9))
def test_an_epoch_visits_every_example_of_the_client_once(work, count, start, seed):
    found, raw = seen(client(count, start, seed), work)
    mine = list(range(start, start + count))
    assert len(found) == work.epochs * -(-count // work.batch_size)
    for epoch in np.array_split(np.arange(len(found)), work.epochs):
        rows = [row for t in epoch for row in found[t]]
        assert sorted(rows) == mine
        if not work.shuffle:
            assert rows == mine
    assert set(raw.reshape(-1)) <= set(mine)  # under a mask of zero too


def test_all_batches_but_the_last_of_an_epoch_are_whole():
    found, _ = seen(client(10), local.Work(4, epochs=2))
    assert [len(rows) for rows in found] == [4, 4, 2, 4, 4, 2]


@pytest.mark.parametrize(("count", "sizes"), [(10, [4, 4] * 2), (8, [4, 4] * 2), (3, [3] * 2)])
def test_drop_remainder_leaves_a_short_batch_out_unless_it_is_the_only_one(count, sizes):
    work = local.Work(4, epochs=2, drop_remainder=True)
    found, _ = seen(client(count), work)
    assert [len(rows) for rows in found] == sizes
    assert int(work.local_steps(count)) == len(sizes)
    for epoch in (found[: len(found) // 2], found[len(found) // 2 :]):
        rows = [row for batch in epoch for row in batch]
        assert len(set(rows)) == len(rows)


def test_a_number_of_steps_goes_through_the_examples_again_and_again():
    found, _ = seen(client(7), local.Work(4, steps=5))
    assert [len(rows) for rows in found] == [4, 3, 4, 3, 4]
    for t in (0, 2):
        assert sorted(found[t] + found[t + 1]) == list(range(7))


def test_epochs_and_clients_and_rounds_have_orders_of_their_own():
    work = local.Work(MOST, epochs=2)
    (first, second), _ = seen(client(MOST), work)
    (other, _), _ = seen(client(MOST, seed=1), work)
    assert first != second
    assert first != other
    assert seen(client(MOST), work)[0] == [first, second]


def test_every_order_of_three_examples_comes_up_equally_often():
    work = local.Work(3, epochs=1)
    keys = jax.random.split(jax.random.key(0), 6000)
    rows = jax.jit(jax.vmap(lambda key: batches(client(3)._replace(key=key), work)[0][0]))(keys)
    _, often = np.unique(rows, axis=0, return_counts=True)
    assert len(often) == 6
    np.testing.assert_allclose(often, 1000, atol=5 * np.sqrt(1000))  # five standard deviations


@pytest.mark.parametrize("work", [local.Work(3, epochs=2), local.Work(3, steps=4)])
def test_what_a_client_sees_does_not_depend_on_who_is_beside_it(work):
    clients = [client(2, 0, 0), client(12, 2, 1), client(0, 0, 2), client(5, 14, 3)]
    together, axes = stacked(clients)
    rows, mask, steps = jax.jit(jax.vmap(partial(batches, work=work), in_axes=(axes,)))(together)
    for i, k in enumerate(clients):
        alone_rows, alone_mask, alone_steps = batches(k, work)
        np.testing.assert_array_equal(rows[i], alone_rows)
        np.testing.assert_array_equal(mask[i], alone_mask)
        assert steps[i] == alone_steps


def regression(theta, batch, key):
    error = (batch["x"] @ theta["w"] + theta["b"] - batch["y"]) ** 2
    return jnp.sum(error * batch["mask"]) / jnp.maximum(jnp.sum(batch["mask"]), 1)


def points(rows=20, features=3):
    rng = np.random.default_rng(0)
    return {"x": jnp.asarray(rng.normal(size=(rows, features))), "y": jnp.asarray(
        rng.normal(size=rows))}  # fmt: skip


BEGIN = {"w": np.array([1.0, -1.0, 0.5]), "b": np.array(0.1)}


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.sgd(0.05),
        optax.sgd(0.05, momentum=0.9),
        optax.adamw(0.05, weight_decay=0.1),
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.05)),
    ],
    ids=["sgd", "momentum", "adamw", "clipped adam"],
)
def test_a_client_with_few_steps_is_frozen_while_others_go_on(x64, optimizer):
    """Beside one with six times the steps it ends as it does alone, and as a plain loop does."""
    work, examples = local.Work(2, epochs=2), points()
    clients = [client(2, 0, 0, examples), client(12, 2, 1, examples), client(0, 0, 2, examples)]
    train = jax.jit(partial(local.sgd, regression, optimizer, BEGIN, work=work))
    gradient = jax.jit(jax.value_and_grad(regression))
    together, axes = stacked(clients)
    thetas, metrics = jax.jit(jax.vmap(train, in_axes=(axes,)))(together)
    for i, k in enumerate(clients):
        theta, losses = BEGIN, []
        state = optimizer.init(theta)
        batch_rows, _ = seen(client(int(k.count), int(k.data.start), i), work)
        for rows in batch_rows:
            batch = {n: x[np.array(rows)] for n, x in examples.items()} | {
                "mask": jnp.ones(len(rows))
            }
            value, grads = gradient(theta, batch, None)
            updates, state = optimizer.update(grads, state, theta)
            theta = optax.apply_updates(theta, updates)
            losses.append(value)
        for n in BEGIN:
            np.testing.assert_allclose(thetas[n][i], theta[n], rtol=1e-9)
            np.testing.assert_allclose(train(k)[0][n], theta[n], rtol=1e-9)
        np.testing.assert_allclose(metrics["loss"][i], np.mean(losses) if losses else 0.0)


def test_a_client_without_examples_returns_what_it_was_given():
    examples = points()
    theta, metrics = local.sgd(
        regression, optax.adam(0.1), BEGIN, client(0, 0, 0, examples), local.Work(4, steps=3)
    )
    np.testing.assert_array_equal(theta["w"], BEGIN["w"].astype(np.float32))
    assert metrics["loss"] == 0


def test_steps_have_randomness_of_their_own():
    def draw(carry, batch, key):
        return carry + jax.random.uniform(key)

    work = local.Work(4, steps=1)
    one, other = (local.each_step(draw, 0.0, client(4, seed=s), work) for s in (0, 1))
    two = local.each_step(draw, 0.0, client(4), local.Work(4, steps=2))
    assert one != other
    assert two != 2 * one


def test_a_round_scales_the_whole_update():
    """The factor stands outside of momentum: w moves by schedule(round) times plain SGD's step."""
    examples = points()
    plain = optax.sgd(0.1, momentum=0.9)
    scaled = optax.chain(plain, local.scale_by_round(lambda t: 1 / (1 + t)))
    work = local.Work(20, steps=1, shuffle=False)
    step = {
        t: local.sgd(regression, scaled, BEGIN, client(MOST, 0, 0, examples, t), work)[0]["w"]
        - BEGIN["w"]
        for t in (0, 1, 3)
    }
    whole = local.sgd(regression, plain, BEGIN, client(MOST, 0, 0, examples), work)[0]["w"]
    for t, moved in step.items():
        np.testing.assert_allclose(moved * (1 + t), whole - BEGIN["w"], rtol=1e-5)


def test_cosine_goes_from_one_to_its_least_by_way_of_their_middle():
    factor = local.cosine(0.2, 100)
    np.testing.assert_allclose([factor(t) for t in (0, 50, 100)], [1, 0.6, 0.2], rtol=1e-6)
    t = jnp.arange(101)
    assert (jnp.diff(factor(t)) < 0).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "epochs or steps"),
        ({"epochs": 1, "steps": 1}, "epochs=1 and steps=1"),
        ({"epochs": 0}, "epochs=0"),
        ({"steps": -1}, "steps=-1"),
    ],
)
def test_work_that_makes_no_sense_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        local.Work(4, **options)
    with pytest.raises(ValueError, match="batch_size=0"):
        local.Work(0, epochs=1)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 2.5},
        {"batch_size": "4"},
        {"epochs": True, "steps": None},
        {"epochs": 1.0, "steps": None},
        {"steps": np.nan},
    ],
)
def test_work_is_in_whole_numbers(options):
    with pytest.raises(TypeError, match=r"is a (float|str|bool); give a whole number"):
        local.Work(**{"batch_size": 4, "steps": 2, **options})


def test_whole_numbers_of_numpy_are_whole_numbers():
    work = local.Work(np.int64(4), epochs=np.int32(2))
    assert work == local.Work(4, epochs=2)
    assert {type(work.batch_size), type(work.epochs)} == {int}


def test_an_optimizer_that_wants_the_loss_gets_it():
    """No loss is low enough for it here, so it lowers the rate and the weights move less."""
    plateau = optax.contrib.reduce_on_plateau(0.5, patience=1, accumulation_size=1, rtol=1.0)
    optimizer, work = optax.chain(optax.sgd(0.1), plateau), local.Work(20, steps=4, shuffle=False)
    k = client(MOST, 0, 0, points())
    found = local.sgd(regression, optimizer, BEGIN, k, work)[0]["w"]
    plain = local.sgd(regression, optax.sgd(0.1), BEGIN, k, work)[0]["w"]
    assert jnp.abs(found - BEGIN["w"]).sum() < jnp.abs(plain - BEGIN["w"]).sum()


def test_a_schedule_by_round_keeps_the_type_of_the_updates(x64):
    """Before momentum, whose moments would otherwise change their type in the loop over steps."""
    scaled = local.scale_by_round(local.cosine(0.1, 5))
    update, _ = scaled.update(jnp.ones(2, jnp.float32), scaled.init(()), round=jnp.asarray(2))
    assert update.dtype == jnp.float32


@pytest.mark.parametrize("most", [7, 12])
def test_the_order_of_examples_is_the_same_for_any_bound_on_their_number(most):
    work = local.Work(2, epochs=3)
    mine = local._orders(jax.random.key(0), Data((), jnp.int32(0), 7), jnp.int32(6), work)
    data = Data((), jnp.int32(0), most, jnp.int32(7))
    bound = local._orders(jax.random.key(0), data, jnp.int32(6), work)
    np.testing.assert_array_equal(mine[:, :6], bound[:, :6])
