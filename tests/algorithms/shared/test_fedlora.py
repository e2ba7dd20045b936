"""Aggregations of factors against a loop over clients, in numpy."""

import itertools

import algorithms
import bilinear as bl
import jax
import numpy as np
import optax
import oracle
import pytest

from jaxfed import combine, local, lowrank
from jaxfed.algorithms import fedavg, fedlora, fedloru, zoo
from jaxfed.algorithms.row import Setting
from jaxfed.lowrank import restarts, rules

RATE, STEPS = 0.1, 3
COUNT = [4, 6, 10]
SHARE = np.array(COUNT) / sum(COUNT)
WORK = local.Work(max(COUNT), steps=STEPS, shuffle=False)  # full batches
EVERYONE = [0, 1, 2]


def made(problem, rule, rate=RATE, **options):
    sgd, size = optax.sgd(rate), len(COUNT)
    return fedlora(problem.task, WORK, rule=rule, client_optimizer=sgd, cohort_size=size, **options)


def once(problem, rule, **options):
    """(W + s A B, A and B) after a round of all clients."""
    server, _, _ = oracle.rounds(made(problem, rule, **options), problem.world, [EVERYONE])
    adapter = bl.adapter(server.theta.factors)
    return np.asarray(server.base["w"]) + adapter.product, adapter


def clients(problem):
    return [problem.trained(i, problem.start, RATE, STEPS) for i in EVERYONE]


def mean_product(problem):
    return sum(p * f.product for p, f in zip(SHARE, clients(problem), strict=True))


@pytest.mark.parametrize("rule", [rules.FEDEX, rules.FLORA, rules.FEDMOMENTUM])
def test_an_exact_rule_changes_the_model_by_the_mean_of_the_products(x64, rule):
    problem = bl.bilinear(COUNT, rank=1)
    whole, _ = once(problem, rule)
    np.testing.assert_allclose(whole, problem.weight + mean_product(problem), rtol=1e-9)


def test_the_means_alone_do_not(x64):
    problem = bl.bilinear(COUNT, rank=1)
    whole, found = once(problem, rules.SEPARATE)
    assert np.abs(whole - problem.weight - mean_product(problem)).max() > 1e-4
    mean = bl.mean(clients(problem), SHARE)
    bl.assert_adapter({"w": lowrank.Factors(*found)}, mean)
    _, fedex = once(problem, rules.FEDEX)
    bl.assert_adapter({"w": lowrank.Factors(*fedex)}, mean)


@pytest.mark.parametrize("rank", [1, 2])
def test_flexlora_and_fedmomentum_go_on_with_the_svd_of_the_mean_product(x64, rank):
    """Of full rank, 2, FlexLoRA is exact."""
    problem = bl.bilinear(COUNT, rank=rank)
    u, sigma, vt = np.linalg.svd(mean_product(problem), full_matrices=False)
    best = (u[:, :rank] * sigma[:rank]) @ vt[:rank]
    whole, found = once(problem, rules.FLEXLORA)
    np.testing.assert_allclose(whole - problem.weight, best, rtol=1e-8)
    np.testing.assert_allclose(found.a.T @ found.a, np.eye(rank), atol=1e-9)
    _, even = once(problem, rules.FEDMOMENTUM)
    np.testing.assert_allclose(even.product, best, rtol=1e-8)
    np.testing.assert_allclose(even.a.T @ even.a, even.b @ even.b.T, atol=1e-9)


def test_fedsvd_keeps_the_product_of_ffa_lora_and_makes_a_orthonormal(x64):
    problem = bl.bilinear(COUNT, rank=2)
    (svd, factors), (ffa, first) = (once(problem, rule) for rule in (rules.FEDSVD, rules.FFA))
    np.testing.assert_allclose(svd, ffa, rtol=1e-8)
    np.testing.assert_allclose(factors.a.T @ factors.a, np.eye(2), atol=1e-9)
    np.testing.assert_array_equal(first.a, problem.start.a)


def test_without_a_rule_it_is_fedavg_over_the_factors(x64):
    problem = bl.bilinear(COUNT)
    fed = fedavg(problem.task, WORK, client_optimizer=optax.sgd(RATE))
    expected, _, _ = oracle.rounds(fed, problem.world, [EVERYONE] * 3)
    found, _, _ = oracle.rounds(made(problem, rules.SEPARATE), problem.world, [EVERYONE] * 3)
    oracle.assert_close(found.theta, expected.theta, rtol=1e-12)


@pytest.mark.parametrize(("rule", "sides"), [(rules.FFA, "bbbb"), (rules.ROLORA, "baba")])
def test_with_one_side_frozen_the_mean_of_products_is_the_product_of_means(x64, rule, sides):
    """Also under AdamW, whose decay and moments would move a side that has no gradient."""
    problem = bl.bilinear(COUNT)
    fed = fedlora(problem.task, WORK, rule=rule, client_optimizer=optax.adamw(RATE))
    fed, heard = combine.with_discrepancy(fed), []

    def verb(client, base, message, cohort):
        reply = oracle.loop(client, base, message, cohort)
        heard.append(reply)
        return reply

    _, _, metrics = oracle.rounds(fed, problem.world, [EVERYONE] * 4, verb)
    assert all(found["discrepancy"] < 1e-7 for found in metrics)
    moved = ["".join(s for s in "ab" if getattr(r.upload.factors["w"], s).any()) for r in heard]
    assert "".join(moved) == sides


def test_a_cycle_of_rac_lora_is_a_projected_gradient_step(x64):
    """One client and one local step: W <- W - eta s^2 A A' G, with a new A in each cycle."""
    problem = bl.bilinear([8])
    work = local.Work(8, steps=1, shuffle=False)
    ffa = fedlora(problem.task, work, rule=rules.FFA, client_optimizer=optax.sgd(RATE))
    fed, seen = combine.accumulate(ffa, every=1, restart=restarts.reinit), []

    def verb(client, base, message, cohort):
        seen.append((np.asarray(base["w"]), message.factors["w"]))
        return oracle.loop(client, base, message, cohort)

    oracle.rounds(fed, problem.world, [[0]] * 4, verb)
    for (w, f), (after, _) in itertools.pairwise(seen[1:]):
        step = RATE * f.scale**2 * f.a @ f.a.T @ problem.gradient(0, w)
        np.testing.assert_allclose(after, w - step, rtol=1e-9)


@pytest.mark.parametrize("rule", [rules.FEDEX, rules.FLORA, rules.FEDMOMENTUM, rules.ROLORA])
def test_a_merge_around_it_keeps_the_function(x64, rule):
    """FedLoRU around exact aggregation: with a rate of zero five rounds change nothing."""
    problem = bl.bilinear(COUNT)
    fed = combine.accumulate(made(problem, rule, rate=0.0), every=2, restart=restarts.reinit)
    server, _, _ = oracle.rounds(fed, problem.world, [EVERYONE] * 5)
    found = lowrank.merge(server.base, server.theta)["w"]
    np.testing.assert_allclose(found, problem.weight + problem.start.product, rtol=1e-12)


def test_rac_lora_reaches_least_squares_where_lora_of_rank_one_stops(x64):
    problem = bl.bilinear([30], rank=1)
    x, y = problem.rows(0)
    minimum = np.linalg.lstsq(x, y, rcond=None)[0]
    work = local.Work(30, steps=5, shuffle=False)

    def distance(rule, rate, merged):
        fed = fedlora(problem.task, work, rule=rule, client_optimizer=optax.sgd(rate))
        if merged:
            fed = combine.accumulate(fed, every=1, restart=restarts.reinit)
        server, _, _ = oracle.rounds(fed, problem.world, [[0]] * 200)
        return np.abs(lowrank.merge(server.base, server.theta)["w"] - minimum).max()

    assert distance(rules.FFA, 0.5, merged=True) < 1e-3
    assert distance(rules.SEPARATE, 0.2, merged=False) > 1e-2


def test_cola_is_fedloru_with_one_client(x64):
    """Its chain: W <- W + s A B of LoRA trained from a new A and B = 0, the optimizer new."""
    problem = bl.bilinear([8])
    fed = fedloru(
        problem.task, WORK, every=1, restart=restarts.reinit, client_optimizer=optax.sgd(RATE)
    )
    seen = []

    def verb(client, base, message, cohort):
        seen.append((np.asarray(base["w"]), bl.adapter(message.factors)))
        return oracle.loop(client, base, message, cohort)

    oracle.rounds(fed, problem.world, [[0]] * 4, verb)
    assert not any(begun.b.any() for _, begun in seen[1:])
    for (w, begun), (after, _) in itertools.pairwise(seen):
        link = problem.trained(0, begun, RATE, STEPS, weight=w)
        np.testing.assert_allclose(after, w + link.product, rtol=1e-9)


def test_cola_is_fedloru_of_one_client_with_all_the_data(x64):
    """The row of the zoo: a round is a step on the union of the clients' data."""
    work, problem = local.Work(8, steps=1, shuffle=False), bl.bilinear([1, 3, 4])
    row = next(row for row in zoo.ROWS if row.name == "cola")
    setting = Setting(work, rate=RATE, clients=3, cohort=3, rank=1, rounds=5)
    alone = fedloru(
        problem.task, work, every=2, restart=restarts.reinit, client_optimizer=optax.sgd(RATE)
    )
    united = oracle.World(problem.world.examples, np.array([8]))
    expected = oracle.rounds(alone, united, [[0]] * 5)[0]
    found = oracle.rounds(row.make(problem.task, setting), problem.world, [[0, 1, 2]] * 5)[0]
    oracle.assert_close((found.base, found.theta), (expected.base, expected.theta), rtol=1e-9)


# ---------------------------------------------------------------------- ranks of clients


def test_a_rank_above_the_factors_is_refused(x64):
    with pytest.raises(ValueError, match="ranks has 3, but w has factors of rank 2; use at most"):
        once(bl.bilinear(COUNT, rank=2), rules.FLORA, ranks=[1, 3, 1])


def test_clients_of_lower_rank_train_and_send_the_first_components(x64):
    """FLoRA: W takes sum_k p_k s A_k B_k of the factors as the clients had them."""
    problem, ranks = bl.bilinear(COUNT, rank=2), [1, 2, 1]
    whole, _ = once(problem, rules.FLORA, ranks=ranks)
    expected = problem.weight
    for i, (p, rank) in enumerate(zip(SHARE, ranks, strict=True)):
        a, b, s = problem.start
        cut = bl.Adapter(a[:, :rank], b[:rank], s)
        expected = expected + p * problem.trained(i, cut, RATE, STEPS).product
    np.testing.assert_allclose(whole, expected, rtol=1e-9)


def test_flexlora_shrinks_what_few_clients_have_and_raflora_does_not(x64):
    """With a rate of zero: two of three clients have rank 1, with half of the examples."""
    problem, ranks = bl.bilinear(COUNT, rank=2), [1, 1, 2]
    a, b, s = problem.start
    shared = bl.Adapter(a[:, :1], b[:1], s).product
    whole, _ = once(problem, rules.RAFLORA, ranks=ranks, rate=0.0)
    np.testing.assert_allclose(whole - problem.weight, problem.start.product, atol=1e-10)
    whole, _ = once(problem, rules.FLEXLORA, ranks=ranks, rate=0.0)
    shrunk = shared + SHARE[2] * (problem.start.product - shared)
    np.testing.assert_allclose(whole - problem.weight, shrunk, atol=1e-10)


def test_frlora_merges_what_was_gained_and_returns_to_the_weights_own_factors(x64):
    """Its second round begins at A_0, B_0, with W + s (A B - A_0 B_0)."""
    fed = algorithms.ALGORITHMS["frlora"](RATE)
    first = fed.init(jax.random.key(0))
    server, _, _ = oracle.rounds(fed, algorithms.UNEQUAL, algorithms.DRAWS[:1])
    seen = []

    def verb(client, base, message, cohort):
        seen.append((base, message))
        return oracle.loop(client, base, message, cohort)

    oracle.rounds(fed, algorithms.UNEQUAL, algorithms.DRAWS[:2], verb)
    base, theta = seen[1]
    oracle.assert_close(theta.factors, first.theta.factors, rtol=0, atol=0)
    ended = lowrank.merged(server.base, server.theta)
    oracle.assert_close(lowrank.merged(base, theta), ended, rtol=1e-10)


# ---------------------------------------------------------------------- bytes


A, B, FULL, WEIGHT = 5 * 2 * 4, 2 * 3 * 4, 3 * 4, 5 * 3 * 4  # of the little world, in float32
BYTES = {  # (down in round 1, down later, up in rounds 1 and 2)
    "fedex": (FULL + A + B, FULL + A + B + WEIGHT, [FULL + A + B] * 2),
    "flora": (FULL, FULL + WEIGHT, [FULL + A + B] * 2),
    "flexlora": (FULL + A + B, FULL + A + B, [FULL + A + B] * 2),
    "fedsvd": (FULL + A + B, FULL + A + B, [FULL + B] * 2),
    "ffa": (FULL + B, FULL + B, [FULL + B] * 2),
    "rolora": (FULL + A + B, FULL + A + B, [FULL + B, FULL + A]),
}


@pytest.mark.parametrize("name", BYTES)
def test_a_client_declares_what_it_receives_and_sends(name):
    first, later, up = BYTES[name]
    fed = algorithms.ALGORITHMS[name](0.1)
    _, _, metrics = oracle.rounds(fed, algorithms.UNEQUAL, algorithms.DRAWS[:2])
    assert [set(m["down"].tolist()) for m in metrics] == [{first}, {later}]
    assert [set(m["up"].tolist()) for m in metrics] == [{n} for n in up]


@pytest.mark.parametrize(("size", "numbers"), [(1, 3 + 2), (2, 3 * 2)])
def test_an_absent_client_must_receive_the_stack_or_the_whole_change(size, numbers):
    problem = bl.bilinear(COUNT, rank=1)
    sgd = optax.sgd(RATE)
    fed = fedlora(problem.task, WORK, rule=rules.FLORA, client_optimizer=sgd, cohort_size=size)
    server = jax.eval_shape(fed.init, jax.random.key(0))
    assert (fed.broadcast(server, 0), fed.broadcast(server, 1)) == (0, 4 * numbers)


def test_what_cannot_be_counted_is_refused():
    task = bl.bilinear(COUNT).task
    sgd = {"client_optimizer": optax.sgd(RATE)}
    with pytest.raises(ValueError, match="cohort_size=None"):
        fedlora(task, WORK, rule=rules.FEDEX, **sgd)
    with pytest.raises(TypeError, match="rule is a function"):
        fedlora(task, WORK, rule=rules.means, **sgd)
    fed = fedlora(task, WORK, rule=rules.FEDEX, cohort_size=2, **sgd)
    with pytest.raises(ValueError, match="cohort_size=2, but a round has 3"):
        oracle.rounds(fed, bl.bilinear(COUNT).world, [EVERYONE])
