"""Programs of the sweep against the library's own run, and the climb to the best rate."""

import pytest
import sweep

from jaxfed import Host, run

pytestmark = pytest.mark.full


def test_a_program_is_the_librarys_run(problem):
    cell = sweep.Cell("fedloru", clients=6, cohort=3, rounds=4, every=2, restart="keep")
    mine = list(sweep.rounds(sweep.program(problem, cell, 2), problem, seed=5, rate=1.0))
    records = list(run(sweep.experiment(problem, cell, 5), host=Host(devices=1, chunk=2, fuse=1)))
    score = sweep.scorer(problem.factored)(mine[-1][1].base, mine[-1][1].theta, problem.test)
    assert score["accuracy"] == pytest.approx(records[-1]["accuracy"])
    assert score["loss"] == pytest.approx(records[-1]["test_loss"], rel=1e-5)
    sent = sum(r[n] for r in records for n in ("up", "down", "broadcast"))
    assert mine[-1][2] == sent
    assert any(r["broadcast"] for r in records)


def test_the_best_rate_is_climbed_to():
    tried = []

    def score(rate):
        tried.append(rate)
        return -abs(rate - 4)

    assert sweep.climb([1, 2, 3, 4, 5], score) == 4
    assert tried == [3, 4, 5]
    assert sweep.climb([5, 6, 7, 8, 9], score) == 5
    assert sweep.climb([7], score) == 7
