"""PF2LoRA against its formulas, written down in numpy with every derivative by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from jaxfed import aggregate, hypergrad, local, lowrank
from jaxfed.algorithms import fedavg, fedper, pf2lora
from jaxfed.algorithms.personal.pf2lora import halves
from jaxfed.lowrank import Factors, Theta
from jaxfed.simulation import ledger
from jaxfed.tasks import Task

INPUTS, OUTPUTS, RANK, PERSONAL, SCALE = 4, 3, 2, 1, 0.5
ALPHA, ETA, STEPS = 0.1, 0.07, 3
COUNT = [6, 6, 6]
DRAWS = [[0, 2], [1, 0], [2, 1]]
WORK = local.Work(6, steps=STEPS, shuffle=False)
RNG = np.random.default_rng(0)
START = {
    "W": RNG.normal(size=(INPUTS, OUTPUTS)),
    "A": RNG.normal(size=(INPUTS, RANK)),
    "B": RNG.normal(size=(RANK, OUTPUTS)),
    "bias": RNG.normal(size=OUTPUTS),
}
WORLD = oracle.World(
    {"x": RNG.normal(size=(18, INPUTS)), "y": RNG.normal(size=(18, OUTPUTS))}, np.array(COUNT)
)
pytestmark = pytest.mark.usefixtures("x64")


def loss(base, theta, batch, key):
    """1/2 mean |x (W + s_1 A B + s_2 C D) + bias - y|^2, of a layer called `w`."""
    f = theta.factors["w"]
    said = batch["x"] @ base["w"] + f.scale * batch["x"] @ f.a @ f.b + theta.full["bias"]
    squared = jnp.sum((said - batch["y"]) ** 2, axis=1) / 2
    return jnp.sum(squared * batch["mask"]) / jnp.sum(batch["mask"])


def begun(key):
    factors = Factors(jnp.asarray(START["A"]), jnp.asarray(START["B"]), 1.0)
    theta = Theta({"bias": jnp.asarray(START["bias"])}, {"w": factors})
    return {"w": jnp.asarray(START["W"])}, theta


TASK = Task(begun, loss, None)


def made(**options):
    given = {
        "rank": PERSONAL,
        "inner_rate": ALPHA,
        "scale": SCALE,
        "upper_optimizer": optax.sgd(ETA),
        "keep_moments": False,
        "personal_head": False,
    } | options
    return pf2lora(TASK, given.pop("work", WORK), **given)


class Layer:
    """f(A, B, bias, C, D) of one client's rows: its residual, gradient, and cross term, by hand."""

    def __init__(self, rows):
        self.x, self.y = (WORLD.examples[n][rows] for n in ("x", "y"))

    def residual(self, x, y):
        (a, b, bias), (c, d) = x, y
        return self.x @ (START["W"] + a @ b + SCALE * c @ d) + bias - self.y  # [n, out]

    def kernel(self, x, y):
        """The derivative by the kernel, X'(X W - Y) / n."""
        return self.x.T @ self.residual(x, y) / len(self.x)

    def by_x(self, x, y):
        (a, b, _), g = x, self.kernel(x, y)
        return [g @ b.T, a.T @ g, self.residual(x, y).mean(0)]

    def by_y(self, x, y):
        (c, d), g = y, self.kernel(x, y)
        return [SCALE * g @ d.T, SCALE * c.T @ g]

    def cross(self, x, y, v):
        """grad_xy f v: how by_x changes as y moves along v."""
        (a, b, _), (c, d), (vc, vd) = x, y, v
        moved = self.x @ (SCALE * (vc @ d + c @ vd))  # [n, out], of the residual
        g = self.x.T @ moved / len(self.x)
        return [g @ b.T, a.T @ g, moved.mean(0)]


def minus(x, rate, g):
    return [w - rate * d for w, d in zip(x, g, strict=True)]


def one_step(low, up, x, y):
    after = minus(y, ALPHA, low.by_y(x, y))
    return minus(up.by_x(x, after), ALPHA, low.cross(x, y, up.by_y(x, after))), after


def alternating(low, up, x, y):
    after = minus(y, ALPHA, low.by_y(x, y))
    return up.by_x(x, after), after


def simultaneous(low, up, x, y):
    return up.by_x(x, y), minus(y, ALPHA, low.by_y(x, y))


def first_y():
    """The personal factors that every client of the oracle begins with."""
    fed = made()
    y = fed.init_client(fed.init(jax.random.key(0)), jax.random.key(1)).y["w"]
    return [np.asarray(y.a), np.asarray(y.b)]


def by_hand(gradient, split=lambda rows: (rows, rows), personal_head=False):
    """(x, {i: y_i}, {i: its head}) after the rounds of DRAWS."""
    x = [START[n] for n in ("A", "B", "bias")]
    ys, heads = {i: first_y() for i in range(3)}, dict.fromkeys(range(3), START["bias"])
    for drawn in DRAWS:
        ends = []
        for i in drawn:
            low, up = (Layer(rows) for rows in split(np.arange(6 * i, 6 * i + 6)))
            own, y = ([*x[:2], heads[i]] if personal_head else x), ys[i]
            for _ in range(STEPS):
                h, y = gradient(low, up, own, y)
                own = minus(own, ETA, h)
            ys[i], heads[i] = y, own[2]
            ends.append(own)
        means = [np.mean(leaves, axis=0) for leaves in zip(*ends, strict=True)]
        x = means[:2] + x[2:] if personal_head else means
    return x, ys, heads


def assert_agree(fed, expected, personal_head=False):
    x, ys, heads = expected
    server, states, _ = oracle.rounds(fed, WORLD, DRAWS)
    f = server.theta.factors["w"]
    np.testing.assert_allclose(f.a, x[0], rtol=1e-9)
    np.testing.assert_allclose(f.b, x[1], rtol=1e-9)
    for i, y in ys.items():
        np.testing.assert_allclose(states[i].y["w"].a, y[0], rtol=1e-9)
        np.testing.assert_allclose(states[i].y["w"].b, y[1], rtol=1e-9)
    if personal_head:
        assert server.theta.full == {}
        for i, bias in heads.items():
            np.testing.assert_allclose(states[i].head["bias"], bias, rtol=1e-9)
    else:
        np.testing.assert_allclose(server.theta.full["bias"], x[2], rtol=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (hypergrad.one_step, one_step),
        (hypergrad.alternating, alternating),
        (hypergrad.simultaneous, simultaneous),
    ],
)
def test_rounds_are_those_of_the_paper_and_of_its_ablations(ours, theirs):
    assert_agree(made(gradient=ours), by_hand(theirs))


def test_a_fresh_minibatch_is_what_the_upper_level_sees_at_y_plus():
    fed = made(minibatches=halves)
    assert_agree(fed, by_hand(one_step, split=lambda rows: (rows[::2], rows[1::2])))


def test_a_batch_that_has_no_halves_is_refused():
    fed = made(minibatches=halves, work=local.Work(3, steps=1))
    with pytest.raises(ValueError, match="a batch of 3 has no halves"):
        oracle.rounds(fed, WORLD, [[0]])


def test_a_personal_head_is_trained_by_the_upper_level_and_stays_at_home():
    fed = made(personal_head=True)
    assert_agree(fed, by_hand(one_step, personal_head=True), personal_head=True)


@pytest.mark.parametrize("personal_head", [False, True])
def test_what_is_sent_are_the_common_factors_and_a_common_head(personal_head):
    fed = made(personal_head=personal_head)
    server = jax.eval_shape(fed.init, jax.random.key(0))
    state = fed.init_client(fed.init(jax.random.key(0)), jax.random.key(0))
    wire, _ = ledger.most(fed, server, oracle.cohort(WORLD, [state] * 2, [0, 1], 0))
    numbers = RANK * (INPUTS + OUTPUTS) + (0 if personal_head else OUTPUTS)
    assert wire == ledger.Wire(8 * numbers, 8 * numbers)


def test_moments_are_kept_across_an_average_or_begin_anew():
    """Momentum by hand, of one client alone: the average is then its own."""
    alone = WORLD._replace(count=np.array([6]))
    for keep in (True, False):
        fed = made(upper_optimizer=optax.sgd(ETA, momentum=0.9), keep_moments=keep)
        server, states, _ = oracle.rounds(fed, alone, [[0], [0]])
        x, y, layer = [START[n] for n in ("A", "B", "bias")], first_y(), Layer(np.arange(6))
        moment = zero = [np.zeros_like(w) for w in x]
        for step in range(2 * STEPS):
            moment = zero if step == STEPS and not keep else moment
            h, y = one_step(layer, layer, x, y)
            moment = [0.9 * m + d for m, d in zip(moment, h, strict=True)]
            x = minus(x, ETA, moment)
        np.testing.assert_allclose(server.theta.factors["w"].a, x[0], rtol=1e-9)
        assert (states[0].opt == ()) is not keep


class AdamW:
    """optax.adamw(rate, weight_decay=wd) of a list of arrays, in numpy."""

    def __init__(self, rate, wd=0.01, b1=0.9, b2=0.999, eps=1e-8):
        self.rate, self.wd, self.b1, self.b2, self.eps = rate, wd, b1, b2, eps
        self.restart()

    def restart(self):
        self.t, self.m, self.v = 0, 0.0, 0.0

    def stepped(self, y, g):
        self.t += 1
        y, g = (np.concatenate([np.ravel(x) for x in xs]) for xs in (y, g))
        self.m = self.b1 * self.m + (1 - self.b1) * g
        self.v = self.b2 * self.v + (1 - self.b2) * g**2
        m, v = self.m / (1 - self.b1**self.t), self.v / (1 - self.b2**self.t)
        y = y - self.rate * (m / (np.sqrt(v) + self.eps) + self.wd * y)
        return [y[:INPUTS].reshape(INPUTS, PERSONAL), y[INPUTS:].reshape(PERSONAL, OUTPUTS)]


def test_sgd_as_the_personal_optimizer_is_the_alternation():
    fed = made(inner_rate=None, personal_optimizer=optax.sgd(ALPHA))
    assert_agree(fed, by_hand(alternating))


@pytest.mark.parametrize("keep", [True, False])
def test_adamw_on_the_lower_level_is_that_of_a_loop(keep):
    """Of one client alone. Its moments are kept across an average or restart with the round."""
    alone = WORLD._replace(count=np.array([6]))
    adamw = optax.adamw(ALPHA, weight_decay=0.01)
    fed = made(inner_rate=None, personal_optimizer=adamw, keep_moments=keep)
    server, states, _ = oracle.rounds(fed, alone, [[0], [0]])
    x, y, layer = [START[n] for n in ("A", "B", "bias")], first_y(), Layer(np.arange(6))
    lower = AdamW(ALPHA)
    for step in range(2 * STEPS):
        if step == STEPS and not keep:
            lower.restart()
        y = lower.stepped(y, layer.by_y(x, y))
        x = minus(x, ETA, layer.by_x(x, y))
    np.testing.assert_allclose(states[0].y["w"].a, y[0], rtol=1e-7)
    np.testing.assert_allclose(states[0].y["w"].b, y[1], rtol=1e-7)
    np.testing.assert_allclose(server.theta.factors["w"].b, x[1], rtol=1e-7)


def test_personal_factors_that_start_at_random_are_not_zero_and_those_of_a_client_alone():
    zero, random = (made(up=up) for up in ("zero", "random"))
    server = zero.init(jax.random.key(0))
    for fed, start in ((zero, True), (random, False)):
        first, second = (fed.init_client(server, jax.random.key(i)).y["w"] for i in range(2))
        assert bool(jnp.all(first.b == 0)) is start
        assert bool(jnp.all(first.b == second.b)) is start
        bound = 1 / np.sqrt(PERSONAL)
        assert jnp.all(jnp.abs(first.b) <= bound)
    same = (fed.init_client(server, jax.random.key(0)).y["w"].a for fed in (zero, random))
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize("personal_head", [False, True])
def test_without_its_lower_level_it_is_homlora_with_heads_that_start_alike(personal_head):
    """A rate of zero leaves the personal factors at a product of zero."""
    fed = made(inner_rate=0.0, personal_head=personal_head)
    options = {"client_optimizer": optax.sgd(ETA), "mean": aggregate.uniform_mean}
    plain = (
        fedper(TASK, WORK, personal="^full/", common_start=True, **options)
        if personal_head
        else fedavg(TASK, WORK, **options)
    )
    server, states, metrics = oracle.rounds(fed, WORLD, DRAWS)
    expected, kept, losses = oracle.rounds(plain, WORLD, DRAWS)
    for i in range(3):
        ours = lowrank.merged(*fed.deploy(server, states[i]))
        oracle.assert_close(ours, lowrank.merged(*plain.deploy(expected, kept[i])), rtol=1e-9)
    for found, loss in zip(metrics, losses, strict=True):
        np.testing.assert_allclose(found["loss"], loss["loss"], rtol=1e-9)


def test_a_client_runs_both_adapters_and_begins_as_the_model_was():
    fed = made(personal_head=True)
    server = fed.init(jax.random.key(0))
    base, theta = begun(None)
    state = fed.init_client(server, jax.random.key(5))
    np.testing.assert_allclose(
        lowrank.merged(*fed.deploy(server, state))["w"], lowrank.merged(base, theta)["w"]
    )
    other = fed.init_client(server, jax.random.key(6))
    assert jnp.all(state.y["w"].a != other.y["w"].a)
    y = {"w": Factors(jnp.ones((INPUTS, 1)), jnp.ones((1, OUTPUTS)), SCALE)}
    own = state._replace(y=y, head={"bias": jnp.full(OUTPUTS, 7.0)})
    run = lowrank.merged(*fed.deploy(server, own))
    np.testing.assert_allclose(run["w"], START["W"] + START["A"] @ START["B"] + SCALE)
    np.testing.assert_allclose(run["bias"], 7)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match=r"inner_rate=-0\.1"):
        made(inner_rate=-0.1)
    with pytest.raises(ValueError, match="one of the two, for the lower level"):
        made(personal_optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="one of the two, for the lower level"):
        made(inner_rate=None)
    with pytest.raises(ValueError, match="gradient is for SGD"):
        made(
            inner_rate=None,
            personal_optimizer=optax.sgd(0.1),
            gradient=hypergrad.simultaneous,
        )
    fed = made(up="ones")
    server = fed.init(jax.random.key(0))
    with pytest.raises(ValueError, match="up='ones'"):
        fed.init_client(server, jax.random.key(0))
    bare = TASK._replace(init=lambda key: ({}, begun(key)[1]._replace(factors={})))
    fed = pf2lora(
        bare,
        WORK,
        rank=1,
        inner_rate=0.1,
        upper_optimizer=optax.sgd(0.1),
        keep_moments=False,
        personal_head=False,
    )
    with pytest.raises(ValueError, match="nothing is common"):
        fed.init(jax.random.key(0))
