"""FedMS: FedAvg, then local experts behind routers that are averaged; its bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import one_layer
import optax
import oracle

from jaxfed import local, trees
from jaxfed.algorithms import fedavg, fedms

DRAWS = [[0, 4, 7], [4, 2, 1], [2, 8, 4]]
WORK = local.Work(16, epochs=2, shuffle=False)
LONGER = local.Work(16, epochs=3, shuffle=False)
RATE = 0.3


def test_experts_and_routers_are_trained_after_the_first_stage(x64):
    """Client 4 takes part in both later rounds, and receives the expert in the first of them."""
    fed = fedms(
        one_layer.task(),
        WORK,
        rounds=1,
        personal_work=LONGER,
        client_optimizer=optax.sgd(RATE),
        personal_optimizer=optax.sgd(0.2),
    )
    server, states, metrics = oracle.rounds(fed, one_layer.WORLD, DRAWS)
    plain = fedavg(one_layer.task(), WORK, client_optimizer=optax.sgd(RATE))
    shared = oracle.rounds(plain, one_layer.WORLD, DRAWS[:1])[0].theta
    oracle.assert_close(server.theta, shared)
    weight, _, _, s = one_layer.start()
    expert, bias = one_layer.pair(shared), shared.full[one_layer.BIAS]
    own, router = dict.fromkeys(range(9), expert), jnp.zeros((5, 2))

    def logits(mine, router, x):
        gate, shared = jax.nn.softmax(x @ router), one_layer.added(expert, s, x)
        mixed = gate[:, :1] * shared + gate[:, 1:] * one_layer.added(mine, s, x)
        return x @ weight + bias + mixed

    def loss(p, x, y):
        return one_layer.cross_entropy(logits(*p, x), y)

    for ids in DRAWS[1:]:
        ends = []
        for i in ids:
            begin = own[i], router
            own[i], end = one_layer.descended(loss, begin, 0.2, 3, *one_layer.rows(i))
            ends.append(end)
        count = one_layer.WORLD.count[ids]
        router = one_layer.mean(ends, count / count.sum())
    oracle.assert_close(server.router[one_layer.PATH], router)
    for i in (1, 2, 4, 8):
        oracle.assert_close(one_layer.pair(states[i].own), own[i])
    x, _ = one_layer.rows(5)
    for i in (4, 0):  # client 0 has no expert of its own, so it deploys the global one
        base, theta = fed.deploy(server, states[i])
        found = fed.task.predict(base, theta, {"image": x, "mask": jnp.ones(len(x))})
        np.testing.assert_allclose(found, logits(own[i], router, x), rtol=1e-6)
    whole, gate = trees.nbytes(server.theta), trees.nbytes(server.router)
    assert [m["down"].tolist() for m in metrics] == [
        [whole] * 3,
        [whole + gate] * 3,
        [gate, whole + gate, gate],
    ]
    assert [m["up"].tolist() for m in metrics] == [[whole] * 3, [gate] * 3, [gate] * 3]
