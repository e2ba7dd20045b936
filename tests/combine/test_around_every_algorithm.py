"""`accumulate` around every algorithm: a merge keeps the function."""

import algorithms
import jax
import jax.numpy as jnp
import oracle
import pytest

from jaxfed import combine, lowrank
from jaxfed.algorithms import families, zoo
from jaxfed.lowrank import restarts

ROUNDS = algorithms.DRAWS[:2]


def one_after_the_other(base, theta, start, key):
    """All restarts that keep the function."""
    for restart in (restarts.residual, restarts.reinit, restarts.balanced):
        base, theta = restart(base, theta, start, key)
    return base, theta


def merges(row):
    return "loru" in row.name or row.name in ("rac", "frlora", "cola")


FORMS = {row.name for row in families.FORMS}
# Clients keep a factor, the mean is that of what they keep, or they train another form.
UNMERGED = {"fedsa", "pftt", "fedalt"} | FORMS


QUICKER = ("fedavg", "scaffold", "fedex", "pf2lora", "fedadam")
MERGED = [
    pytest.param(r, id=r.name, marks=[pytest.mark.full] * (r.name not in QUICKER))
    for r in zoo.ROWS
    # While clients stand, HETLoRA's mean of truncated factors moves; the other two cut.
    if not merges(r) and r.name not in {"hetlora", "florist", "sa-fedlora", "fedbn"} | UNMERGED
]


def made(row):
    if row.name == "scaffold":  # it divides by its learning rate
        return algorithms.controlled(algorithms.SCRATCH, 0.0)
    return row.make(algorithms.classifier(algorithms.SCRATCH), algorithms.setting(0.0))


@pytest.mark.parametrize("row", MERGED)
def test_a_merge_keeps_the_function(row, x64):
    """Clients stand still, as their learning rate is zero."""
    fed = combine.accumulate(made(row), every=1, restart=one_after_the_other)
    before = fed.init(jax.random.key(0))
    after, _, _ = oracle.rounds(fed, algorithms.UNEQUAL, ROUNDS)
    oracle.assert_close(
        lowrank.merged(after.base, after.theta), lowrank.merged(before.base, before.theta)
    )
    changed = jax.tree.map(lambda x, y: jnp.any(x != y), before.base, after.base)
    assert all(changed[p] for p in before.theta.factors)


@pytest.mark.parametrize(
    "row", [pytest.param(r, id=r.name) for r in zoo.ROWS if merges(r) or r.name in UNMERGED]
)
def test_what_cannot_be_merged_again_or_at_all_is_refused(row, x64):
    inner = row.make(algorithms.classifier(algorithms.SCRATCH), algorithms.setting(0.1))
    refusals = ("merges its factors already", "client keeps a factor", "another form", "no factors",
                "a merge into the base would part")  # fmt: skip
    with pytest.raises(ValueError, match="|".join(refusals)):
        combine.accumulate(inner, every=1, restart=restarts.reinit).init(jax.random.key(0))
