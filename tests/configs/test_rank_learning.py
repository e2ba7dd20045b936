"""Two clients of unequal ranks (configs/pf2lora/rank_learning.py): what each method finds."""

import importlib
from pathlib import Path

import numpy as np
import pytest

CONFIGS = Path(__file__).parents[2] / "configs/pf2lora"


@pytest.fixture
def config(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    return importlib.import_module("rank_learning")


def run(config, rounds, **settings):
    """(what is deployed at the end, what clients have after local steps)."""
    found = config.result(**settings, rounds=rounds, evaluate_every=rounds)
    return found.curve[rounds], found.worked


def test_a_client_measures_its_distance_from_its_ground_truth(config):
    """The loss at zero is 1/2 ||W_k*||^2, a half of its rank; the first lies in the second."""
    for truths, difference in (("nested", 2), ("independent", 8)):
        e = config.experiment(truths=truths)
        first, second = config.ground_truths(truths, 0)
        assert np.linalg.matrix_rank(first - second) == difference
        for rank, inputs, truth in zip(
            (3, 5), np.split(e.data.test["x"], 2), (first, second), strict=True
        ):
            np.testing.assert_allclose(inputs.T @ inputs / 10, np.eye(10), atol=1e-5)
            assert np.linalg.matrix_rank(truth) == rank
            np.testing.assert_allclose(np.linalg.svd(truth)[1][:rank], 1)


@pytest.mark.parametrize("method", ["pf2lora", "alternating"])
def test_two_adapters_recover_both_ranks_with_or_without_the_cross_term(config, method):
    deployed, _ = run(config, 200, method=method)
    assert max(deployed.errors) < 1e-3
    assert deployed.ranks == [3, 5]


@pytest.mark.parametrize(("rank", "best"), [(4, (0.5 / 3**0.5, 0.5)), (5, (6**-0.5, 10**-0.5))])
def test_one_model_for_both_is_the_best_of_its_rank_for_their_mean(config, rank, best):
    """(W_1* + W_2*) / 2 has singular values 1, 1, 1, 1/2, 1/2; rank 4 keeps one of the halves."""
    deployed, _ = run(config, 200, method="homlora", rank=rank)
    np.testing.assert_allclose(deployed.errors, best, atol=0.01)
    assert deployed.ranks == [rank, rank]


def test_ranks_below_the_truth_are_not_outgrown(config):
    """Begun at (3, 4), client 2 lacks one of five equal directions."""
    _, worked = run(config, 100, method="hetlora", ranks=(3, 4), learning_rate=0.2)
    np.testing.assert_allclose(worked.errors, [0, 5**-0.5], atol=1e-3)
    assert worked.ranks == [3, 4]


def test_filling_up_with_zeros_makes_the_larger_rank_collapse(config):
    """With little local work the directions of one client alone shrink in every average."""
    _, worked = run(config, 100, method="hetlora", ranks=(3, 5))
    np.testing.assert_allclose(worked.errors, [0, (2 / 5) ** 0.5], atol=1e-3)
    assert worked.ranks == [3, 3]


@pytest.mark.full
def test_independent_ground_truths_need_half_the_rank_of_their_difference(config):
    """With E_k = W_k - W_k*, E_1 - E_2 is W_2* - W_1* but for a matrix of rank 2 r~.

    So |E_1|^2 + |E_2|^2 >= 1/2 |E_1 - E_2|^2 >= 1/2 the sum of sigma_i^2 over all i > 2 r~.
    """
    first, second = config.ground_truths("independent", 0)
    sigma = np.linalg.svd(first - second)[1]
    small, enough = (
        run(config, 500, method="pf2lora", truths="independent", personal_rank=rank)[0]
        for rank in (1, 4)
    )
    squares = np.square(small.errors) @ [3, 5]  # |W_k*|^2
    assert squares > np.square(sigma[2:]).sum() / 2 > 1
    assert max(enough.errors) < 0.01
    assert enough.ranks == [3, 5]
