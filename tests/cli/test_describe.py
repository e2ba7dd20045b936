"""What is trained, in counts: with what clients keep for themselves."""

import jax
import numpy as np
import pytest

from jaxfed import lowrank, models, tasks, trees
from jaxfed.algorithms.general import fedper
from jaxfed.cli import describe
from jaxfed.simulation import ledger

pytestmark = pytest.mark.quick

EXAMPLES = {"image": np.zeros((4, 5), np.float32), "label": np.arange(4, dtype=np.int32) % 2}
SELECT = lowrank.Select(factors="dense_0/kernel", full="bias|head", rank=2)
TASK = tasks.classification(models.MLP((3,), classes=2), EXAMPLES, select=SELECT)


def test_what_clients_keep_is_part_of_what_is_trained():
    base, theta = jax.eval_shape(TASK.init, jax.random.key(0))
    shared, own = fedper.divide(theta, r"/b$|^full/")
    whole = describe.whole(shared, TASK.init)
    assert trees.size(whole) == trees.size(theta)
    printed = describe.parameters(base, whole, ledger.Wire(0, 0), trees.size(shared))
    assert "trained  27 = " in printed  # (5 + 3) 2 in factors, 3 + 3 x 2 + 2 in biases and head
    assert "16 in factors beside 1 weights, 11 in 3 weights trained in full" in printed
    assert f"kept     {trees.size(own)} of the trained, by each client for itself" in printed
    assert "head/kernel" in describe.weights(base, whole)


def test_a_theta_that_is_whole_stays_as_it_is():
    base, theta = jax.eval_shape(TASK.init, jax.random.key(0))
    assert describe.whole(theta, TASK.init) is theta
    assert "kept" not in describe.parameters(base, theta, ledger.Wire(0, 0), trees.size(theta))


def test_a_theta_of_another_structure_than_the_tasks_is_left_alone():
    other = lowrank.Theta({}, {"head/bias": None})
    assert describe.whole(other, TASK.init) is other
