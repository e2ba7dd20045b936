"""Programs of the sweep against the library's own run, and the climb to the best rate."""

import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest
import sweep

from jaxfed import Host, run
from jaxfed.algorithms import scaffold

pytestmark = pytest.mark.full


def test_a_program_is_the_librarys_run(problem):
    cell = sweep.Cell("fedloru", clients=6, cohort=3, rounds=4, every=2, restart="keep")
    mine = list(sweep.rounds(sweep.program(problem, cell, 2), problem, seed=5, rate=1.0))
    records = list(run(sweep.experiment(problem, cell, 5), host=Host(devices=1, chunk=2, fuse=1)))
    score = sweep.scorer(problem.factored, 250)(mine[-1][1].base, mine[-1][1].theta, problem.test)
    assert score["accuracy"] == pytest.approx(records[-1]["accuracy"])
    assert score["loss"] == pytest.approx(records[-1]["test_loss"], rel=1e-5)
    sent = sum(r[n] for r in records for n in ("up", "down", "broadcast"))
    assert sum(mine[-1][2]) == sent
    assert any(r["broadcast"] for r in records)


def test_scaffold_of_any_rate_is_that_of_rate_one_on_the_loss_times_the_rate(problem):
    """Its control variates are times the rate, too."""
    world, rate = oracle.World(problem.train, np.full(4, 125)), 0.3
    mine = sweep.at_rate(rate, problem.whole, problem.work, 4)
    theirs = scaffold(problem.whole, problem.work, learning_rate=rate, clients=4)
    one, other = (oracle.rounds(fed, world, [[0, 2], [2, 3]])[0] for fed in (mine, theirs))
    oracle.assert_close(one.theta, other.theta, rtol=1e-4, atol=1e-5)
    oracle.assert_close(one.c, optax.tree.scale(rate, other.c), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [32, 250, 1000])
def test_batches_share_their_statistics_and_the_last_has_what_is_left(problem, size):
    """Of a model that centres a batch, as batch normalisation does at test time."""

    def evaluate(base, theta, batch):
        centred = batch["image"] - batch["image"].mean(0)
        return {
            "loss": jnp.sum(batch["mask"] * centred[:, 0] ** 2),
            "accuracy": jnp.sum(batch["mask"]),
        }

    score = sweep.scorer(problem.factored._replace(evaluate=evaluate), size)
    found = score((), (), problem.test)
    image = problem.test["image"][:, 0]
    cut = [image[i : i + size] for i in range(0, len(image), size)]
    expected = sum(((x - x.mean()) ** 2).sum() for x in cut) / len(image)
    assert found["loss"] == pytest.approx(expected, rel=1e-4)
    assert found["accuracy"] == 1


def test_cifar100_is_scored_by_batches_of_the_authors(tmp_path):
    rng = np.random.default_rng(0)
    made = {}
    for split in ("train", "test"):
        made[f"{split}_image"] = rng.integers(0, 256, (100, 32, 32, 3)).astype(np.uint8)
        made[f"{split}_label"] = np.arange(100)
    np.savez(tmp_path / "cifar100.npz", **made)
    settings = {"size": 32, "rank": 2, "scale": 1.0, "clip": 0.1, "least": 0.01}
    settings |= {"train": 60, "scored": 40, "batch": 32, "epochs": 1}
    assert sweep.cifar100(str(tmp_path / "cifar100.npz"), settings).scored == 32


def test_the_best_rate_is_climbed_to():
    tried = []

    def score(rate):
        tried.append(rate)
        return -abs(rate - 4)

    assert sweep.climb([1, 2, 3, 4, 5], score) == 4
    assert tried == [3, 4, 5]
    assert sweep.climb([5, 6, 7, 8, 9], score) == 5
    assert sweep.climb([7], score) == 7
