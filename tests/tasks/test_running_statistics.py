"""Models with running statistics: a loop over clients by flax alone is the oracle."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import tiers
from oracle import World

from jaxfed import combine, local, lowrank, models, tasks, trees
from jaxfed.algorithms import apfl, fedavg, feddat, feddyn, fedper, perfedavg, pf2lora, scaffold
from jaxfed.algorithms.general.perfedavg import first_order, same
from jaxfed.combine import compress
from jaxfed.lowrank import Theta

COUNT, ROUNDS, RATE = np.array([3, 4, 7]), 2, 0.2
WORK = local.Work(batch_size=4, epochs=2, shuffle=False)  # batches of 3; of 4; of 4 and 3
MODEL = models.MLP((4,), 3, norm="running")


def world():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT.sum(), 5)) * (1 + np.repeat(np.arange(3), COUNT))[:, None]
    label = rng.integers(3, size=COUNT.sum()).astype(np.int32)
    return World({"image": x.astype(np.float32), "label": label}, COUNT)


WORLD = world()
TASK = tasks.classification(MODEL, WORLD.examples)
LORA = lowrank.Select(factors="dense.*kernel", full="head", rank=2)
SGD = optax.sgd(RATE)


@cache
def begun():
    return jax.tree.map(np.asarray, jax.jit(TASK.init)(jax.random.key(0)))


def doubled(task):
    """The task, begun at the same weights in double precision."""
    start = begun()
    return task._replace(init=lambda key: jax.tree.map(lambda x: jnp.asarray(x, float), start))


def mean_loss(params, stats, x, label):
    logits, changed = MODEL.apply(
        {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"]
    )
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()
    return loss, changed["batch_stats"]


STEP = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))


def trained_by_flax(params, stats, k, optimizer):
    """A client's two epochs, in batches of its own examples alone."""
    rows = slice(WORLD.start[k], WORLD.start[k] + COUNT[k])
    x, label = (jnp.asarray(WORLD.examples[n][rows]) for n in ("image", "label"))
    opt = optimizer.init(params)
    for _ in range(WORK.epochs):
        for i in range(0, COUNT[k], WORK.batch_size):
            batch = x[i : i + WORK.batch_size], label[i : i + WORK.batch_size]
            (_, stats), grads = STEP(params, stats, *batch)
            updates, opt = optimizer.update(grads, opt, params)
            params = optax.apply_updates(params, updates)
    return params, stats


def looped(optimizer, keeps=()):
    """[(params, stats) of each client's model] after rounds of a loop over clients.

    Layers in `keeps` stay with their clients; the others are averaged.
    """
    held = lowrank.variables(doubled(TASK).init(None)[1].full)
    start = held["params"], held["batch_stats"]
    deployed = [start] * len(COUNT)
    for _ in range(ROUNDS):
        found = [trained_by_flax(*deployed[k], k, optimizer) for k in range(len(COUNT))]
        mean = jax.tree.map(lambda *x: np.average(x, axis=0, weights=COUNT), *found)
        deployed = [
            tuple(
                {name: (own if name in keeps else shared)[name] for name in shared}
                for own, shared in zip(mine, mean, strict=True)
            )
            for mine in found
        ]
    return deployed


def engined(fed, **options):
    """[(params, stats) of each client's model] after the same rounds by the engine."""
    draws = np.tile(np.arange(len(COUNT)), (ROUNDS, 1))
    on = oracle.on_engine(fed, WORLD, **options)
    server, states, *_ = oracle.engine_rounds(on, WORLD, draws)
    found = []
    for k in range(len(COUNT)):
        base, theta = fed.deploy(server, states[k])
        held = lowrank.variables({**base, **theta.full})
        found.append((held["params"], held["batch_stats"]))
    return found


def decayed(rate):
    """Clipped, with moments and decay, none of which statistics may have."""
    return optax.chain(
        optax.clip_by_global_norm(0.5), optax.adamw(rate, weight_decay=0.1, eps=0.03)
    )


ON = [{}, {"devices": 4}, {"chunk": 1}]


@pytest.mark.parametrize("options", tiers.usual(ON, ON[2]))
def test_fedavg_averages_the_statistics_that_flax_computes(options):
    with jax.enable_x64(True):
        fed = fedavg(doubled(TASK), WORK, client_optimizer=decayed(RATE))
        oracle.assert_close(engined(fed, **options), looped(decayed(RATE)))


@pytest.mark.parametrize("options", tiers.usual(ON[:2], ON[1]))
def test_fedbn_keeps_the_norms_with_their_statistics(options):
    with jax.enable_x64(True):
        fed = fedper(doubled(TASK), WORK, personal="norm", client_optimizer=SGD)
        oracle.assert_close(engined(fed, **options), looped(SGD, keeps={"norm_0"}))
        server = fed.init(jax.random.key(0))
        assert not [p for p in trees.by_path(server.theta) if "norm" in p]


def theta_with_statistics():
    return jax.tree.map(jnp.asarray, begun()[1])


def test_optimizers_see_weights_alone_and_statistics_take_a_step_of_one():
    theta = theta_with_statistics()
    grads = jax.tree.map(lambda x: 0.1 + x, theta)
    optimizer = optax.chain(decayed(0.1), optax.normalize_by_update_norm(2.0))

    @partial(jax.jit, static_argnums=0)
    def first(optimizer, grads, theta):
        return optimizer.update(grads, optimizer.init(theta), theta)[0]

    updates = first(local.accepting(optimizer), grads, theta)
    alone = first(optimizer, *(trees.apart(tree)[0] for tree in (grads, theta)))
    oracle.assert_close(trees.apart(updates)[0], alone)
    steps = [x.value for x in trees.running(updates)]
    expected = [-x.value for x in trees.running(grads)]
    assert len(steps) == 2
    oracle.assert_close(steps, expected, rtol=0, atol=0)


def test_a_step_takes_statistics_where_flax_does_and_leaves_the_value_of_the_loss():
    base, theta = {}, theta_with_statistics()
    batch = {n: jnp.asarray(x[:4]) for n, x in WORLD.examples.items()}
    held = lowrank.variables(theta.full)
    (value, stats), _ = STEP(held["params"], held["batch_stats"], batch["image"], batch["label"])
    batch["mask"] = jnp.ones(4)
    slope = jax.jit(jax.value_and_grad(TASK.loss, 1))
    found, grads = slope(base, theta, batch, jax.random.key(1))
    np.testing.assert_allclose(found, value, rtol=1e-6)
    for path, s in trees.by_path(stats).items():
        step = theta.full[path].value - grads.full[path].value
        np.testing.assert_allclose(step, s, rtol=1e-5, atol=1e-6)


def test_evaluation_norms_by_the_running_statistics_whatever_else_is_in_the_batch():
    base, theta = {}, theta_with_statistics()
    full = {p: trees.Running(w.value + 0.3) if trees.is_running(w) else w
            for p, w in theta.full.items()}  # fmt: skip
    theta, x = Theta(full, {}), jnp.asarray(WORLD.examples["image"])
    expected = MODEL.apply(lowrank.variables(full), x[:1])
    found = TASK.predict(base, theta, {"image": x, "mask": jnp.ones(len(x))})
    np.testing.assert_allclose(found[:1], expected, rtol=1e-5)


def test_statistics_are_trained_whatever_is_selected_and_merged_beside_the_weights():
    base, theta = tasks.classification(MODEL, WORLD.examples, select=LORA).init(jax.random.key(0))
    assert {p for p, w in theta.full.items() if trees.is_running(w)} == {
        "norm_0/mean",
        "norm_0/var",
    }
    again = tasks.classification(MODEL, WORLD.examples, params=lowrank.merged(base, theta))
    oracle.assert_close(again.init(jax.random.key(1))[1].full["norm_0/var"].value, jnp.ones(4))


def test_compressed_uplinks_have_their_statistics_whole():
    change = jax.tree.map(lambda x: x + 0.01, theta_with_statistics())
    sent, size = compress.with_whole_statistics(compress.top(0.01))(change, jax.random.key(0))
    oracle.assert_close(trees.running(sent), trees.running(change))
    assert sum(int(jnp.sum(x != 0)) for x in jax.tree.leaves(trees.apart(sent)[0])) == 1
    assert int(trees.byte_count((), size)[1]) == 8 + 2 * 4 * 4


def test_feddyn_averages_statistics_without_its_correction():
    work = local.Work(8, steps=1)
    fed = feddyn(TASK, work, penalty=0.5, clients=3, client_optimizer=SGD)
    plain = fedavg(TASK, work, client_optimizer=SGD, mean=uniform)
    after, expected = (oracle.rounds(each, WORLD, [[0, 1, 2]])[0] for each in (fed, plain))
    found = trees.running(after.theta)
    oracle.assert_close(found, trees.running(expected.theta), rtol=1e-5)
    assert not any(jnp.any(x.value) for x in trees.running(after.h))


def uniform(stacked, weight):
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), stacked)


def refusing():
    lora = tasks.classification(MODEL, WORLD.examples, select=LORA)
    mixed = {"share": 0.5, "share_rate": 0.1, "client_optimizer": SGD, "personal_optimizer": SGD}
    two = {"rank": 1, "inner_rate": 0.1, "upper_optimizer": SGD, "keep_moments": False}
    dat = {"rank": 1, "distillation": 1.0, "temperature": 3.0, "client_optimizer": SGD}
    meta = {"gradient": first_order, "minibatches": same, "personal_work": WORK}
    return {
        "meta-gradient": perfedavg(TASK, WORK, inner_rate=0.1, client_optimizer=SGD, **meta),
        "mixture": apfl(TASK, WORK, **mixed),
        "hypergradient": pf2lora(lora, WORK, **two, personal_head=False),
        "predictions": feddat(lora, WORK, **dat),
        "server_learning_rate=2.0": scaffold(
            TASK, WORK, learning_rate=RATE, clients=3, server_learning_rate=2.0
        ),
    }


def test_algorithms_that_would_not_be_right_refuse_in_a_sentence():
    for reason, fed in refusing().items():
        with pytest.raises(ValueError, match=f"2 running statistics.*{reason}.*use nn.GroupNorm"):
            jax.eval_shape(fed.init, jax.random.key(0))


def test_noise_for_privacy_is_refused_unless_clients_keep_the_norms():
    pytest.importorskip("dp_accounting")
    limits = {"clip": 1.0, "noise": 1.0, "clients": 3, "cohort_size": 3, "rounds": 2, "delta": 0.1}
    average = combine.private(fedavg(TASK, WORK, client_optimizer=SGD), **limits)
    kept = fedper(TASK, WORK, personal="norm", client_optimizer=SGD)
    with pytest.raises(ValueError, match="noise would make variances negative"):
        jax.eval_shape(average.init, jax.random.key(0))
    jax.eval_shape(combine.private(kept, **limits).init, jax.random.key(0))


class Rows(nn.Module):
    """Two rows an example, normed together."""

    @nn.compact
    def __call__(self, x, train=False):
        rows = nn.BatchNorm(use_running_average=not train)(x[:, :4].reshape(-1, 2))
        return nn.Dense(3)(rows.reshape(len(x), 4))


class Counting(nn.Module):
    """It counts its calls."""

    @nn.compact
    def __call__(self, x):
        self.variable("batch_stats", "calls", lambda: jnp.int32(0))
        return nn.Dense(3)(x)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (Rows(), "BatchNorm_0: the norm gets 2 rows of a batch of 1 examples.*`mask`"),
        (Counting(), "keeps calls of int32 beside its parameters"),
    ],
)
def test_statistics_that_cannot_be_shared_are_refused(model, match):
    with pytest.raises(ValueError, match=match):
        tasks.classification(model, WORLD.examples)


@pytest.mark.full
def test_a_resnet_with_running_norms_is_trained():
    model = models.ResNet((1,), 3, widths=(4,), norm="running")
    image = np.random.default_rng(0).normal(size=(8, 4, 4, 1)).astype(np.float32)
    task = tasks.classification(model, {"image": image, "label": np.arange(8) % 3})
    base, theta = task.init(jax.random.key(0))
    batch = {"image": image, "label": jnp.arange(8) % 3, "mask": jnp.ones(8)}
    grads = jax.grad(task.loss, 1)(base, theta, batch, jax.random.key(1))
    assert all(jnp.any(x != 0) for x in jax.tree.leaves(trees.running(grads)))
    assert len(trees.running(theta)) == 6
