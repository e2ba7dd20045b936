"""The counterfactual server says of each rule what a run with that rule would say."""

from functools import partial

import bilinear
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from jaxfed import lowrank
from jaxfed.algorithms import fedavg, fedlora
from jaxfed.combine import counterfactual
from jaxfed.local import Work
from jaxfed.lowrank import rules

COUNT, RATE = np.array([3, 5, 4]), 0.1
WORK = Work(8, epochs=2, shuffle=False)
OTHERS = {"fedex": rules.FEDEX, "flexlora": rules.FLEXLORA}
EVERYONE = [0, 1, 2]


def made():
    """(the bilinear problem, fedlora(rule) on it)."""
    problem = bilinear.bilinear(COUNT)

    def evaluate(base, theta, batch):
        return {"loss": problem.task.loss(base, theta, batch, None) * jnp.sum(batch["mask"])}

    task = problem.task._replace(evaluate=evaluate)
    return problem, partial(
        fedlora, task, WORK, client_optimizer=optax.sgd(RATE), cohort_size=len(COUNT)
    )


def weight(server):
    return np.asarray(lowrank.merged(server.base, server.theta)["w"])


@pytest.mark.full
def test_each_rule_is_recorded_as_a_run_with_it_would_end(x64):
    problem, algorithm = made()
    wrapped = counterfactual(algorithm(rule=rules.SEPARATE), rules=OTHERS)
    server, _, metrics = oracle.rounds(wrapped, problem.world, [EVERYONE] * 2)
    plain, _, alone = oracle.rounds(algorithm(rule=rules.SEPARATE), problem.world, [EVERYONE] * 2)
    oracle.assert_close((server.base, server.theta), tuple(plain))
    assert all(np.all(x["up"] == y["up"]) for x, y in zip(metrics, alone, strict=True))

    everything = {**OTHERS, "applied": rules.SEPARATE}
    ends = {
        name: weight(oracle.rounds(algorithm(rule=rule), problem.world, [EVERYONE])[0])
        for name, rule in everything.items()
    }
    start = problem.weight + problem.start.product
    exact, separate = ends["fedex"], ends["applied"]
    way = np.linalg.norm(exact - start)
    for name, w in ends.items():
        gap = np.linalg.norm(w - exact) / way
        assert metrics[0][f"{name}_discrepancy"] == pytest.approx(gap, rel=1e-9, abs=1e-9)
        losses = [problem.loss(i, w) for i in EVERYONE]
        np.testing.assert_allclose(metrics[1][f"{name}_loss"], losses, rtol=1e-9)
        np.testing.assert_allclose(
            metrics[0][f"{name}_loss"], [problem.loss(i, start) for i in EVERYONE], rtol=1e-9
        )
        if name in OTHERS:
            far = np.linalg.norm(w - separate) / way
            assert metrics[0][f"{name}_distance"] == pytest.approx(far, rel=1e-9, abs=1e-9)
    assert metrics[0]["fedex_discrepancy"] == pytest.approx(0, abs=1e-12)
    assert metrics[0]["applied_discrepancy"] > 1e-3


def test_wrong_rules_are_refused(x64):
    _, algorithm = made()
    fed = algorithm(rule=rules.SEPARATE)
    with pytest.raises(ValueError, match="name one or more, none of them 'applied'"):
        counterfactual(fed, rules={"applied": rules.FEDEX})
    with pytest.raises(ValueError, match="name one or more"):
        counterfactual(fed, rules={})
    with pytest.raises(TypeError, match="fedex"):
        counterfactual(fed, rules={"fedex": "FEDEX"})
    with pytest.raises(ValueError, match=r"rules\['raflora'\] needs the ranks of clients"):
        counterfactual(fed, rules={"raflora": rules.RAFLORA})
    with pytest.raises(ValueError, match="upload no change"):
        counterfactual(fed._replace(sends_change=False), rules=OTHERS)
    with pytest.raises(TypeError, match="algorithm"):
        counterfactual(fedavg, rules=OTHERS)
