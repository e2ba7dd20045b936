"""FLOPs: loops by their length, branches, and rounds against unrolled programs and arithmetic."""

from functools import partial

import flops_table
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend import core

from jaxfed import local, lowrank, models, tasks
from jaxfed.algorithm import Algorithm, Cohort, Data, client_slice
from jaxfed.algorithms import fdlora, fedavg, fedloru, pf2lora
from jaxfed.lowrank import restarts
from jaxfed.simulation import flops

SQUARE = jax.ShapeDtypeStruct((32, 32), jnp.float32)
PRODUCT = 2 * 32**3

BATCH, WIDTH, CLASSES, RANK, CLIENTS = 64, 512, 2, 4, 3
LAYER = 2 * BATCH * WIDTH * WIDTH  # the product of a layer with its kernel
DOWN = 2 * BATCH * WIDTH * RANK  # with one factor
HEAD = 2 * BATCH * WIDTH * CLASSES
SHAPES = {
    "image": jax.ShapeDtypeStruct((CLIENTS * 4 * BATCH, WIDTH), jnp.float32),
    "label": jax.ShapeDtypeStruct((CLIENTS * 4 * BATCH,), jnp.int32),
}
EPOCH = local.Work(BATCH, epochs=1, shuffle=False)
STEPS = local.Work(BATCH, steps=5, drop_remainder=True)
SGD = optax.sgd(0.1)


def power(n, x):
    return jax.lax.fori_loop(0, n, lambda _, y: x @ y, x)


def until_small(x):
    return jax.lax.while_loop(lambda y: jnp.sum(y) > 1, lambda y: y @ y, x)


def either(yes, x):
    return jax.lax.cond(yes, lambda x: x @ x @ x, lambda x: x, x)


def growing(n, x):
    """As long as a carried number, doubled in each step, is below n; another is carried along."""
    return jax.lax.while_loop(
        lambda c: (c[0] < n) & (c[1] > 0), lambda c: (2 * c[0], c[1], c[2] @ c[2]), (1, 1, x)
    )[2]


def constants_carried_and_slices(n, x):
    """A scan whose constant n is the length of a loop in each of 4 steps."""
    return jax.lax.scan(lambda y, z: (power(n, y), z @ x), x, jnp.stack([x] * 4))


@pytest.mark.quick
@pytest.mark.parametrize(
    ("function", "arguments", "products"),
    [
        (power, (3,), 3),
        (lambda n, x: power(n + 1, power(2 * n, x)), (3,), 10),
        (lambda n, x: jax.lax.fori_loop(0, n, lambda _, y: jax.jit(power)(n, y), x), (3,), 9),
        (lambda x: jax.lax.scan(lambda y, _: (power(3, y), None), x, length=4)[0], (), 12),
        (growing, (100,), 7),
        (either, (True,), 2),
        (either, (jax.ShapeDtypeStruct((), bool),), 2),
        (lambda n, x: either(n > 5, x) @ x, (3,), 1),
        (jax.grad(lambda x: jnp.sum(power(3, x))), (), 3 + 2 * 3),
        (lambda x: jax.checkpoint(partial(power, 3))(x), (), 3),
        (lambda x: (x @ x, x @ x @ x)[0], (), 1),  # nobody needs the others
        (lambda n, x: jax.lax.cond(n > 5, until_small, lambda x: x @ x, x), (3,), 1),
        (lambda x: x @ x + power(3, jax.jit(jnp.matmul)(x, x)), (), 1 + 3),  # one is made once
        (lambda x: jax.lax.scan(lambda y, _: (y @ x, x @ y), x, length=4)[0], (), 4),
        (constants_carried_and_slices, (3,), 4 * (3 + 1)),
    ],
)
def test_a_loop_counts_as_often_as_it_runs(function, arguments, products):
    count = flops.counted(function, *arguments, SQUARE)
    assert products <= count.flops / PRODUCT < 1.01 * products  # the rest are sums and indices
    assert count.unbounded == 0


@pytest.mark.parametrize("function", [until_small, lambda x: power(jnp.int32(jnp.sum(x)), x)])
def test_a_loop_of_unknown_length_is_counted_once_and_told(function):
    count = flops.counted(function, SQUARE)
    assert count.flops == pytest.approx(PRODUCT, rel=0.05)
    assert count.unbounded == 1


def classifier(depth, select=lowrank.everything):
    examples = jax.tree.map(lambda s: np.zeros((2, *s.shape[1:]), s.dtype), SHAPES)
    return tasks.classification(models.MLP((WIDTH,) * depth, CLASSES), examples, select=select)


def lora(depth):
    select = lowrank.Select(factors="dense.*kernel", full="head", rank=RANK, alpha=1.0)
    return classifier(depth, select)


def cohort(algorithm) -> tuple[object, Cohort]:
    """(server, cohort) of CLIENTS clients, as shapes."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    server = jax.eval_shape(algorithm.init, key)
    one = jax.eval_shape(algorithm.init_client, server, key)
    state = jax.tree.map(lambda s: jax.ShapeDtypeStruct((CLIENTS, *s.shape), s.dtype), one)
    number, share = (jax.ShapeDtypeStruct((CLIENTS,), t) for t in (jnp.int32, jnp.float32))
    keys = jax.eval_shape(lambda k: jax.random.split(k, CLIENTS), key)
    now = jax.ShapeDtypeStruct((), jnp.int32)
    data = Data(SHAPES, number, 4 * BATCH)
    return server, Cohort(state, data, number, share, keys, number, now, key)


def clients(algorithm: Algorithm, count, number=0) -> np.ndarray:
    """FLOPs of clients with so many examples in a round, or in several."""
    pairs = np.broadcast_arrays(count, number)
    found = flops.counted_round(algorithm, *cohort(algorithm), *pairs)
    assert found.client.unbounded == found.server.unbounded == 0
    return found.client.flops


ALGORITHMS = {
    "fedavg": (
        lambda work: fedavg(classifier(1), work, client_optimizer=SGD),
        2 * LAYER + 3 * HEAD,  # forwards, and the kernel's gradient; of the head the input's too
    ),
    "fedloru": (
        lambda work: fedloru(lora(1), work, every=2, restart=restarts.reinit, client_optimizer=SGD),
        LAYER + (2 + 3) * DOWN + 3 * HEAD,  # W; both factors forwards; dA, dB and d(x A)
    ),
    # Of W, in the first layer: once, forwards for y and y+. In the second: forwards, backwards at
    # both, and the tangents of these at y. Factors: 5 products at y, 8 for the tangents, 5 at y+;
    # in the second layer 6, 12 and 6, as its input, too, has a gradient and a tangent.
    # Head: 2 at y, where nobody needs its gradient, 4 for the tangents, 3 at y+.
    "pf2lora": (
        lambda work: pf2lora(
            lora(2),
            work,
            rank=1,
            inner_rate=0.1,
            upper_optimizer=SGD,
            keep_moments=False,
            personal_head=False,
        ),
        (1 + 6) * LAYER + (18 + 24) * DOWN * (RANK + 1) / RANK + 9 * HEAD,
    ),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_local_step_costs_its_products_by_hand(name):
    make, products = ALGORITHMS[name]
    one, two, four = clients(make(EPOCH), [BATCH, BATCH + 1, 4 * BATCH])
    assert four - two == 2 * (two - one)  # steps cost the same
    assert products <= two - one < 1.02 * products  # activations, biases and the optimizer
    assert one < 1.01 * (two - one)  # beside steps there is little


@pytest.mark.full
@pytest.mark.parametrize(("name", "steps"), [("fedavg", 3), ("pf2lora", 1), ("pf2lora", 3)])
def test_a_client_costs_what_xla_counts_in_the_unrolled_compiled_program(name, steps):
    algorithm = ALGORITHMS[name][0](EPOCH)
    programs = []

    def unrolling(client, base, message, cohort):
        k = jax.eval_shape(lambda c: client_slice(c, 0), cohort)
        shapes = jax.eval_shape(lambda *x: x, base, message, k)
        with jax.disable_jit():  # a loop of known length is then as many copies of its body
            program, reply = jax.make_jaxpr(
                lambda base, message, k: client(base, message, k._replace(count=steps * BATCH)),
                return_shape=True,
            )(*shapes)
        programs.append(program)
        return jax.tree.map(lambda x: jnp.zeros((CLIENTS, *x.shape), x.dtype), reply)

    jax.eval_shape(lambda s, c: algorithm.run_round(s, c, unrolling), *cohort(algorithm))
    (program,) = programs
    assert not {"while", "scan"} & {eqn.primitive.name for eqn in program.eqns}
    lowered = jax.jit(core.jaxpr_as_fun(program)).lower(*(v.aval for v in program.jaxpr.invars))
    expected = lowered.compile().cost_analysis()["flops"]
    np.testing.assert_allclose(clients(algorithm, [steps * BATCH]), expected, rtol=5e-3)


def test_work_in_steps_costs_the_same_for_all_and_nothing_without_examples():
    none, few, many = clients(fedavg(classifier(1), STEPS, client_optimizer=SGD), [0, 3, 200])
    assert few == many
    assert none < 0.02 * many


def test_stages_of_an_algorithm_cost_what_is_done_in_them():
    """FDLoRA: one epoch in round 0; two while rounds last; then a search on losses alone."""
    algorithm = fdlora(
        lora(1),
        local.Work(BATCH, epochs=2, shuffle=False),
        rounds=3,
        sync=None,
        personal_work=EPOCH,
        personal_optimizer=SGD,
        inner_optimizer=SGD,
        outer_optimizer=SGD,
        shots=BATCH,
        search=6,
    )
    first, second, last = clients(algorithm, [BATCH], [0, 3, 4])
    forwards = LAYER + 2 * 2 * DOWN + HEAD  # with two adapters, joined
    assert second == pytest.approx(2 * first, rel=0.01)
    assert last == pytest.approx((1 + 4 * 6) * forwards, rel=0.05)


def test_the_server_costs_a_mean_and_now_and_then_a_merge():
    """A merge that is due after round t is made at the start of the next."""
    algorithm = ALGORITHMS["fedloru"][0](EPOCH)
    rounds = np.arange(5)
    found = flops.counted_round(
        algorithm, *cohort(algorithm), np.full(5, BATCH), rounds
    ).server.flops
    trained = 2 * WIDTH * RANK + (WIDTH + 1) * CLASSES + WIDTH
    assert 2 * CLIENTS * trained <= found[0] < 6 * CLIENTS * trained
    merge = 2 * WIDTH * RANK * WIDTH
    np.testing.assert_array_equal(found - found[0] > merge, [False, False, True, False, True])
    assert found[2] - found[0] < 2 * merge


@pytest.mark.full
def test_the_script_of_all_algorithms_compares_like_with_like():
    model = flops_table.mlp()
    made = flops_table.rows(model.task)
    names = (flops_table.AGAINST, "SCAFFOLD", "centralised")
    homlora, scaffold, central = (flops_table.count(made[n], model.examples) for n in names)
    assert scaffold["up"] == 2 * homlora["up"] == 2 * 4 * (8 * (784 + 200) + 200 * 10 + 10)
    assert central["round"] == pytest.approx(homlora["round"], rel=0.03)  # ten rounds of one step
    products = 2 * flops_table.BATCH * (784 * 200 + 3 * 8 * 200 + 2 * 8 * 784 + 3 * 200 * 10)
    assert 1 < homlora["round"] / (flops_table.CLIENTS * flops_table.STEPS * products) < 1.1
    assert not homlora["unbounded"]
    # Three derivatives on their own, each of which goes through the first layer as HOMLoRA's does.
    assert flops_table.one_by_one(model.task(8), model.examples) > 2.9
    like = dict.fromkeys([name for _, name in flops_table.PAPER.values()], homlora)
    assert "| PF2LoRA | 1202.4 | 4.65 | 0.0 | 1.00 |" in flops_table.beside(like)
