"""The model of what a round sends between chips."""

import jax
import network
import ours
import pytest
import workloads

from jaxfed import trees

LINKS = network.Links(near=10.0, far=1.0, together=8)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("chips", "seconds"),
    [(1, 0.0), (2, 2 * 40 / 2 / 10), (8, 2 * 40 * 7 / 8 / 10), (32, 7.0 + 2 * 5 * 3 / 4)],
)
def test_a_ring_sends_nearly_twice_the_bytes_and_each_chip_its_part_of_them_far(chips, seconds):
    assert network.sending(40, chips, LINKS) == pytest.approx(seconds)


@pytest.mark.quick
def test_what_is_said_to_be_trained_is_what_the_workloads_train():
    for name in ("W3", "W6", "W8"):
        shapes, rank = workloads.SHAPES[name], workloads.WORKLOADS[name].rank
        each = (
            (shape[0] if workloads.stack(path) else 1, *shape[workloads.stack(path) :])
            for path in workloads.adapted(name, shapes)
            for shape in (shapes[path],)
        )
        assert network.PAYLOADS[f"factors of {name}"] == 4 * sum(
            layers * rank * (rows + columns) for layers, rows, columns in each
        )


def test_a_planned_algorithm_has_the_shapes_of_the_one_that_is_run():
    name = "W8 tiny"
    planned, examples = ours.planned(name)
    made = ours.algorithm(name, workloads.arrays(name, 1))
    mine, theirs = (jax.eval_shape(fed.init, jax.random.key(0)) for fed in (planned, made))
    assert jax.tree.structure(mine) == jax.tree.structure(theirs)
    assert trees.shapes(mine) == trees.shapes(theirs)
    assert examples["tokens"].shape == (8, 8)
