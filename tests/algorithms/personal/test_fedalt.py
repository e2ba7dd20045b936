"""FedALT against a loop that keeps every client's adapter, with the gate written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import one_layer
import optax
import oracle
import pytest

from jaxfed import combine, local, lowrank
from jaxfed.algorithms import fedalt
from jaxfed.combine import compress
from jaxfed.lowrank import restarts

DRAWS = [[0, 4, 7], [4, 2, 1]]
WORK = local.Work(16, epochs=2, shuffle=False)
RATE, N = 0.3, 9


def made(clients=N):
    return fedalt(one_layer.task(), WORK, clients=clients, client_optimizer=optax.sgd(RATE))


def logits(weight, s, bias, rest, own, router, x):
    gate = jax.nn.softmax(x @ router)
    plain = x @ weight + bias
    shared, mine = one_layer.added(rest, s, x), one_layer.added(own, s, x)
    return plain + gate[:, :1] * shared + gate[:, 1:] * mine


@pytest.mark.full
def test_each_client_sees_the_mean_of_all_others_also_of_those_not_drawn(x64):
    fed = made()
    server, states, _ = oracle.rounds(fed, one_layer.WORLD, DRAWS)
    weight, bias, first, s = one_layer.start()
    own, routers = dict.fromkeys(range(N), first), dict.fromkeys(range(N), jnp.zeros((5, 2)))

    def rest(i):
        return one_layer.mean([own[j] for j in range(N) if j != i], [1 / (N - 1)] * (N - 1))

    def loss(p, x, y, others):
        return one_layer.cross_entropy(logits(weight, s, p[0], others, p[1], p[2], x), y)

    for ids in DRAWS:
        others, ends = {i: rest(i) for i in ids}, []
        for i in ids:
            begin, data = (bias, own[i], routers[i]), (*one_layer.rows(i), others[i])
            end, own[i], routers[i] = one_layer.descended(loss, begin, RATE, 2, *data)
            ends.append(end)
        count = one_layer.WORLD.count[ids]
        bias = one_layer.mean(ends, count / count.sum())
    assert np.abs(routers[4]).max() > 1e-4
    for i in range(N):
        oracle.assert_close(one_layer.pair(states[i].own), own[i])
        oracle.assert_close(states[i].router[one_layer.PATH], routers[i])
    x, _ = one_layer.rows(3)
    base, theta = fed.deploy(server, states[4])
    found = fed.task.predict(base, theta, {"image": x, "mask": jnp.ones(len(x))})
    expected = logits(weight, s, bias, rest(4), own[4], routers[4], x)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_a_client_deploys_has_no_weights_to_merge():
    fed = made()
    server = fed.init(jax.random.key(0))
    base, theta = fed.deploy(server, fed.init_client(server, jax.random.key(1)))
    with pytest.raises(ValueError, match="another product for every input"):
        lowrank.merged(base, theta)


def test_a_world_of_one_client_is_refused():
    with pytest.raises(ValueError, match="clients=1"):
        made(clients=1)


@pytest.mark.parametrize(
    ("wrap", "what"),
    [
        (partial(combine.compressed, compress=compress.top(0.5)), "a compressed upload"),
        (partial(combine.flasc, down=1.0, up=0.5), "a sparse upload"),
        (combine.skip_nonfinite, "another client's upload"),
        (partial(combine.accumulate, every=1, restart=restarts.reinit), "a merge into the base"),
    ],
)
def test_wrappers_that_change_what_clients_upload_are_refused(wrap, what):
    fed = fedalt(one_layer.task(), WORK, clients=2, client_optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=f"a mean of what clients keep, and {what} .*would part"):
        wrap(fed)
