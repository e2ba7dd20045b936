"""Evaluation against plain numpy: whole test sets, clients' own models, their spread."""

import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxfed import Algorithm, data, tasks
from jaxfed.simulation import engine, evaluate
from jaxfed.tasks import Task

COUNT = np.array([5, 0, 9, 3])
START = np.cumsum(COUNT) - COUNT
X = np.random.default_rng(0).normal(size=COUNT.sum()).astype(np.float32)


class Server(NamedTuple):
    base: jax.Array
    theta: jax.Array


def distance(base, theta, batch):
    """Summed over the batch: |x - theta| and whether x is above theta."""
    gap = batch["x"] - theta
    return {
        "loss": jnp.sum(jnp.abs(gap) * batch["mask"]),
        "accuracy": jnp.sum((gap > 0) * batch["mask"]),
    }


TASK = Task(None, None, distance)
# Each client deploys the server's number plus its own.
PERSONAL = Algorithm(None, None, None, lambda server, state: (server.base, server.theta + state))


SERVER, STATES = Server(jnp.zeros(()), jnp.float32(0.1)), jnp.array([0.0, 1.0, -0.5, 0.3])


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("batch_size", [2, 20])
@pytest.mark.parametrize("width", [1, 2])
def test_each_client_is_measured_with_its_own_model_on_its_own_examples(devices, batch_size, width):
    machine = engine.machine(devices, chunk=1)
    split, order = data.Split({"x": X}, START, COUNT), np.array([2, 0, -1, 3, 1, -1, -1, -1])
    parts = evaluate.parts(order, devices, width)
    function = evaluate.personal_models(
        PERSONAL, TASK, engine.for_each_client(machine), split.most, batch_size
    )
    jitted = engine.compiled(function, machine)
    found, own = evaluate.over_parts(
        lambda states, start, count: jitted(SERVER, states, {"x": X}, start, count),
        split,
        parts,
        lambda ids: STATES[np.minimum(ids, 3)],
    )
    places = np.concatenate(parts)
    assert sorted(places[places >= 0]) == [0, 1, 2, 3]
    assert own.tolist() == [COUNT[k] if k >= 0 else 0 for k in places]
    for place, k in enumerate(places):
        mine = X[START[k] : START[k] + COUNT[k]] if k >= 0 else X[:0]
        gap = mine - (0.1 + float(STATES[k]))
        np.testing.assert_allclose(found["loss"][place], np.abs(gap).sum(), rtol=1e-5)
        assert found["accuracy"][place] == (gap > 0).sum()


@pytest.mark.parametrize(("devices", "width"), [(1, 3), (2, 1), (4, 5)])
def test_parts_are_columns_of_the_devices_blocks(devices, width):
    order = np.arange(devices * 7)
    parts = evaluate.parts(order, devices, width)
    assert {len(p) for p in parts} == {devices * width}
    blocks = np.concatenate([p.reshape(devices, width) for p in parts], axis=1)
    assert (blocks[:, :7].reshape(-1) == order).all()
    assert (blocks[:, 7:] == -1).all()


@pytest.mark.parametrize("devices", [1, 4])
def test_the_global_model_is_that_of_a_client_that_was_never_drawn(devices):
    """Whose state is -0.5 here; on all of a test set that does not divide into batches."""
    fresh = PERSONAL._replace(init_client=lambda server, key: jnp.float32(-0.5))
    verb = engine.for_each_client(engine.machine(devices))
    function = evaluate.global_model(fresh, TASK, verb, len(X), devices, batch_size=3)
    machine = engine.machine(devices)
    arguments = engine.place((SERVER, {"x": jnp.asarray(X)}), machine)
    found = evaluate.overall(tasks.means, engine.compiled(function, machine)(*arguments), len(X))
    np.testing.assert_allclose(found["loss"], np.abs(X + 0.4).mean(), rtol=1e-5)
    np.testing.assert_allclose(found["accuracy"], (X > -0.4).mean())


@given(st.integers(1, 1000), st.integers(1, 8), st.integers(1, 50))
def test_pieces_cover_the_test_set_once_in_whole_batches(examples, count, batch_size):
    start, size = evaluate.pieces(examples, count, batch_size)
    rows = np.concatenate([np.arange(a, a + n) for a, n in zip(start, size, strict=True)])
    assert rows.tolist() == list(range(examples))
    batches = -(-examples // batch_size)
    assert sum(-(-n // batch_size) for n in size) == batches  # only the last batch is short
    assert max(size) <= -(-batches // count) * batch_size


def test_a_mean_is_over_examples_and_a_spread_is_over_clients():
    sums = {"accuracy": np.array([4, 0, 3, 3])}
    assert evaluate.overall(tasks.means, sums, COUNT.sum()) == {"accuracy": 10 / 17}
    rates = [4 / 5, 3 / 9, 3 / 3]  # the client without examples has none
    spread = evaluate.spread(tasks.means, sums, COUNT)
    assert set(spread) == {"accuracy"}
    found = spread["accuracy"]
    np.testing.assert_allclose(found.pop("mean"), np.mean(rates))
    np.testing.assert_allclose(found.pop("min"), min(rates))
    np.testing.assert_allclose(found.pop("union"), 10 / 17)
    for q, value in found.items():
        np.testing.assert_allclose(value, np.percentile(rates, float(q.removeprefix("p"))))
    assert set(found) == {"p10", "p50", "p90"}


def test_what_is_no_mean_is_taken_of_sums_over_all_examples():
    """A ratio of two sums: over clients a mean of ratios, over the union a ratio of sums."""

    def ratio(sums, count):
        return {"ratio": sums["top"] / sums["bottom"], "each": sums["top"] / count}

    sums = {"top": np.array([4, 0, 3, 3]), "bottom": np.array([8, 1, 3, 4])}
    found = evaluate.spread(ratio, sums, COUNT)
    np.testing.assert_allclose(found["ratio"]["mean"], np.mean([1 / 2, 1, 3 / 4]))
    np.testing.assert_allclose(found["ratio"]["union"], 10 / 15)
    np.testing.assert_allclose(found["each"]["union"], 10 / 17)
    assert evaluate.overall(ratio, sums, 17) == {"ratio": 10 / 16, "each": 10 / 17}


def test_a_measure_that_is_not_finite_is_named():
    """Accuracy alone would look perfect: no comparison with NaN holds, and argmax gives a label."""
    sums = {"loss": np.array([np.nan, 1.0]), "accuracy": np.array([3.0, 1.0])}
    some = types.SimpleNamespace(test={"x": np.zeros(4)})
    measured = evaluate.Evaluation(
        {"test": lambda server, test: sums}, {"test": None}, some, [], tasks.means
    )
    with pytest.warns(UserWarning, match=r"^test_loss: not finite.* outputs on some test examples"):
        assert measured(None, None)["accuracy"] == 1
