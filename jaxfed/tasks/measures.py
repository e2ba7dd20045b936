"""Measures of a confusion matrix."""

import numpy as np


def matthews(confusion: np.ndarray) -> np.ndarray:
    """Matthews correlation of confusion matrices [..., truth, said] -> [...], from -1 to 1.

    (s c - sum_k t_k p_k) / sqrt((s^2 - sum_k t_k^2) (s^2 - sum_k p_k^2)) with s examples, c of them
    right, t_k of class k and p_k said to be (Gorodkin 2004, for any number of classes). It is zero
    by convention where only one class occurs or only one is said: so on a client whose examples
    all have one label it says nothing, and the union of clients' examples tells more.
    """
    m = np.asarray(confusion, np.float64)
    if m.ndim < 2 or m.shape[-1] != m.shape[-2]:
        raise ValueError(f"the confusion matrix is {m.shape}; give [..., classes, classes]")
    truth, said, total = m.sum(-1), m.sum(-2), m.sum((-1, -2))
    above = total * np.trace(m, axis1=-2, axis2=-1) - (truth * said).sum(-1)
    below = (total**2 - (truth**2).sum(-1)) * (total**2 - (said**2).sum(-1))
    return np.where(below > 0, above / np.sqrt(np.maximum(below, 1)), 0.0)


def f1(confusion: np.ndarray) -> np.ndarray:
    """F1 of class 1 of two, from confusion matrices [..., truth, said] -> [...].

    2 tp / (2 tp + fp + fn); zero where class 1 neither occurs nor is said.
    """
    m = np.asarray(confusion, np.float64)
    if m.shape[-2:] != (2, 2):
        raise ValueError(f"f1 is of two classes; the confusion matrix is {m.shape[-2:]}")
    right, either = 2 * m[..., 1, 1], m[..., 1, :].sum(-1) + m[..., :, 1].sum(-1)
    return right / np.maximum(either, 1)
