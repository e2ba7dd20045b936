"""LoRA-A2 against a loop over clients, in numpy."""

import bilinear as bl
import numpy as np
import optax
import oracle
import pytest

from jaxfed import local
from jaxfed.algorithms import fedlora, lora_a2
from jaxfed.lowrank import rules

COUNT, STEPS, RATE = [4, 6, 10], 3, 0.1
SHARE = np.array(COUNT) / sum(COUNT)
WORK = local.Work(max(COUNT), steps=STEPS, shuffle=False)
EVERYONE = [[0, 1, 2]] * 3


def one_sided(problem, i, f, side):
    """The client's adapter after its steps on that side alone."""
    a, b, s = f
    for _ in range(STEPS):
        g = problem.gradient(i, problem.weight + s * a @ b)
        if side == "b":
            b = b - RATE * s * a.T @ g
        else:
            a = a - RATE * s * g @ b.T
    return bl.Adapter(a, b, s)


def test_three_rounds_are_the_papers_loop(x64):
    """The best of two components, by the norm of what its change adds to the product."""
    problem = bl.bilinear(COUNT)
    fed = lora_a2(problem.task, WORK, components=1, client_optimizer=optax.sgd(RATE))
    server, _, metrics = oracle.rounds(fed, problem.world, EVERYONE)
    f = problem.start
    for t in range(3):
        side, a, b = "ba"[t % 2], f.a, f.b
        for i, p in enumerate(SHARE):
            new = one_sided(problem, i, f, side)
            added = [np.outer(new.a[:, j], new.b[j]) - np.outer(f.a[:, j], f.b[j]) for j in (0, 1)]
            j = int(np.argmax([np.linalg.norm(x) for x in added]))
            a, b = a.copy(), b.copy()
            a[:, j] += p * (new.a - f.a)[:, j]
            b[j] += p * (new.b - f.b)[j]
        f = bl.Adapter(a, b, f.scale)
    bl.assert_adapter(server.theta.factors, f)
    sizes = [set(found["up"].tolist()) for found in metrics]
    assert sizes == [{8 * 2 + 4}, {8 * 3 + 4}, {8 * 2 + 4}]  # a row of B, a column of A


def test_with_all_components_it_is_rolora(x64):
    problem = bl.bilinear(COUNT)
    fed = lora_a2(problem.task, WORK, components=2, client_optimizer=optax.sgd(RATE))
    rolora = fedlora(problem.task, WORK, rule=rules.ROLORA, client_optimizer=optax.sgd(RATE))
    found, _, _ = oracle.rounds(fed, problem.world, EVERYONE)
    expected, _, _ = oracle.rounds(rolora, problem.world, EVERYONE)
    oracle.assert_close(found.theta, expected.theta, rtol=1e-12)


def test_more_components_than_there_are_is_refused():
    fed = lora_a2(bl.bilinear(COUNT).task, WORK, components=3, client_optimizer=optax.sgd(RATE))
    with pytest.raises(ValueError, match="components=3; the factors have 2 together"):
        fed.init(None)
