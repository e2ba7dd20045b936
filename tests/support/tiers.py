"""In which tier a case of a test is."""

from collections.abc import Iterable

import pytest


def usual(values: Iterable, *named: object) -> list:
    """The values as cases of a test: those that are named in the default tier, the rest in full."""
    marks = {True: (), False: pytest.mark.full}
    return [pytest.param(value, marks=marks[value in named]) for value in values]
