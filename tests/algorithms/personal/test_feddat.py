"""FedDAT against a loop with the logits written out."""

import jax
import jax.numpy as jnp
import numpy as np
import one_layer
import optax
import oracle
import pytest
from bilinear import bilinear

from jaxfed import local
from jaxfed.algorithms import feddat

DRAWS = [[0, 4, 7], [4, 2, 1]]
WORK = local.Work(16, epochs=2, shuffle=False)  # all of a client's examples in each step
RATE, T = 0.3, 2.0


def made(distillation, task=None):
    return feddat(
        one_layer.task() if task is None else task,
        WORK,
        rank=1,
        alpha=0.8,
        distillation=distillation,
        temperature=T,
        client_optimizer=optax.sgd(RATE),
    )


def kl(p, q):
    """T^2 KL(softmax(p / T) || softmax(q / T)), averaged over examples."""
    p, q = (jax.nn.softmax(z / T) for z in (p, q))
    return T**2 * jnp.mean(jnp.sum(p * (jnp.log(p) - jnp.log(q)), axis=1))


def looped(fed, c):
    """(shared (bias, g), {client: local adapter})."""
    weight, bias, g, s = one_layer.start()
    begun = one_layer.pair(fed.init_client(fed.init(jax.random.key(0)), jax.random.key(1)))
    shared, own = (bias, g), dict.fromkeys(range(9), begun)

    def loss(both, x, y, frozen):
        (bias, g), mine = both
        plain = x @ weight + bias
        z_g = plain + one_layer.added(g, s, x)
        z_m = plain + one_layer.added(frozen, s, x) / 2 + one_layer.added(mine, 0.8, x) / 2
        fit = one_layer.cross_entropy(z_g, y) + one_layer.cross_entropy(z_m, y)
        still_g, still_m = jax.lax.stop_gradient((z_g, z_m))
        return (fit + c * kl(still_m, z_g) + c * kl(still_g, z_m)) / 2

    for ids in DRAWS:
        ends = []
        for i in ids:
            data = *one_layer.rows(i), shared[1]
            new, own[i] = one_layer.descended(loss, (shared, own[i]), RATE, 2, *data)
            ends.append(new)
        count = one_layer.WORLD.count[ids]
        shared = one_layer.mean(ends, count / count.sum())
    return shared, own


@pytest.mark.parametrize("c", [0.0, 0.7])
def test_both_adapters_learn_from_labels_and_from_each_other(x64, c):
    """With c = 0 they are two trainings that share the bias alone."""
    fed = made(c)
    server, states, _ = oracle.rounds(fed, one_layer.WORLD, DRAWS)
    (bias, g), own = looped(fed, c)
    oracle.assert_close(
        (server.theta.full[one_layer.BIAS], one_layer.pair(server.theta)), (bias, g)
    )
    for i, mine in own.items():
        oracle.assert_close(one_layer.pair(states[i]), mine)


def test_a_client_deploys_half_of_each_adapter(x64):
    fed = made(1.0)
    server, states, _ = oracle.rounds(fed, one_layer.WORLD, DRAWS[:1])
    weight, _, _, s = one_layer.start()
    x, _ = one_layer.rows(4)
    base, theta = fed.deploy(server, states[4])
    batch = {"image": x, "mask": jnp.ones(len(x))}
    halves = one_layer.added(one_layer.pair(server.theta), s / 2, x)
    halves += one_layer.added(one_layer.pair(states[4]), 0.4, x)
    expected = x @ weight + server.theta.full[one_layer.BIAS] + halves
    np.testing.assert_allclose(fed.task.predict(base, theta, batch), expected, rtol=1e-6)


def test_a_task_without_predictions_is_refused():
    with pytest.raises(ValueError, match="the task has no `predict`"):
        made(1.0, task=bilinear([2]).task)
