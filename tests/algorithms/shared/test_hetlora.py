"""HETLoRA against its description, written down in numpy with the gradients by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from jaxfed import local, lowrank
from jaxfed.algorithm import Reply
from jaxfed.algorithms import hetlora
from jaxfed.lowrank import Factors, Theta
from jaxfed.tasks import Task

INPUTS, OUTPUTS, MOST, SCALE = 5, 4, 4, 0.5
ETA, STEPS, GAMMA, PENALTY = 0.1, 3, 0.7, 0.3
RANKS = [1, 3, 4]
DRAWS = [[0, 2], [1, 0], [2, 1], [0, 2]]
RNG = np.random.default_rng(0)
WORLD = oracle.World(
    {"x": RNG.normal(size=(18, INPUTS)), "y": RNG.normal(size=(18, OUTPUTS))}, np.array([6, 6, 6])
)
A, B = RNG.normal(size=(INPUTS, MOST)), RNG.normal(size=(MOST, OUTPUTS))
pytestmark = pytest.mark.usefixtures("x64")


def loss(base, theta, batch, key):
    """1/2 mean |s x A B + bias - y|^2."""
    f = theta.factors["w"]
    said = f.scale * batch["x"] @ f.a @ f.b + theta.full["bias"]
    squared = jnp.sum((said - batch["y"]) ** 2, axis=1) / 2
    return jnp.sum(squared * batch["mask"]) / jnp.sum(batch["mask"])


def begun(key):
    factors = {"w": Factors(jnp.asarray(A), jnp.asarray(B), SCALE)}
    return {"w": jnp.zeros((INPUTS, OUTPUTS))}, Theta({"bias": jnp.zeros(OUTPUTS)}, factors)


def made(**options):
    given = {
        "least": 1,
        "most": MOST,
        "gamma": GAMMA,
        "penalty": PENALTY,
        "client_optimizer": optax.sgd(ETA),
        "ranks": RANKS,
    } | options
    work = local.Work(6, steps=STEPS, shuffle=False)
    return hetlora(Task(begun, loss, None), work, **given)


def tail(a, b, t):
    return np.linalg.norm(a[:, t:]) * np.linalg.norm(b[t:])


def gradient(a, b, bias, t, x, y):
    """Of the loss, with the penalty on all components from t on."""
    residual = SCALE * x @ a @ b + bias - y
    g = SCALE * x.T @ residual / len(x)
    by_a, by_b = g @ b.T, a.T @ g
    norm_a, norm_b = np.linalg.norm(a[:, t:]), np.linalg.norm(b[t:])
    if norm_a * norm_b:
        by_a[:, t:] += PENALTY * norm_b * a[:, t:] / norm_a
        by_b[t:] += PENALTY * norm_a * b[t:] / norm_b
    return by_a, by_b, residual.mean(0)


def by_hand(rounds):
    """(A, B, bias, ranks, the ranks before and after each round)."""
    a, b, bias, ranks, seen = A, B, np.zeros(OUTPUTS), list(RANKS), []
    for drawn in rounds:
        ends, before = [], [ranks[i] for i in drawn]
        for i in drawn:
            rows, r = slice(6 * i, 6 * i + 6), ranks[i]
            x, y, t = WORLD.examples["x"][rows], WORLD.examples["y"][rows], int(GAMMA * r)
            own = [a[:, :r], b[:r], bias]
            start = tail(*own[:2], t)
            for _ in range(STEPS):
                own = [w - ETA * g for w, g in zip(own, gradient(*own, t, x, y), strict=True)]
            if tail(*own[:2], t) < start:
                ranks[i] = max(1, t)
            a_k, b_k = own[0][:, : ranks[i]], own[1][: ranks[i]]
            spare = MOST - ranks[i]
            padded = np.pad(a_k, ((0, 0), (0, spare))), np.pad(b_k, ((0, spare), (0, 0))), own[2]
            ends.append((np.linalg.norm(SCALE * a_k @ b_k), padded))
        total = sum(norm for norm, _ in ends)
        a, b, bias = (sum(norm / total * sent[n] for norm, sent in ends) for n in range(3))
        seen.append((before, [ranks[i] for i in drawn]))
    return a, b, bias, ranks, seen


def test_rounds_are_those_of_the_paper():
    """Three clients of three ranks, of which some prune themselves."""
    a, b, bias, ranks, seen = by_hand(DRAWS)
    server, states, metrics = oracle.rounds(made(), WORLD, DRAWS)
    f = server.theta.factors["w"]
    np.testing.assert_allclose(f.a, a, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(f.b, b, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(server.theta.full["bias"], bias, rtol=1e-9)
    assert [int(states[i]) for i in range(3)] == ranks != RANKS
    for found, (before, after) in zip(metrics, seen, strict=True):
        per_rank, whole = 8 * (INPUTS + OUTPUTS), 8 * OUTPUTS
        assert found["down"].tolist() == [whole + per_rank * r for r in before]
        assert found["up"].tolist() == [whole + per_rank * r for r in after]
        assert found["rank"].tolist() == after
    assert any(before != after for before, after in seen)
    assert any(before == after for before, after in seen)


def test_without_examples_nothing_is_pruned_or_lost():
    """A client that takes no step sends what it got, and its tail is no smaller than it was."""
    world = WORLD._replace(count=np.array([0, 18]))
    fed = made(ranks=[2, 4])
    _, states, _ = oracle.rounds(fed, world, [[0, 1]])
    assert int(states[0]) == 2


def test_one_client_of_full_rank_trains_as_in_fedlora():
    """gamma = 1 prunes nobody, and there is no penalty."""
    fed = made(gamma=1.0, penalty=0.0, ranks=[MOST] * 3)
    server, _, _ = oracle.rounds(fed, WORLD, [[1]])
    own, (x, y) = [A, B, np.zeros(OUTPUTS)], (WORLD.examples[n][6:12] for n in ("x", "y"))
    for _ in range(STEPS):
        residual = SCALE * x @ own[0] @ own[1] + own[2] - y
        g = SCALE * x.T @ residual / 6
        steps = g @ own[1].T, own[0].T @ g, residual.mean(0)
        own = [w - ETA * d for w, d in zip(own, steps, strict=True)]
    np.testing.assert_allclose(server.theta.factors["w"].a, own[0], rtol=1e-9)


def test_first_ranks_are_drawn_uniformly_by_round_and_client():
    fed, clients = made(least=2, ranks=None), 120
    server = fed.init(jax.random.key(0))
    world = oracle.World(WORLD.examples, np.ones(clients, int))
    fresh = [fed.init_client(server, jax.random.key(0))] * clients

    def unheard(client, base, theta, cohort):
        """The verb, of clients that do nothing."""
        sent = jax.tree.map(lambda w: jnp.broadcast_to(w, (clients, *w.shape)), theta)
        return Reply(sent, cohort.state, {})

    def drawn(t):
        cohort = oracle.cohort(world, fresh, range(clients), t)
        return np.asarray(fed.run_round(server, cohort, unheard)[1])

    first = drawn(0)
    assert np.bincount(first)[2:].min() > 20  # of 2, 3 and 4: 40 expected, deviation 5
    assert set(first) == {2, 3, 4}
    np.testing.assert_array_equal(first, drawn(0))
    assert (first != drawn(1)).any()


def test_a_client_runs_the_components_of_its_rank():
    """One that was never drawn has no rank yet, and runs them all."""
    fed = made()
    server = fed.init(jax.random.key(0))
    for state, rank in ((jnp.int32(2), 2), (fed.init_client(server, jax.random.key(0)), MOST)):
        run = lowrank.merged(*fed.deploy(server, state))["w"]
        np.testing.assert_allclose(run, SCALE * A[:, :rank] @ B[:rank])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"least": 0}, "least=0, most=4"),
        ({"least": 5}, "least=5, most=4"),
        ({"gamma": 1.1}, r"gamma=1\.1"),
        ({"penalty": -1.0}, r"penalty=-1\.0"),
        ({"ranks": [1, 5]}, r"ranks=\[1, 5\] are not all from least=1 to most=4"),
    ],
)
def test_what_makes_no_sense_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        made(**options)


def test_the_servers_rank_must_be_that_of_the_task():
    with pytest.raises(ValueError, match=r"ranks \{'w': 4\}, not most=3"):
        made(most=3, ranks=None).init(jax.random.key(0))
