"""configs/fedloru/counterexample.py: the fixed points, by hand and as run."""

import importlib
from pathlib import Path

import numpy as np
import pages
import pytest

CONFIGS = Path(__file__).parents[2] / "configs/fedloru"
PAGE = pages.ROOT / "docs" / "results" / "counterexample.md"


@pytest.fixture
def config(monkeypatch):
    monkeypatch.syspath_prepend(CONFIGS)
    return importlib.import_module("counterexample")


def worked(begin, u):
    """(a, b) at the end of gradient flow on 1/2 (a b - u)^2 from (a_0, 0), in small steps."""
    a, b = begin, 0.0
    for _ in range(20_000):
        rest = a * b - u
        a, b = a - 0.01 * b * rest, b - 0.01 * a * rest
    return a, b


def test_a_client_ends_where_gradient_flow_does(config):
    for u in (-0.3, 0.7):
        a, b = worked(0.5, u)
        np.testing.assert_allclose([a * b, b], [u, config.up(u, 0.5)], rtol=5e-3)


def test_the_closed_form_is_a_fixed_point_of_the_rounds(config):
    """W <- W + mean(a) mean(b) with clients at their own optima, 200 rounds from W = 0."""
    for begin in config.BEGINS:
        w = 0.0
        for _ in range(200):
            b = np.array([config.up(t - w, begin) for t in config.TARGETS])
            a = np.sqrt(begin**2 + b**2)
            w += a.mean() * b.mean()
        assert abs(w - config.fixed_point(begin)) < 1e-9


def test_the_limits_are_a_fifth_and_the_optimum(config):
    assert abs(config.fixed_point(1e-3) - 1 / 5) < 1e-6
    assert abs(config.fixed_point(100.0) - config.OPTIMUM) < 1e-6


def test_the_page_has_the_closed_form(config):
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    for begin in config.BEGINS:
        assert any(x.startswith(f"| {begin:g} | {config.fixed_point(begin):.4f} |") for x in lines)


@pytest.mark.parametrize(("begin", "expected"), [(0.25, 0.2172), (1.0, 0.3102)])
def test_fedloru_stands_still_away_from_the_optimum(config, begin, expected):
    assert abs(config.ended(begin=begin, rounds=30) - expected) < 1e-4


@pytest.mark.parametrize("method", ["fedex", "rolora", "fedloru-fedex"])
def test_exact_averages_stand_at_the_optimum_merged_or_not(config, method):
    assert abs(config.ended(method=method, rounds=30) - 1 / 3) < 1e-4


@pytest.mark.full
@pytest.mark.parametrize(
    ("method", "expected"), [("fedlora", 0.3314), ("fedmomentum", 0.3398), ("rac", 1 / 3)]
)
def test_the_others_end_as_the_page_has_it(config, method, expected):
    assert abs(config.ended(method=method) - expected) < 1e-4
