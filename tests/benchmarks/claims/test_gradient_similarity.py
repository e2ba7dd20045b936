"""Likeness of gradients and updates, whole on a tiny problem."""

import gradient_similarity
import likeness
import numpy as np
import pytest

pytestmark = pytest.mark.full


def test_gradients_and_updates_of_clients(monkeypatch, called):
    monkeypatch.setattr(likeness.Local.__new__, "__defaults__", (4, 1, 2, 0.05, 2))
    more = ["--epochs", "0", "1", "--ranks", "1", "4", "--clients", "3", "--sizes", "4"]
    content, page = called(gradient_similarity, *more)
    found = gradient_similarity.gathered(content)
    assert found.gain("measured").shape == (2, 1, 2, 3, 1, 2)
    np.testing.assert_allclose(found.gain("measured")[..., 1], 0, atol=2e-3)  # rank 4 is whole
    assert all(np.isfinite(x).all() for x in found.cosines.values())
    assert "by label" in page
